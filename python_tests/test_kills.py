"""SIGKILL at random moments of a fit, a save and a score: nothing is lost or half-written."""

from __future__ import annotations

import csv
import multiprocessing
import os
import random
import signal
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from drocc_ext import DROCCLoss, SearchConfig, Trainer
from drocc_ext.cli.main import main
from drocc_ext.estimators import DROCC
from drocc_ext.models.networks import MLP
from drocc_ext.models.persistence import load_model, save_model
from drocc_ext.training.checkpoint import read_checkpoint

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("DROCC_KILLS", "20"))
SEARCH = SearchConfig(radius=1.0, step_size=0.2, num_steps=2)


@pytest.fixture(scope="module")
def context() -> ForkServerContext:
    """Processes from a server that has imported everything: a start takes milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "drocc_ext.estimators", "drocc_ext.cli.commands"])
    return context


def killed_after(context: ForkServerContext, seconds: float, work: Any, *arguments: Any) -> bool:
    """Run work in a process and kill it after some time; say whether it was killed."""
    started = context.Event()
    process = context.Process(target=_start, args=(started, work, arguments))
    process.start()
    assert started.wait(120)
    process.join(seconds)
    os.kill(process.pid, signal.SIGKILL) if process.is_alive() else None
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def _start(started: Any, work: Any, arguments: Any) -> None:
    torch.set_num_threads(1)
    started.set()
    work(*arguments)


def new_trainer() -> Trainer:
    torch.manual_seed(0)
    model = MLP(20, hidden=64)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)
    return Trainer(model, DROCCLoss(SEARCH), optimizer, scheduler=scheduler, progress=False)


def fit(directory: Path, epochs: int) -> Trainer:
    trainer = new_trainer()
    rows = torch.randn(400, 20, generator=torch.Generator().manual_seed(1))
    trainer.fit(
        rows,
        validation=rows[:50],
        epochs=epochs,
        batch_size=50,
        checkpoint_dir=directory,
        resume=True,
        seed=3,
    )
    return trainer


def state_of(trainer: Trainer) -> list[Tensor]:
    optimizer = trainer.optimizer.state_dict()["state"].values()
    moments = [part[key] for part in optimizer for key in ("exp_avg", "exp_avg_sq")]
    return [*trainer.model.state_dict().values(), *moments]


def test_a_fit_that_is_killed_again_and_again(
    context: ForkServerContext, tmp_path: Path, seed: int
) -> None:
    """Whenever it is killed, the next process goes on; the end is that of one straight fit."""
    chance = random.Random(seed)
    done = 0
    for _ in range(KILLS):
        assert killed_after(context, chance.uniform(0, 0.4), fit, tmp_path / "run", 10**9)
        if (tmp_path / "run" / "checkpoint.pt").exists():
            epoch = read_checkpoint(tmp_path / "run" / "checkpoint.pt")["fit"]["epoch"]
            assert epoch >= done
            done = epoch
    assert done > 0
    resumed, straight = (fit(tmp_path / name, done + 1) for name in ("run", "straight"))
    for one, two in zip(state_of(straight), state_of(resumed), strict=True):
        assert torch.equal(one, two)
    assert os.listdir(tmp_path / "run") == ["checkpoint.pt"]  # no temporary file is left


def network(number: int) -> MLP:
    model = MLP(100 + number, hidden=500)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(number)
    return model


def save_for_ever(directory: Path) -> None:
    number = load_model(directory)[1]["number"]
    while True:
        number += 1
        save_model(directory, network(number % 50), {"number": number})


def test_saves_that_are_killed(context: ForkServerContext, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    save_model(tmp_path, network(0), {"number": 0})
    last = 0
    for _ in range(KILLS):
        assert killed_after(context, chance.uniform(0, 0.3), save_for_ever, tmp_path)
        model, config = load_model(tmp_path)
        number = config["number"]
        assert number >= last
        last = number
        assert isinstance(model, MLP)
        assert model.config["in_features"] == 100 + number % 50
        assert all(bool((part == number % 50).all()) for part in model.parameters())
    assert last > 0
    save_model(tmp_path, network(1), {"number": 1})
    assert len(os.listdir(tmp_path)) <= 3  # description, weights, those before


def score_for_ever() -> None:
    while True:
        assert main(["score", "model", "rows.npy", "--out", "scores.csv"]) == 0


def test_scores_that_are_killed(
    context: ForkServerContext, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    chance = random.Random(seed)
    rows = np.random.default_rng(seed).normal(size=(5000, 3))
    np.save("rows.npy", rows)
    fitted = DROCC(max_steps=2, hidden=4, random_state=0).fit(rows)
    fitted.save("model")
    expected = fitted.decision_function(rows)
    Path("scores.csv").write_text("the former ones")
    for _ in range(KILLS):
        assert killed_after(context, chance.uniform(0, 0.5), score_in, tmp_path)
        content = Path("scores.csv").read_text()
        if content != "the former ones":
            scores = [float(row["anomaly_score"]) for row in csv.DictReader(content.splitlines())]
            np.testing.assert_array_equal(scores, expected)
    assert main(["score", "model", "rows.npy", "--out", "scores.csv"]) == 0
    assert sorted(os.listdir()) == ["model", "rows.npy", "scores.csv"]


def score_in(directory: Path) -> None:
    os.chdir(directory)
    score_for_ever()
