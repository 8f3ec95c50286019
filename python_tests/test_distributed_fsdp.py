"""A model that is spread over two ranks (FSDP2) trains as a whole one does, and resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rank_cases import run_ranks
from test_distributed import SEARCH, assert_close, fit, rows
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.tensor import DTensor

from drocc_ext import DROCCLoss, SearchConfig, Trainer
from drocc_ext.training import distributed
from drocc_ext.training.checkpoint import read_checkpoint


def sharded(seed: int, batch_size: int, options: dict[str, Any]) -> dict[str, Any]:
    distributed._LEAST_SHARDED = 10  # so that the small network has several parts
    found = fit(seed, batch_size, distributed="fsdp", **options)
    assert all(isinstance(value, DTensor) for value in found["weights"].values())
    found["weights"] = {name: value.full_tensor() for name, value in found["weights"].items()}
    return found


def whole(seed: int, batch_size: int, options: dict[str, Any]) -> dict[str, Any]:
    return fit(seed, batch_size, **options)


@pytest.mark.parametrize(("kind", "labelled"), [("mlp", True), ("tanh", False)])
def test_a_sharded_model_is_a_whole_one(
    kind: str, labelled: bool, tmp_path: Path, seed: int
) -> None:
    options = {"kind": kind, "labelled": labelled}
    two = run_ranks(tmp_path, sharded, seed, 16, options)
    [one] = run_ranks(tmp_path, whole, seed, 32, options, ranks=1)
    for result in two:
        assert not isinstance(result, Exception), result
        assert_close(one, result)


@pytest.mark.parametrize("metric", ["l2", "mahalanobis"])
def test_ranks_without_normal_rows_keep_in_step(metric: str, tmp_path: Path, seed: int) -> None:
    """One row for each rank, of 15 in all: now a negative one, and in the end none at all."""
    options = {"kind": "tanh", "labelled": True, "metric": metric, "count": 15, "epochs": 2}
    two = run_ranks(tmp_path, sharded, seed, 1, options)
    assert not any(isinstance(result, Exception) for result in two), two
    one = two[0]
    if metric == "l2":  # sigma of the first epoch is that of a rank's own batch
        [one] = run_ranks(tmp_path, whole, seed, 2, options, ranks=1)
    for result in two:
        assert_close(one, result)


def test_its_checkpoints_go_from_two_ranks_to_one_and_back(tmp_path: Path, seed: int) -> None:
    directory = tmp_path / "run"
    for ranks, batch_size, epochs in [(2, 16, 2), (1, 32, 4), (2, 16, 6)]:
        options = {"checkpoint_dir": directory, "resume": True, "epochs": epochs, "kind": "tanh"}
        got = run_ranks(tmp_path, sharded, seed, batch_size, options, ranks=ranks)
        assert not isinstance(got[0], Exception), got[0]
        content = read_checkpoint(directory / "checkpoint.pt")
        names = sorted(file.name for file in directory.iterdir())
        assert names == ["checkpoint.pt", content["shards"]]
    [straight] = run_ranks(tmp_path, whole, seed, 32, {"epochs": 6, "kind": "tanh"}, ranks=1)
    assert_close(straight, got[0])


def test_checkpoints_of_another_kind_are_refused(tmp_path: Path, seed: int) -> None:
    options = {"checkpoint_dir": tmp_path / "run", "epochs": 1}
    run_ranks(tmp_path, whole, seed, 32, options, ranks=1)
    for error in run_ranks(tmp_path, sharded, seed, 16, {**options, "resume": True}):
        assert isinstance(error, ValueError) and "must be of a sharded model" in str(error)


def deep(seed: int, checkpointed: bool) -> list[torch.Tensor]:
    """Gradients of the loss through layers whose activations are computed twice, or kept."""
    torch.manual_seed(seed)
    layers = [nn.Sequential(nn.Linear(6, 6), nn.Tanh()).double() for _ in range(3)]
    if checkpointed:  # non-reentrant is its default
        layers = [checkpoint_wrapper(layer) for layer in layers]
    net = nn.Sequential(*layers, nn.Linear(6, 1).double())
    loss = DROCCLoss(SEARCH)
    generator = torch.Generator().manual_seed(seed)
    loss(net, rows(seed).double(), generator=generator).total.backward()
    return [parameter.grad for parameter in net.parameters() if parameter.grad is not None]


def test_activation_checkpointing_changes_nothing(seed: int) -> None:
    kept, again = deep(seed, False), deep(seed, True)
    assert len(kept) == 8
    torch.testing.assert_close(kept, again, rtol=0, atol=0)


def large(width: int) -> tuple[int, int, float, bool]:
    """Train for two steps; give parameters in all and here, megabytes added, and finiteness."""
    from stream_memory import resident

    torch.manual_seed(0)
    with torch.device("meta"):
        hidden = [part for _ in range(4) for part in (nn.Linear(width, width), nn.ReLU())]
        net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), *hidden, nn.Linear(width, 1))
    total = sum(parameter.numel() for parameter in net.parameters())
    before = resident()
    for module in net:
        if isinstance(module, nn.Linear):
            torch.distributed.fsdp.fully_shard(module)
    torch.distributed.fsdp.fully_shard(net)
    net.to_empty(device="cpu")
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.02)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    search = SearchConfig(radius=1.0, step_size=0.2, num_steps=1)
    trainer = Trainer(net, DROCCLoss(search), optimizer, progress=False)
    history = trainer.fit(torch.randn(32, 64), epochs=1, batch_size=8, seed=0)
    here = sum(parameter.to_local().numel() for parameter in net.parameters())  # type: ignore[attr-defined]
    return total, here, resident() - before, bool(torch.isfinite(torch.tensor(history[0]["loss"])))


@pytest.mark.slow
def test_a_network_of_100_million_parameters(tmp_path: Path) -> None:
    for result in run_ranks(tmp_path, large, 5000):
        assert not isinstance(result, Exception), result
        total, here, added, finite = result
        print(f"{total / 1e6:.1f} M parameters, {here / 1e6:.1f} M here, {added:.0f} MB at the end")
        assert total > 100e6 and here < 0.51 * total and finite
        # Weights and gradients of a half: 400 MB. A whole network would have 800 MB of them.
        assert added < 700
