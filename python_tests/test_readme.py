"""Every command and every line of code in the README does what it says."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import python

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.S)
EXAMPLES = [
    (code, BLOCKS[i + 1][1])
    for i, (language, code) in enumerate(BLOCKS)
    if language == "python" and i + 1 < len(BLOCKS) and BLOCKS[i + 1][0] == "text"
]
COMMANDS = [
    shlex.split(command, comments=True)
    for language, code in BLOCKS
    if language == "sh"
    for line in code.splitlines()
    for command in line.split(" && ")
]


CODE = [code for language, code in BLOCKS if language == "python"]


def test_there_is_something_to_check() -> None:
    assert len(EXAMPLES) == 1 and len(CODE) == 3
    assert {command[0] for command in COMMANDS} == {"make", "pip", "drocc-ext"}
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_examples_print_what_they_show(number: int) -> None:
    code, shown = EXAMPLES[number]
    assert python("-c", code) == shown


def test_the_network_prints_what_it_shows() -> None:
    (shown,) = re.findall(r"^print\(.*\)  # (.*)$", CODE[1], re.M)
    assert python("-c", CODE[1]) == f"{shown}\n"


@pytest.mark.filterwarnings("ignore")
def test_lightning_trains(tmp_path: Path, seed: int) -> None:
    pl = pytest.importorskip("lightning.pytorch", reason="needs lightning")
    namespace: dict[str, Any] = {}
    for code in CODE[1:]:  # it takes model and loss of the block before
        exec(code, namespace)
    module = namespace["Detector"]()
    before = [parameter.detach().clone() for parameter in module.model.parameters()]
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(seed))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), 32)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, **quiet)
    trainer.fit(module, loader)
    after = module.model.parameters()
    assert not all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_the_line_of_a_loop_is_the_one_that_is_shown(seed: int) -> None:
    from drocc_ext import DROCCLoss, SearchConfig, networks

    (line,) = re.findall(r"`(loss\(model.*?backward\(\))`", README)
    model = networks.MLP(3)
    loss = DROCCLoss(SearchConfig.from_relative_step(1.0))
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(seed))
    exec(line, {"loss": loss, "model": model, "x": x})
    assert model.logit.weight.grad is not None


def test_make_commands_run_in_ci() -> None:
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {command[1] for command in COMMANDS if command[0] == "make"}
    assert targets == {"demo", "test"}
    for target in (*targets, "docs"):
        assert re.search(rf"^{target}:", makefile, re.M)
        assert f"make {target}" in ci


def test_pip_command_is_what_make_runs() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert ["pip", "install", "--no-build-isolation", ".[cli]"] in COMMANDS
    assert "pip wheel --quiet --no-build-isolation" in makefile


def test_tables_are_the_committed_measurements() -> None:
    pytest.importorskip("matplotlib", reason="benchmarks need drocc-ext[bench]")
    from benchmarks import summary

    marks = {
        page.name: re.findall(r"<!-- measured: ([\w ]+) -->", page.read_text(encoding="utf-8"))
        for page in summary.pages()
    }
    assert marks["README.md"] == ["short training", "accuracy"]
    assert set(summary.TABLES) == {name for names in marks.values() for name in names}
    for page in summary.pages():
        text = page.read_text(encoding="utf-8")
        assert summary.written(text) == text, f"{page}: run python -m benchmarks.summary"


def test_a_table_follows_its_file(tmp_path: Path, seed: int) -> None:
    pytest.importorskip("matplotlib", reason="benchmarks need drocc-ext[bench]")
    from benchmarks import summary

    auc = np.random.default_rng(seed).random((3, 2))
    cells = {
        f"{method}/sphere/{s}": {"auc 1.2": float(auc[row, s])}
        for row, method in enumerate(("DROCC", "nearest neighbour", "OC-SVM"))
        for s in range(2)
    }
    content = {"cells": cells, "seeds": [0, 1]}
    (tmp_path / "sphere.json").write_text(json.dumps(content), encoding="utf-8")
    ours, nearest, other = (100 * auc).mean(axis=1)
    row = summary.accuracy(tmp_path).splitlines()[-1]
    assert [float(cell) for cell in row.split("|")[2:6]] == pytest.approx(
        [ours, 99.4, nearest, max(nearest, other)], abs=0.051
    )
    assert summary.accuracy(tmp_path, short=True) == ""


def test_cli_commands_run(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(120, 3))
    np.savetxt(tmp_path / "data.csv", rows, delimiter=",", header="a,b,c", comments="")
    for command in COMMANDS:
        if command[0] == "drocc-ext":
            python("-m", "drocc_ext.cli", *command[1:], cwd=tmp_path, PYTHONPATH=str(ROOT))
    scored = (tmp_path / "scores.csv").read_text().splitlines()
    assert len(scored) == 121
