"""The demonstration: its files and tables, what it says when something is missing, its parts."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import runpy
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason="the demo needs drocc-ext[demo]")
pytest.importorskip("pyod", reason="the demo needs drocc-ext[demo]")

import matplotlib.image

from drocc_ext import demo
from drocc_ext.demo import noisy_sine, real_data, reporting, sine, timing
from drocc_ext.ops.eager.l2_shell import l2_shell_step

DETECTORS = ["DROCC, default", "DROCC, Algorithm 1", "OC-SVM", "isolation forest", "LOF", "kNN"]
ENVIRONMENT = {
    "torch": "2.x",
    "threads": 2,
    "cpu_instruction_set": "generic",
    "native_cpu": "loaded",
}


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    """One quick run: its directory, results, printed lines and what it left of global state."""
    out = tmp_path_factory.mktemp("demo") / "made" / "here"
    printed = io.StringIO()
    before = torch.get_num_threads(), torch.get_rng_state()
    with contextlib.redirect_stdout(printed):
        results = demo.main(out, quick=True)
    after = torch.get_num_threads(), torch.get_rng_state()
    return out, results, printed.getvalue(), before, after


@pytest.mark.slow
def test_files_and_nothing_else_are_written(quick_run):
    out, results, printed, _, _ = quick_run
    files = ["noisy_sine.png", "results.json", "results.md", "sine.png"]
    assert sorted(path.name for path in out.iterdir()) == files
    assert json.loads((out / "results.json").read_text()) == results
    last = printed.splitlines()[-2:]
    for name in files:
        assert any(str(out / name) in line for line in last)


@pytest.mark.slow
def test_tables_are_printed_and_kept(quick_run):
    out, results, printed, _, _ = quick_run
    page = (out / "results.md").read_text()
    assert "the numbers mean nothing" in page
    tables = [line for line in printed.splitlines() if line.startswith("|")]
    assert tables == [line for line in page.splitlines() if line.startswith("|")]
    first_cells = [line.split("|")[1].strip() for line in tables]
    assert [cell for cell in first_cells if cell in DETECTORS] == DETECTORS
    assert [f"{displacement:.1f}" for displacement in sine.PAPER] == first_cells[2:8]
    assert [cell for cell in first_cells if cell in noisy_sine.SHOWN] == list(noisy_sine.SHOWN)
    for by_detector in results["real_data"]["auc"].values():
        assert list(by_detector) == DETECTORS
        # Trained or not, on these data these detectors are far from chance.
        assert all(0.5 < auc <= 1 for name in DETECTORS[2:] for auc in by_detector[name])
    (row,) = results["timing"]["rows"]
    assert row["fused"] > 0 and row["eager"] > 0
    assert (row["compiled"] is None) == (results["timing"]["compile_error"] is not None)
    assert results["environment"]["torch"] == torch.__version__


@pytest.mark.slow
def test_global_state_is_left_alone(quick_run):
    *_, before, after = quick_run
    assert before[0] == after[0]
    assert torch.equal(before[1], after[1])


@pytest.mark.slow
def test_picture_shows_regions_and_data(quick_run):
    pixels = matplotlib.image.imread(quick_run[0] / "sine.png")[..., :3].reshape(-1, 3)
    red, green, blue = pixels.T
    yellow = (red > 0.9) & (green > 0.9) & (blue < 0.3)
    assert yellow.sum() > 500
    region = np.array([0xE8, 0x73, 0x6C]) / 255, np.array([0x5B, 0x7F, 0xD6]) / 255
    inside = [np.isclose(pixels, color, atol=0.01).all(1).sum() for color in region]
    assert sum(inside) > 100_000  # after 20 steps one of them may be empty


@pytest.mark.slow
def test_the_boundary_comes_to_follow_the_sine():
    trained = sine.train(seed=0, steps=200)
    result = sine.evaluate(trained, seed=7)
    assert result["auc"][2.0] > 99
    assert result["auc"][0.4] > 85
    assert result["normal_inside"] > 0.8


@pytest.mark.slow
def test_noisy_picture_shows_the_training_sine_and_both_panels(quick_run):
    pixels = matplotlib.image.imread(quick_run[0] / "noisy_sine.png")[..., :3]
    red, green, blue = np.moveaxis(pixels, -1, 0)
    yellow = (red > 0.9) & (green > 0.9) & (blue < 0.3)
    upper, lower = np.array_split(yellow, 2)
    assert upper.sum() > 500 and lower.sum() > 500


@pytest.mark.slow
def test_negatives_and_the_learned_metric_help_among_noise():
    drocc, lf = (
        noisy_sine.evaluate(noisy_sine.train(noisy_sine.METHODS[name], 0, 500), 1000, (0.6,))[0.6]
        for name in ("DROCC", "DROCC-LF")
    )
    assert lf > 85
    assert lf > drocc + 10


def test_noisy_sine_learns_which_coordinates_matter():
    trainer = noisy_sine.train(noisy_sine.METHODS["DROCC-LF"], 0, 200)
    sigma = trainer.loss.sigma
    assert sigma is not None
    assert sigma.mean() == pytest.approx(1)
    assert sigma[:2].min() > 2 * sigma[2:].max()


def test_training_on_the_sine_repeats():
    points = torch.randn(50, 2)
    first, again, other = (sine.train(seed, steps=3).trainer.score(points) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_splits_keep_test_rows_out_of_training(monkeypatch):
    monkeypatch.setattr(real_data, "SEEDS", (0, 1))
    splits = real_data.tasks()
    assert len(splits) == len(real_data.SEEDS) * (10 + 5)
    totals = {"breast cancer": 569, "digits": 1797, "wine": 178, "iris": 150}
    for task in splits:
        normals, anomalies = int(task.normal.sum()), int((~task.normal).sum())
        assert abs(normals - len(task.train)) <= 1
        assert len(task.train) + normals + anomalies == totals.get(task.data, 1200)
        if task.data != "iris":  # it has the same flower twice
            assert not {row.tobytes() for row in task.train} & {row.tobytes() for row in task.test}
    assert sum(task.data == "breast cancer" and task.normal.sum() == 179 for task in splits) == len(
        real_data.SEEDS
    )
    by_seed = [task.train for task in splits if task.data == "breast cancer"]
    assert not np.array_equal(by_seed[0], by_seed[1])


@pytest.mark.parametrize("missing", [("matplotlib",), ("pyod",), ("matplotlib", "pyod")])
def test_missing_packages_are_named_before_any_work(missing, monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in missing else find(name)
    )
    sentence = rf"^{' and '.join(missing)} not installed; run pip install 'drocc-ext\[demo\]'$"
    with pytest.raises(ModuleNotFoundError, match=sentence):
        demo.main(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file_is_refused_before_any_work(tmp_path, capsys):
    (tmp_path / "out").write_text("kept")
    with pytest.raises(FileExistsError):
        demo.main(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "kept"
    assert capsys.readouterr().out == ""


def test_a_compiler_that_fails_costs_one_column(monkeypatch):
    def fail(*_):
        raise RuntimeError("\nno working C++ compiler\nand a long trace")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fail)
    results = timing.run(quick=True)
    assert results["compile_error"] == "torch.compile failed (no working C++ compiler)"
    assert results["rows"][0]["compiled"] is None
    text = timing.report(results, ENVIRONMENT)
    assert text.splitlines()[-1] == f"No compiled column: {results['compile_error']}"
    assert [cell.strip() for cell in text.splitlines()[5].split("|")][4] == "-"


def test_timing_report_says_what_limits_it():
    row = {"batch": 8, "features": 3, "fused": 2e-6, "eager": 3e-6, "compiled": 5e-6}
    calm = timing.report({"rows": [{**row, "spread": 1.1}], "compile_error": None}, ENVIRONMENT)
    assert "1.50 |" in calm and "2.50 |" in calm and "*" not in calm
    busy = timing.report({"rows": [{**row, "spread": 9.0}], "compile_error": None}, ENVIRONMENT)
    assert "1.50* |" in busy and "other programs were running" in busy
    missing = {**ENVIRONMENT, "native_cpu": "was not built"}
    text = timing.report({"rows": [{**row, "spread": 1.1}], "compile_error": None}, missing)
    assert "was not built" in text and "eager PyTorch here" in text
    assert "eager PyTorch here" not in calm


def test_eager_lines_compute_the_step(seed):
    generator = torch.Generator().manual_seed(seed)
    h, grad = torch.randn(2, 40, 7, generator=generator, dtype=torch.float64).unbind()
    h = h * torch.logspace(-2, 2, 40, dtype=torch.float64)[:, None]  # within, on and beyond
    expected = l2_shell_step(h, grad, 0.3, 1.2, 2.0)
    torch.testing.assert_close(timing.eager_step_(h.clone(), grad, 0.3, 1.2, 2.0), expected)


def test_markdown_table_lines_up():
    text = reporting.markdown_table(["", "a long name"], [["x", "1"], ["longer", "22"]])
    assert text.splitlines() == [
        "|        | a long name |",
        "|--------|------------:|",
        "| x      |           1 |",
        "| longer |          22 |",
    ]
    assert reporting.mean_and_deviation([1.0, 2.0, 3.0], 2) == "2.00 +- 1.00"
    assert reporting.mean_and_deviation([1.0], 1) == "1.0"


def test_module_runs_the_command(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(demo, "main", calls.append)
    monkeypatch.setattr(sys, "argv", ["demo", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as exit_status:
        runpy.run_module("drocc_ext.demo", run_name="__main__")
    assert exit_status.value.code == 0
    assert calls == [str(tmp_path)]
