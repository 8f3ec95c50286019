"""The runner of the paper's tables: cells in processes, resuming, the page, bad arguments."""

from __future__ import annotations

import functools
import json
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("pyod", reason="the paper's baselines need drocc-ext[paper]")
pytest.importorskip("matplotlib", reason="the experiments need drocc-ext[paper]")

from benchmarks.paper import __main__ as runner
from benchmarks.paper import (
    baselines,
    mnist_split,
    pages,
    registry,
    settings,
    speech,
    store,
    synthetic_data,
)
from benchmarks.paper.experiment import Experiment, Options, by_seed, summary
from benchmarks.paper.hyperparameters import hyperparameters
from benchmarks.paper.mnist import load_mnist
from benchmarks.paper.runner import run
from benchmarks.training import fewer_steps
from drocc_ext import SearchConfig


def compute(log: Path, name: str, fails: bool = False) -> dict[str, Any]:
    """A cell that notes each call, as other processes cannot count here."""
    with log.open("a") as file:
        file.write(f"{name} {torch.get_num_threads()}\n")
    if fails:
        raise ValueError(f"compute: {name} must not fail, got a failure")
    return {"auc": 0.5 + 0.1 * int(name[-1])}


def experiment(log: Path, failing: tuple[str, ...] = (), rate: float = 1.0) -> Experiment:
    def cells(options: Options) -> dict[str, Any]:
        names = [f"method/{seed}" for seed in options.seeds]
        return {name: functools.partial(compute, log, name, name in failing) for name in names}

    def draw(content: dict[str, Any], directory: Path, options: Options) -> list[Path]:
        (directory / "toy.png").write_bytes(b"png")
        return [directory / "toy.png"]

    return Experiment(
        name="toy",
        title="Table 99: a toy",
        shows=("table99",),
        cells=cells,
        settings=lambda options: {"rate": rate},
        section=lambda content: f"AUC {summary(by_seed(content, 'method', 'auc'))}",
        draw=draw,
        needs_data=False,
    )


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Run the command line on one experiment; the log of its cells is `tmp_path / "log"`."""

    def run(*arguments: str, **how: Any) -> None:
        experiments = (experiment(tmp_path / "log", **how),)
        monkeypatch.setattr(registry, "EXPERIMENTS", experiments)
        monkeypatch.setattr(sys, "argv", ["paper", *arguments, "--out", str(tmp_path / "out")])
        runner.main()

    return run


def computed(tmp_path: Path) -> list[str]:
    return sorted((tmp_path / "log").read_text().splitlines())


_OTHER_NAMES = [pytest.param(name, marks=pytest.mark.slow) for name in ("table99", "all")]


@pytest.mark.parametrize("name", ["toy", *_OTHER_NAMES])
def test_a_run_fills_cells_and_page(call, tmp_path, capsys, name):
    call(name, "--seeds", "2")
    assert computed(tmp_path) == ["method/0 1", "method/1 1"], "each once, on one thread"
    content = json.loads((tmp_path / "out/results/toy.json").read_text())
    cell = content["cells"]["method/1"]
    assert cell["auc"] == 0.6 and cell["wall_seconds"] >= 0 and cell["cpu_seconds"] >= 0
    assert content["seeds"] == [0, 1] and content["pictures"] == ["toy.png"]
    page = (tmp_path / "out/RESULTS.md").read_text()
    assert "## Table 99: a toy" in page and "AUC 55.0 +- 7.1" in page
    assert "`python -m benchmarks.paper toy --seeds 2`" in page
    assert "![toy.png](results/toy.png)" in page
    (tmp_path / "out/RESULTS.md").unlink()
    call("page")
    assert (tmp_path / "out/RESULTS.md").read_text() == page
    content["environment"]["processor"] = "another"
    (tmp_path / "out/results/toy.json").write_text(json.dumps(content))
    call(name, "--seeds", "2")
    assert "all 2 cells were there, none was measured" in capsys.readouterr().err
    assert len(computed(tmp_path)) == 2
    assert "another" in (tmp_path / "out/RESULTS.md").read_text(), "nothing was measured here"


def test_a_stopped_run_continues(call, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        call("toy", "--seeds", "2", "--jobs", "1", failing=("method/1",))
    assert capsys.readouterr().err.endswith("method/1 must not fail, got a failure\n")
    assert not (tmp_path / "out/RESULTS.md").exists()
    call("toy", "--seeds", "3")
    assert [line.split()[0] for line in computed(tmp_path)] == [
        "method/0",
        "method/1",
        "method/1",
        "method/2",
    ]
    assert "60.0 +- 10.0" in (tmp_path / "out/RESULTS.md").read_text()


@pytest.mark.slow
def test_results_of_other_settings_are_not_mixed(call, tmp_path, capsys):
    call("toy", "--seeds", "1")
    for arguments, how in ((("toy",), {"rate": 2.0}), (("toy", "--quick"), {})):
        with pytest.raises(SystemExit, match="2"):
            call(*arguments, **how)
        message = capsys.readouterr().err
        assert "must be of the same settings, got others in" in message
        assert message.count("\n") >= 1 and "Traceback" not in message
    assert len(computed(tmp_path)) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("table98",), "TABLE must be all, page or one of toy, table99, got 'table98'"),
        (("toy", "--seeds", "0"), "--seeds must be >= 1, got 0"),
    ],
)
def test_bad_arguments_get_one_sentence(call, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        call(*arguments)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_place_that_is_no_directory(call, tmp_path, capsys):
    (tmp_path / "out").touch()
    with pytest.raises(SystemExit, match="2"):
        call("toy")
    assert "out" in capsys.readouterr().err


def test_missing_data_directory_is_named(tmp_path):
    for directory in (None, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=r"^--data-dir must be the directory .*, got "):
            Options(directory, (0,), False).data()


def test_hyperparameters_are_those_of_the_paper():
    parts = hyperparameters()
    counts = {name: len(part["paper"]) for name, part in parts.items() if name != "source"}
    assert counts == {
        "tabular": 3,
        "cifar10": 10,
        "imagenet10": 10,
        "time_series": 2,
        "limited_negatives": 4,
    }
    for name, part in parts.items():
        for row in part["paper"].values() if name != "source" else ():
            assert row["radius"] > 0 and row["mu"] in (0.5, 1) and row["step_size"] > 0
            assert row["optimizer"] in ("Adam", "SGD") and 0 < row["learning_rate"] <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", baselines.CLASSICAL + baselines.DEEP)
def test_baselines_rank_and_leave_the_generators_alone(name, seed):
    rng = np.random.default_rng(seed)
    train = rng.normal(size=(200, 4))
    test = np.concatenate([rng.normal(size=(40, 4)), 8 + rng.normal(size=(40, 4))])
    states = np.random.get_state()[1].copy(), torch.get_rng_state()
    first, again = (baselines.scores(name, train, test, 3, epochs=20) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (80,) and np.median(first[40:]) > np.quantile(first[:40], 0.9)
    assert (np.random.get_state()[1] == states[0]).all()
    assert torch.equal(torch.get_rng_state(), states[1])


def test_an_unknown_baseline_is_named():
    with pytest.raises(ValueError, match=r"name must be one of OC-SVM, .*, got 'magic'"):
        baselines.scores("magic", np.zeros((3, 2)), np.zeros((3, 2)), 0)


def test_synthetic_data_have_the_layout_of_the_real_files(tmp_path):
    directory = synthetic_data.make(tmp_path / "data")
    for name, columns in (("thyroid", 6), ("annthyroid", 6), ("arrhythmia", 274)):
        with np.load(directory / f"{name}.npz") as data:
            assert data["X"].shape == (len(data["y"]), columns) and data["X"].dtype == np.float32
            assert data["y"].dtype == np.int8 and 0.1 < data["y"].mean() < 0.2
    with np.load(directory / "abalone.npz") as data:
        assert data["X"].shape == (len(data["rings"]), 8) and data["rings"].dtype == np.int8
        assert {3, 8, 9, 10, 21} < set(data["rings"].tolist())
    with np.load(directory / "bonn_eeg.npz") as data:
        assert data["recordings"].shape == (len(data["set_name"]), 4097)
        assert data["recordings"].dtype == np.int16 and set(data["set_name"]) == set("ZONFS")
    assert load_mnist(directory).x_train.shape == (200, 28, 28)
    with np.load(directory / "speech_commands_test_mfcc.npz") as data:
        assert data["features"].shape == (len(data["word"]), 98, 32)
        assert data["features"].dtype == np.float16 and (data["speaker"] == "").any()
        assert set(speech.WORDS) < set(data["word"])
    with zipfile.ZipFile(directory / "cifar10" / "test.zip") as archive:
        assert "airplane/0000.jpg" in archive.namelist()


@pytest.mark.parametrize("where", ["paper", "training"])
def test_the_committed_pages_show_the_committed_results(where, tmp_path):
    committed = Path(runner.__file__).parent
    experiments, names = registry.EXPERIMENTS, ["RESULTS.md", "LIMITED_NEGATIVES.md"]
    if where == "training":
        committed = committed.parent
        experiments, names = (fewer_steps.EXPERIMENT,), ["FEWER_STEPS.md"]
    shutil.copytree(committed / "results", tmp_path / "results")
    written = pages.write(tmp_path, experiments)
    assert [page.name for page in written] == names
    for page in written:
        assert page.read_text() == (committed / page.name).read_text()
        for line in page.read_text().splitlines():
            if line.startswith("!["):
                assert (committed / line.rpartition("(")[2].rstrip(")")).is_file()


def test_committed_results_can_be_continued(monkeypatch, tmp_path):
    """The code has the settings that the results were measured with, or a run would refuse them."""
    results = Path(runner.__file__).parent / "results"
    measured = [e for e in registry.find("all") if (results / f"{e.name}.json").exists()]
    assert len(measured) > 10
    for experiment in measured:
        noted = store.read(results / f"{experiment.name}.json")["settings"]
        monkeypatch.setattr(mnist_split, "loaded", lambda directory: None)
        monkeypatch.setattr(mnist_split, "counts", lambda data, noted=noted: noted["images"])
        found = experiment.settings(Options(tmp_path, (0,), quick=False))
        assert json.loads(json.dumps({**found, "quick": False})) == noted, experiment.name


def test_a_new_field_of_the_search_keeps_former_results_valid():
    plain = settings.of_search(SearchConfig(2.0, 0.2, 5))
    assert "method" not in plain and plain["radius"] == 2.0 and plain["num_steps"] == 5
    assert settings.of_search(SearchConfig(2.0, 0.2, 5, method="autograd")) == plain | {
        "method": "autograd"
    }
    assert settings.of_search(None) is None


def test_templates_are_filled_and_wrapped(monkeypatch, tmp_path):
    monkeypatch.setattr(pages, "_TEXT", tmp_path)
    text = "# {title}\n\nAt {how[rate]:g}\nand {words}.\n\n{nothing}\n\n{table}\n"
    (tmp_path / "toy.md").write_text(text)
    table = "| a | b |\n|---|---|"
    filled = pages.filled(
        "toy", title="Toy", how={"rate": 0.5}, words="word " * 40 + "end", nothing="", table=table
    )
    title, paragraph, last = filled.split("\n\n")
    assert (title, last) == ("# Toy", table)
    assert paragraph.replace("\n", " ") == f"At 0.5 and {'word ' * 40}end."
    assert [len(line) <= 100 for line in paragraph.splitlines()] == [True] * 3
    with pytest.raises(KeyError):
        pages.filled("toy", title="Toy")


def test_cells_that_follow_from_others_are_computed_in_turn(tmp_path):
    """Each of three rounds wants the cell after the largest that is there."""

    def more(content: dict[str, Any], options: Options) -> dict[str, Any]:
        last = max(int(name) for name in content["cells"])
        return {str(last + 1): lambda: {"auc": last + 1.0}} if last < 3 else {}

    experiment = Experiment(
        name="toy",
        title="Toy",
        section=str,
        cells=lambda options: {"0": lambda: {"auc": 0.0}},
        more=more,
        seeds=(7, 8),
    )
    for _ in range(2):
        path = run(experiment, Options(None, (0,), False), tmp_path, jobs=None)
        content = json.loads(path.read_text())
        assert content["cells"] == {str(at): {"auc": float(at)} for at in range(4)}
        assert content["seeds"] == [7, 8]


def test_a_table_in_two_parts_is_found_whole():
    assert [e.name for e in registry.find("table3")] == ["seizure", "audio"]
    assert len({e.name for e in registry.EXPERIMENTS}) == len(registry.EXPERIMENTS)
