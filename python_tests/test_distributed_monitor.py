"""What a monitor sees of the rows that ranks share, and wishes to stop from outside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rank_cases import run_ranks
from test_distributed import SEARCH, StepByStep, rows
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from drocc_ext import DROCCLoss, Trainer


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))


def monitored(seed: int, kind: str, data: str, count: int) -> tuple[Any, Any, Any]:
    """What the monitor was given at last, and what the trainer scores."""
    seen: list[Any] = []

    def monitor(scores: Any, labels: Any) -> float:
        seen.append((torch.from_numpy(scores), torch.from_numpy(labels)))
        return float(scores[0])

    net = network(seed)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    trainer = Trainer(
        net,
        DROCCLoss(SEARCH),
        optimizer,
        distributed=kind,  # type: ignore[arg-type]
        progress=False,
    )
    x, y = rows(seed + 1, count), (torch.arange(count) % 3 > 0).long()
    held: Any = (x, y) if data == "tensors" else DataLoader(TensorDataset(x, y), 4)
    trainer.fit(
        rows(seed),
        epochs=1,
        batch_size=8,
        seed=seed,
        validation=held,
        monitor=monitor,
        restore_best=False,
    )
    return seen[-1], trainer.score(x), y


@pytest.mark.parametrize("count", [10, 11])
@pytest.mark.parametrize("data", ["tensors", "loader"])
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_monitor_gets_all_rows_once_and_in_order(
    kind: str, data: str, count: int, tmp_path: Path, seed: int
) -> None:
    for found in run_ranks(tmp_path, monitored, seed, kind, data, count):
        assert not isinstance(found, Exception), found
        (scores, labels), expected, y = found
        torch.testing.assert_close(scores, expected)
        assert torch.equal(labels, y)


def stopped(seed: int, watched: bool) -> tuple[int, int]:
    """As a signal's handler would, between any two lines of one rank."""
    net = network(seed)
    trainer = Trainer(
        net,
        DROCCLoss(SEARCH),
        torch.optim.SGD(net.parameters(), 0.1),
        distributed="ddp",
        callbacks=[StepByStep()] if watched else [],
        progress=False,
    )
    calls = 0

    def wish(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3 and torch.distributed.get_rank() == 1:
            trainer.should_stop = True

    trainer.model.register_forward_pre_hook(wish)
    history = trainer.fit(rows(seed, 160), epochs=5, batch_size=8, seed=seed)
    return len(history), history[-1]["step"]


@pytest.mark.parametrize("watched", [False, True])
def test_a_wish_to_stop_from_outside_stops_all_ranks(
    watched: bool, tmp_path: Path, seed: int
) -> None:
    one, two = run_ranks(tmp_path, stopped, seed, watched)
    assert one == two == ((1, 3) if watched else (1, 10))
