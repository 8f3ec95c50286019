"""A model that is spread over two ranks (FSDP2) trains as a whole one does, and resumes."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_cases import run_ranks
from test_distributed import SEARCH, assert_close, fit, rows
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from drocc_ext import DROCCLoss, SearchConfig, Trainer
from drocc_ext.models.networks import MLP
from drocc_ext.models.persistence import load_model, save_model
from drocc_ext.training import distributed
from drocc_ext.training.checkpoint import read_checkpoint, write_checkpoint


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
    options = {"checkpoint_dir": tmp_path / "other", "epochs": 1}
    run_ranks(tmp_path, sharded, seed, 16, options)
    for kind, ranks in ((whole, 1), (wrapped, 2)):
        for error in run_ranks(tmp_path, kind, seed, 16, {**options, "resume": True}, ranks=ranks):
            assert isinstance(error, ValueError) and "must be of a whole model" in str(error)


def wrapped(seed: int, batch_size: int, options: dict[str, Any]) -> dict[str, Any]:
    return fit(seed, batch_size, wrap=True, **options)


class Harm:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["gone", "short", "flipped", "harmful", "harmful and old"])
def test_damaged_parts_are_refused(kind: str, tmp_path: Path, seed: int) -> None:
    place, mark = tmp_path / "run", tmp_path / "harm"
    options = {"checkpoint_dir": place, "epochs": 1, "resume": True}
    run_ranks(tmp_path, sharded, seed, 16, options)
    folder = place / "checkpoint.pt.epoch1"
    part = folder / "__0_0.distcp"
    if kind == "gone":
        part.unlink()
    elif kind == "short":
        part.write_bytes(part.read_bytes()[:100])
    elif kind == "flipped":
        data = bytearray(part.read_bytes())
        data[len(data) // 2] ^= 1
        part.write_bytes(data)
    else:
        (folder / ".metadata").write_bytes(pickle.dumps(Harm(mark)))
    if kind == "harmful and old":  # former versions kept no checksums
        content = read_checkpoint(place / "checkpoint.pt")
        del content["shard_sums"]
        with open(place / "checkpoint.pt", "wb") as file:
            write_checkpoint(content, file)
    for error in run_ranks(tmp_path, sharded, seed, 16, {**options, "epochs": 2}):
        assert isinstance(error, ValueError)
        assert "its parts in checkpoint.pt.epoch1 cannot be read: " in str(error)
        assert len(str(error).splitlines()) == 1
        if kind == "harmful and old":
            assert ".metadata names posix.mkdir, which is no description of tensors" in str(error)
    assert not mark.exists()


def compiled(seed: int, how: str, place: Path, epochs: int) -> int:
    """Train a network that is compiled, whole or in part, before it is sharded or after."""
    torch.manual_seed(seed)
    net: Any = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    if how == "part":
        net[2] = torch.compile(net[2], backend="eager")
    if how == "after":
        fully_shard(net)
    if how != "part":
        net = torch.compile(net, backend="eager")
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    trainer = Trainer(
        net,
        DROCCLoss(SEARCH),
        optimizer,
        distributed=None if how == "after" else "fsdp",
        progress=False,
    )
    history = trainer.fit(
        rows(seed), epochs=epochs, batch_size=16, seed=seed, checkpoint_dir=place, resume=True
    )
    return len(history)


@pytest.mark.parametrize("how", ["before", "after", "part"])
def test_compiled_networks_are_sharded_and_resumed(how: str, tmp_path: Path, seed: int) -> None:
    for epochs in (1, 2):
        found = run_ranks(tmp_path, compiled, seed, how, tmp_path / "run", epochs)
        assert found == [epochs, epochs]


def saved(seed: int, place: Path) -> tuple[str, Tensor]:
    """Save a sharded model as it is, which is refused, then as the documentation has it."""
    torch.manual_seed(seed)
    net = MLP(6, 8)
    fully_shard(net)
    scores = net(rows(seed)).detach()
    try:
        save_model(place, net)
    except TypeError as error:
        message = str(error)
    assert not place.exists()
    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(net, options=whole)
    if torch.distributed.get_rank() == 0:
        network = MLP(6, 8)
        network.load_state_dict(state)
        save_model(place, network)
    torch.distributed.barrier()
    return message, scores


def test_a_sharded_model_is_saved_whole(tmp_path: Path, seed: int) -> None:
    for found in run_ranks(tmp_path, saved, seed, tmp_path / "model"):
        assert not isinstance(found, Exception), found
        message, scores = found
        assert "get_model_state_dict gathers them" in message
        network, _ = load_model(tmp_path / "model")
        torch.testing.assert_close(network(rows(seed)), scores)


def zero(seed: int, place: Path) -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = ZeroRedundancyOptimizer(net.parameters(), torch.optim.Adam, lr=0.01)
    ddp = DistributedDataParallel(net)
    trainer = Trainer(ddp, DROCCLoss(SEARCH), optimizer, progress=False)
    trainer.fit(rows(seed), epochs=1, seed=seed)
    trainer.fit(rows(seed), epochs=1, seed=seed, checkpoint_dir=place)


def test_an_optimizer_whose_state_lies_on_all_ranks(tmp_path: Path, seed: int) -> None:
    for error in run_ranks(tmp_path, zero, seed, tmp_path / "run"):
        assert isinstance(error, ValueError) and "got ZeroRedundancyOptimizer;" in str(error)


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
