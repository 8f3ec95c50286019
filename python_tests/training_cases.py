"""What tests of the trainer share: rows, a network, a trainer, and callbacks that take notes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from drocc_ext.search import SearchConfig
from drocc_ext.training.callbacks import Callback
from drocc_ext.training.loss import DROCCLoss
from drocc_ext.training.trainer import History, Trainer

CONFIG = SearchConfig(radius=1.0, step_size=0.2, num_steps=2)


def rows(seed: int, count: int = 40, features: int = 4) -> Tensor:
    return torch.randn(count, features, generator=torch.Generator().manual_seed(seed + 1))


def network(seed: int) -> nn.Sequential:
    """BatchNorm has statistics, dropout draws from the global generator: both must resume."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1)
        )


def trainer(model: nn.Module, lr: float = 0.01, **options: Any) -> Trainer:
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=1e-4)
    return Trainer(model, DROCCLoss(CONFIG), optimizer, **{"progress": False, **options})


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_state(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


class Rows(Dataset[Any]):
    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        # The third element, as published loaders have it, is to be ignored.
        return self.x[index], 1, "ignored"


class OwnLoader:
    """Not a DataLoader, with a generator and a wish to know the epoch."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.generator = torch.Generator().manual_seed(4)
        self.epochs: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __iter__(self) -> Iterator[Tensor]:
        order = torch.randperm(len(self.x), generator=self.generator)
        return iter(self.x[order].split(12 + self.epochs[-1]))


def scripted(values: list[float]) -> Any:
    remaining = iter(values)
    return lambda scores, labels: next(remaining)


def labelled(seed: int) -> tuple[Tensor, Tensor]:
    return rows(seed, 10), torch.tensor([1] * 6 + [0] * 4)


class Log(Callback):
    def __init__(self, stop_at: int | None = None) -> None:
        self.events: list[str] = []
        self.stop_at = stop_at

    def on_fit_start(self, trainer: Trainer) -> None:
        self.events.append("fit")

    def on_epoch_start(self, trainer: Trainer, epoch: int) -> None:
        self.events.append(f"epoch {epoch}")

    def on_batch_end(self, trainer: Trainer, step: int, losses: dict[str, float]) -> None:
        assert losses["loss"] == pytest.approx(losses["clean"] + losses["adversarial"])
        self.events.append(f"step {step}")
        trainer.should_stop = step == self.stop_at

    def on_epoch_end(self, trainer: Trainer, record: dict[str, float]) -> None:
        self.events.append(f"end {record['epoch']}")

    def on_fit_end(self, trainer: Trainer, history: History) -> None:
        self.events.append(f"fitted {len(history)}")
