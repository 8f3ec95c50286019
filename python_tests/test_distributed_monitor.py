"""What a monitor sees of the rows that ranks share, and wishes to stop from outside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rank_cases import run_ranks
from test_distributed import SEARCH, StepByStep, rows
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from drocc_ext import DROCCLoss, Trainer


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))


def on_ranks(net: nn.Module, **options: Any) -> Trainer:
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    given = {"distributed": "ddp", "progress": False, **options}
    return Trainer(net, DROCCLoss(SEARCH), optimizer, **given)


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


def few(seed: int, data: str) -> float:
    """More ranks than validation rows."""
    net = network(seed)
    trainer = on_ranks(net)
    x, y = rows(seed + 1, 2), torch.tensor([1, 0])
    held: Any = (x, y) if data == "tensors" else DataLoader(TensorDataset(x, y), 4)
    history = trainer.fit(rows(seed), epochs=1, seed=seed, validation=held, monitor="auc")
    return float(history[-1]["monitor"])


@pytest.mark.parametrize("data", ["tensors", "loader"])
def test_fewer_validation_rows_than_ranks(data: str, tmp_path: Path, seed: int) -> None:
    found = run_ranks(tmp_path, few, seed, data, ranks=3)
    assert found[0] in (0.0, 1.0) and found == [found[0]] * 3


def dropping(seed: int, ranks: bool) -> tuple[int, list[Tensor]]:
    net = network(seed)
    trainer = Trainer(
        net,
        DROCCLoss(SEARCH),
        torch.optim.SGD(net.parameters(), 0.1),
        distributed="ddp" if ranks else None,
        progress=False,
    )
    data = TensorDataset(rows(seed, 11), torch.ones(11))
    loader = DataLoader(data, 3 if ranks else 6, drop_last=True)
    history = trainer.fit(loader, epochs=2, warmup_epochs=2, seed=seed)
    return history[-1]["step"], [p.detach() for p in net.parameters()]


def test_the_last_batch_of_all_ranks_is_dropped(tmp_path: Path, seed: int) -> None:
    [(steps, weights)] = run_ranks(tmp_path, dropping, seed, False, ranks=1)
    assert steps == 2
    for found in run_ranks(tmp_path, dropping, seed, True):
        assert found[0] == 2
        torch.testing.assert_close(found[1], weights)


def with_a_bad_label(seed: int) -> None:
    net = network(seed)
    y = torch.ones(90)
    y[70] = -1
    Trainer(
        net,
        DROCCLoss(SEARCH),
        torch.optim.SGD(net.parameters(), 0.1),
        distributed="ddp",
        progress=False,
    ).fit((rows(seed), y), epochs=1, batch_size=8, seed=seed)


def test_all_ranks_refuse_a_label(tmp_path: Path, seed: int) -> None:
    for error in run_ranks(tmp_path, with_a_bad_label, seed):
        assert isinstance(error, ValueError)
        assert "labels must be 1 (normal) or 0 (negative), got -1" in str(error)


class Around(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]


def wrapped(seed: int, how: str) -> None:
    net = network(seed)
    if how == "fsdp1":
        model: nn.Module = FullyShardedDataParallel(net, device_id=torch.device("cpu"))
    elif how == "ddp within":
        model = Around(DistributedDataParallel(net))
    else:
        fully_shard(net)
        model = Around(net)
    Trainer(model, DROCCLoss(SEARCH), torch.optim.SGD(model.parameters(), 0.1), progress=False)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("fsdp1", "sharded by torch.distributed.fsdp.fully_shard (FSDP2), got FullySharded"),
        ("ddp within", "wrapped as a whole, got Around around a DistributedDataParallel"),
        ("fsdp within", "wrapped as a whole, got Around around a FSDPSequential"),
    ],
)
def test_wrappers_that_do_not_do(how: str, message: str, tmp_path: Path, seed: int) -> None:
    for error in run_ranks(tmp_path, wrapped, seed, how):
        assert isinstance(error, ValueError) and message in str(error), error


def buffers(seed: int) -> list[Tensor]:
    """Buffers that do not lie in order, or of types that gloo does not know."""
    rank = torch.distributed.get_rank()
    torch.manual_seed(seed)
    net = network(seed)
    parts = {
        "expanded": torch.arange(8.0).reshape(1, 8).expand(64, 8),
        "column": torch.arange(64.0).reshape(8, 8)[:, 0],
        "turned": torch.arange(12.0).reshape(3, 4).T,
        "small": torch.arange(5, dtype=torch.int16),
        "brief": torch.arange(5, dtype=torch.bfloat16),
        "flag": torch.tensor(True),
        "none": torch.empty(0, 3),
    }
    for name, value in parts.items():
        net.register_buffer(name, value, persistent=False)
    if rank == 1:
        for name in ("column", "turned", "small", "brief", "flag"):
            getattr(net, name).zero_()
        net.expanded[0].zero_()  # type: ignore[operator, union-attr]
    trainer = Trainer(
        net,
        DROCCLoss(SEARCH),
        torch.optim.SGD(net.parameters(), 0.1),
        distributed="fsdp",
        progress=False,
    )
    trainer.fit(rows(seed), epochs=1, batch_size=16, seed=seed)
    return [buffer.clone() for buffer in net.buffers()]


def test_buffers_of_any_kind_are_those_of_the_first_rank(tmp_path: Path, seed: int) -> None:
    one, two = run_ranks(tmp_path, buffers, seed)
    assert isinstance(one, list), one
    torch.testing.assert_close(two, one, rtol=0, atol=0)
    assert one[0][5, 3] == 3 and one[1][2] == 16 and one[2][1, 2] == 9 and bool(one[5])
