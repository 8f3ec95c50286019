"""Layers that are frozen, and unfrozen, while several ranks train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rank_cases import run_ranks
from test_distributed import rows, without_noise
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from drocc_ext import DROCCLoss, Trainer
from drocc_ext.training.callbacks import Callback


class Switch(Callback):
    """Follows batches, so that one process takes the steps one by one too."""

    def __init__(self, first: bool, then: bool, at_batch: bool) -> None:
        self.first, self.then, self.at_batch = first, then, at_batch

    def on_epoch_start(self, trainer: Trainer, epoch: int) -> None:
        if epoch == 2 and not self.at_batch:
            layers(trainer)[0].requires_grad_(self.then)
        if epoch == 3:
            layers(trainer)[0].requires_grad_(self.first)

    def on_batch_end(self, trainer: Trainer, step: int, losses: dict[str, float]) -> None:
        if self.at_batch and step == 2:
            layers(trainer)[0].requires_grad_(self.then)


def layers(trainer: Trainer) -> Any:
    return getattr(trainer.model, "module", trainer.model)


def switching(
    seed: int, batch_size: int, activation: Any, first: bool, at_batch: bool, distributed: Any
) -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 8), activation(), nn.Linear(8, 1)).double()
    net[0].requires_grad_(first)
    trainer = Trainer(
        net,
        DROCCLoss(without_noise()),
        torch.optim.SGD(net.parameters(), 0.2, momentum=0.5),
        distributed=distributed,
        callbacks=[Switch(first, not first, at_batch)],
        clip_norm=0.05,
        progress=False,
    )
    frozen = []
    x, y = rows(seed).double(), torch.arange(90) % 7 > 0
    for _ in range(2):
        # One epoch of warm-up: no noise in what ranks and one process are to have in common.
        trainer.fit((x, y.long()), epochs=3, warmup_epochs=3, batch_size=batch_size, seed=seed)
        net[0].requires_grad_(False)
        frozen.append(net[0].weight.detach().clone())
    assert torch.equal(*frozen) is False  # the callback switches in the second fit too
    return [p.detach().clone() for p in net.parameters()], torch.stack(frozen)


@pytest.mark.parametrize("at_batch", [False, True])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_ranks_follow_what_is_frozen(
    activation: Any, first: bool, at_batch: bool, tmp_path: Path, seed: int
) -> None:
    two = run_ranks(tmp_path, switching, seed, 16, activation, first, at_batch, "ddp")
    [one] = run_ranks(tmp_path, switching, seed, 32, activation, first, at_batch, None, ranks=1)
    for found in two:
        assert not isinstance(found, Exception), found
        torch.testing.assert_close(found, one, rtol=1e-9, atol=1e-9)


def phases(seed: int, optimizer_of: str, ranks: bool) -> list[Tensor]:
    """Train all, then freeze; or let the optimizer have a part. Nothing else may move.

    The wrapper is the user's own, or the trainer's.
    """
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1)).double()
    whole = net if optimizer_of == "all" else net[2]
    by_hand = ranks and optimizer_of == "all"
    trainer = Trainer(
        DistributedDataParallel(net) if by_hand else net,
        DROCCLoss(without_noise()),
        torch.optim.SGD(whole.parameters(), 0.2),
        distributed="ddp" if ranks and not by_hand else None,
        clip_norm=0.05,
        progress=False,
    )
    x, y = rows(seed).double(), (torch.arange(90) % 7 > 0).long()
    options: dict[str, Any] = {"epochs": 2, "warmup_epochs": 2, "seed": seed}
    trainer.fit((x, y), batch_size=16 if ranks else 32, **options)
    net[0].requires_grad_(False)
    before = net[0].weight.detach().clone()
    trainer.fit((x, y), batch_size=16 if ranks else 32, **options)
    assert torch.equal(net[0].weight, before)
    return [p.detach().clone() for p in net.parameters()]


@pytest.mark.parametrize("optimizer_of", ["all", "part"])
def test_what_is_frozen_stays_and_does_not_count(
    optimizer_of: str, tmp_path: Path, seed: int
) -> None:
    two = run_ranks(tmp_path, phases, seed, optimizer_of, True)
    [one] = run_ranks(tmp_path, phases, seed, optimizer_of, False, ranks=1)
    for found in two:
        assert not isinstance(found, Exception), found
        torch.testing.assert_close(found, one, rtol=1e-9, atol=1e-9)


def wrapped_before(seed: int) -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    net[0].requires_grad_(False)
    ddp = DistributedDataParallel(net)
    trainer = Trainer(
        ddp, DROCCLoss(without_noise()), torch.optim.SGD(net.parameters(), 0.2), progress=False
    )
    trainer.fit(rows(seed), epochs=1, seed=seed)
    net[0].requires_grad_(True)
    trainer.fit(rows(seed), epochs=1, seed=seed)


def test_a_wrapper_of_the_users_own_is_spoken_of(tmp_path: Path, seed: int) -> None:
    for error in run_ranks(tmp_path, wrapped_before, seed):
        assert isinstance(error, ValueError), error
        assert "Trainer.fit: parameters that are trained must have been so" in str(error)
