"""Checkpoints: a resumed fit is the fit that never stopped; damaged or foreign ones are refused."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from training_cases import (
    CONFIG,
    Log,
    OwnLoader,
    Rows,
    assert_same_state,
    labelled,
    network,
    rows,
    state_of,
    trainer,
)

from drocc_ext.training import checkpoint
from drocc_ext.training.callbacks import Callback
from drocc_ext.training.loss import DROCCLoss
from drocc_ext.training.trainer import History, Trainer


def without_seconds(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history]


DATA: dict[str, Any] = {
    "tensor": lambda x: x,
    "labelled": lambda x: (x, (torch.arange(40) % 4 > 0).long()),
    "dataset": Rows,
    "loader": lambda x: DataLoader(Rows(x), batch_size=12, shuffle=True),
    "own_loader": OwnLoader,
    "loader_with_generator": lambda x: DataLoader(
        Rows(x), batch_size=12, shuffle=True, generator=torch.Generator().manual_seed(3)
    ),
}


class GlobalNoise(Callback):
    """Changes the weights by numpy's and python's global generators."""

    def on_batch_end(self, trainer: Trainer, step: int, losses: dict[str, float]) -> None:
        with torch.no_grad():
            trainer.model[0].bias += 1e-3 * float(np.random.standard_normal())
            trainer.model[0].bias += 1e-3 * random.random()


class Fail(Callback):
    def __init__(self, step: int, error: BaseException) -> None:
        self.step = step
        self.error = error

    def on_batch_end(self, trainer: Trainer, step: int, losses: dict[str, float]) -> None:
        if step == self.step:
            raise self.error


class Run:
    """One process: everything is made anew, as after a restart."""

    def __init__(self, seed: int, data: str, *callbacks: Callback, **options: Any) -> None:
        self.model = network(seed)
        optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.97**step)
        self.trainer = Trainer(
            self.model,
            DROCCLoss(CONFIG),
            optimizer,
            scheduler=scheduler,
            scheduler_interval="step",
            callbacks=[GlobalNoise(), *callbacks],
            progress=False,
            **options,
        )
        self.seed = seed
        self.data = DATA[data](rows(seed))

    def fit(self, directory: Path, **arguments: Any) -> History:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(self.seed)
        return self.trainer.fit(
            self.data,
            validation=rows(self.seed + 9),
            checkpoint_dir=directory,
            **{"batch_size": 12, "warmup_epochs": 1, "restore_best": False, **arguments},
        )


def disturb() -> None:
    """Another process has other global generators."""
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)


def assert_same_run(first: Run, second: Run) -> None:
    assert_same_state(state_of(first.model), state_of(second.model))
    one, two = (run.trainer.optimizer.state_dict() for run in (first, second))
    assert one["param_groups"] == two["param_groups"]
    for key, state in one["state"].items():
        assert_same_state(state, two["state"][key])


@pytest.mark.parametrize("fit_seed", [None, 11])
@pytest.mark.parametrize("data", DATA)
def test_resume_is_exact(data: str, fit_seed: int | None, tmp_path: Path, seed: int) -> None:
    straight = Run(seed, data)
    expected = straight.fit(tmp_path / "a", epochs=5, seed=fit_seed)
    Run(seed, data).fit(tmp_path / "b", epochs=2, seed=fit_seed)
    disturb()
    resumed = Run(seed, data)
    history = resumed.fit(tmp_path / "b", epochs=5, resume=True, seed=fit_seed)
    assert_same_run(straight, resumed)
    assert without_seconds(history) == without_seconds(expected)
    assert (history.best_epoch, history.best_value) == (expected.best_epoch, expected.best_value)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("crash")], ids=repr)
@pytest.mark.parametrize("step", [1, 4, 11])
def test_resume_after_a_crash(error: BaseException, step: int, tmp_path: Path, seed: int) -> None:
    straight = Run(seed, "loader_with_generator")
    straight.fit(tmp_path / "a", epochs=4)
    with pytest.raises(type(error)):
        Run(seed, "loader_with_generator", Fail(step, error)).fit(tmp_path / "b", epochs=4)
    content = checkpoint.read_checkpoint(tmp_path / "b" / "checkpoint.pt")
    assert content["fit"]["epoch"] == (step - 1) // 4
    disturb()
    resumed = Run(seed, "loader_with_generator")
    resumed.fit(tmp_path / "b", epochs=4, resume=True)
    assert_same_run(straight, resumed)


def test_resume_within_an_epoch(tmp_path: Path, seed: int) -> None:
    straight = Run(seed, "tensor")
    expected = straight.fit(tmp_path / "a", max_steps=11)
    Run(seed, "tensor").fit(tmp_path / "b", max_steps=6)
    resumed = Run(seed, "tensor")
    history = resumed.fit(tmp_path / "b", max_steps=11, resume=True)
    assert_same_run(straight, resumed)
    assert without_seconds(history) == without_seconds(expected)


def test_resume_of_loss_scaling(tmp_path: Path, seed: int) -> None:
    straight = Run(seed, "tensor", autocast_dtype=torch.float16)
    straight.fit(tmp_path / "a", epochs=3)
    Run(seed, "tensor", autocast_dtype=torch.float16).fit(tmp_path / "b", epochs=1)
    resumed = Run(seed, "tensor", autocast_dtype=torch.float16)
    resumed.fit(tmp_path / "b", epochs=3, resume=True)
    assert_same_run(straight, resumed)
    one, two = (checkpoint.read_checkpoint(tmp_path / name / "checkpoint.pt") for name in "ab")
    assert one["scaler"] == two["scaler"]
    with pytest.raises(ValueError, match="loss scaling was True and is False"):
        Run(seed, "tensor").fit(tmp_path / "b", epochs=3, resume=True)


def test_resume_keeps_best_weights_and_patience(tmp_path: Path, seed: int) -> None:
    arguments: dict[str, Any] = {"restore_best": True, "patience": 2, "warmup_epochs": 0}

    class Worse(Callback):
        """The first epoch stays the best one."""

        def on_epoch_start(self, trainer: Trainer, epoch: int) -> None:
            if epoch > 1:
                with torch.no_grad():
                    trainer.model[-1].bias -= 50.0

    straight = Run(seed, "tensor", Worse())
    expected = straight.fit(tmp_path / "a", epochs=9, **arguments)
    assert (len(expected), expected.best_epoch) == (3, 1)
    Run(seed, "tensor", Worse()).fit(tmp_path / "b", epochs=2, **arguments)
    for _ in range(2):  # the second finds the fit at its end
        resumed = Run(seed, "tensor", Worse())
        history = resumed.fit(tmp_path / "b", epochs=9, resume=True, **arguments)
        assert without_seconds(history) == without_seconds(expected)
        assert_same_state(state_of(resumed.model), state_of(straight.model))


def test_resume_without_a_checkpoint_starts_anew(tmp_path: Path, seed: int) -> None:
    first, second = Run(seed, "tensor"), Run(seed, "tensor")
    first.fit(tmp_path / "a", epochs=2)
    second.fit(tmp_path / "new" / "b", epochs=2, resume=True)
    assert_same_run(first, second)


def test_without_resume_a_checkpoint_is_overwritten(tmp_path: Path, seed: int) -> None:
    first, second = Run(seed, "tensor"), Run(seed, "tensor")
    first.fit(tmp_path, epochs=2)
    history = second.fit(tmp_path, epochs=2)
    assert len(history) == 2
    assert_same_run(first, second)


def test_checkpoint_is_plain_and_atomic(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(seed, "tensor")
    run.fit(tmp_path, epochs=1)
    path = tmp_path / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    assert content["fit"]["epoch"] == 1
    before = path.read_bytes()

    def fail(content: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        Run(seed, "tensor").fit(tmp_path, epochs=3, resume=True)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_checkpoint_that_could_not_be_read_back_is_refused_at_once(
    tmp_path: Path, seed: int
) -> None:
    run, log = Run(seed, "tensor"), Log()
    run.trainer.callbacks = (log,)
    run.trainer.scheduler.extra = Log()
    with pytest.raises(
        ValueError, match=r"\.pt: the checkpoint cannot hold scheduler\['extra'\], a .*Log"
    ):
        run.fit(tmp_path, epochs=1)
    assert log.events == ["fit"]


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 no zip", bytes(range(256))])
def test_damaged_checkpoint(content: bytes, tmp_path: Path, seed: int) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"checkpoint\.pt: the checkpoint cannot be read: \w"
    ) as caught:
        Run(seed, "tensor").fit(tmp_path, epochs=1, resume=True)
    assert "\n" not in str(caught.value)


def test_truncated_or_foreign_checkpoint(tmp_path: Path, seed: int) -> None:
    Run(seed, "tensor").fit(tmp_path, epochs=1)
    path = tmp_path / "checkpoint.pt"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="cannot be read"):
        Run(seed, "tensor").fit(tmp_path, epochs=2, resume=True)
    torch.save({"format": "other"}, path)
    with pytest.raises(ValueError, match=r"not a checkpoint of drocc_ext\.checkpoint"):
        Run(seed, "tensor").fit(tmp_path, epochs=2, resume=True)
    torch.save({"format": "drocc_ext.checkpoint", "version": 99}, path)
    with pytest.raises(ValueError, match="must be of format version 1, got 99"):
        Run(seed, "tensor").fit(tmp_path, epochs=2, resume=True)


def test_checkpoint_of_another_fit(tmp_path: Path, seed: int) -> None:
    Run(seed, "tensor").fit(tmp_path, epochs=1)
    other = Run(seed, "tensor")
    other.trainer = trainer(nn.Sequential(nn.Linear(4, 1)))
    before = state_of(other.trainer.model)
    with pytest.raises(ValueError, match="the weights do not fit Sequential"):
        other.fit(tmp_path, epochs=2, resume=True)
    assert_same_state(state_of(other.trainer.model), before)
    other.trainer = trainer(network(seed))
    with pytest.raises(ValueError, match="a scheduler was True and is False"):
        other.fit(tmp_path, epochs=2, resume=True)
    with pytest.raises(ValueError, match="number of generators was 1 and is 2"):
        Run(seed, "loader_with_generator").fit(tmp_path, epochs=2, resume=True)
    run = Run(seed, "tensor")
    with pytest.raises(ValueError, match="monitor was 'loss' and is 'auc'"):
        run.trainer.fit(
            run.data,
            validation=labelled(seed),
            monitor="auc",
            epochs=2,
            checkpoint_dir=tmp_path,
            resume=True,
        )


class Adds(Callback):
    def __init__(self, value: Any) -> None:
        self.value = value

    def on_epoch_end(self, trainer: Trainer, record: dict[str, Any]) -> None:
        record["extra"] = self.value


@pytest.mark.parametrize("value", [2, 0.5, True, np.float32(0.5), np.int64(3), torch.tensor(0.5)])
def test_numbers_that_callbacks_add_are_kept(value: Any, tmp_path: Path, seed: int) -> None:
    for epochs in (1, 2):
        fitted = trainer(network(seed), callbacks=[Adds(value)])
        history = fitted.fit(rows(seed), epochs=epochs, checkpoint_dir=tmp_path, resume=True)
    assert [record["extra"] for record in history] == [float(value)] * 2


@pytest.mark.parametrize("value", ["x", None, [1.0], torch.ones(2), {}])
def test_other_things_that_callbacks_add_are_refused_at_once(
    value: Any, tmp_path: Path, seed: int
) -> None:
    with pytest.raises(TypeError, match=r"^Trainer.fit: a record must hold numbers .* 'extra'$"):
        trainer(network(seed), callbacks=[Adds(value)]).fit(
            rows(seed), epochs=2, checkpoint_dir=tmp_path
        )
    trainer(network(seed), callbacks=[Adds(value)]).fit(rows(seed), epochs=2)


def test_a_state_that_cannot_be_copied_back_is_refused(tmp_path: Path, seed: int) -> None:
    model = network(seed)
    model.register_buffer("mean", torch.zeros(1, 1).expand(1, 8))
    fitted = trainer(model)
    for options in ({"validation": rows(seed)}, {"checkpoint_dir": tmp_path / "run"}):
        with pytest.raises(ValueError, match=r"^Trainer.fit: .* expanded tensor for 'mean'"):
            fitted.fit(rows(seed), epochs=1, **options)
    assert not (tmp_path / "run").exists()
    fitted.fit(rows(seed), epochs=1)
    fitted.fit(rows(seed), epochs=1, validation=rows(seed), restore_best=False)
