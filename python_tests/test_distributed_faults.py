"""What goes wrong with one rank: it is killed, hangs, or has no room on its disk."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import python
from rank_cases import free_port, run_ranks
from test_distributed import assert_same, fit
from torch.nn.parallel import DistributedDataParallel

from drocc_ext import DROCCLoss, SearchConfig, Trainer
from drocc_ext.training.callbacks import Callback
from drocc_ext.training.checkpoint import read_checkpoint

KILLS = int(os.environ.get("DROCC_RANK_KILLS", "6"))
FITS = int(os.environ.get("DROCC_RANK_FITS", "10"))


class Hang(Callback):
    """Rank 1 waits within an epoch until rank 0 has given it up."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def on_batch_end(self, trainer: Trainer, step: int, losses: dict[str, float]) -> None:
        while torch.distributed.get_rank() == 1 and step == 4:
            if (self.directory / "rank0.result").exists():
                return
            time.sleep(0.05)


def hanging(seed: int, directory: Path) -> Any:
    return fit(seed, 16, wrap=True, callbacks=[Hang(directory)])


def test_a_rank_that_hangs_is_noticed(tmp_path: Path, seed: int) -> None:
    """Within the group's timeout, here 3 s; a busy machine may only be later."""
    error, _ = run_ranks(tmp_path, hanging, seed, tmp_path, timeout=3)
    assert isinstance(error, RuntimeError)
    assert "rank 0 waited in vain for the other 1: one of them hangs, or has ended" in str(error)


def with_a_label_of_two(seed: int) -> Any:
    """Rank 1 alone has a label that is none, in its second batch."""
    labels = torch.ones(40)
    labels[20] = 2 if torch.distributed.get_rank() == 1 else 0
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(seed))
    loader = [(x[i : i + 10], labels[i : i + 10]) for i in range(0, 40, 10)]
    model = DistributedDataParallel(torch.nn.Linear(3, 1))
    trainer = Trainer(
        model,
        DROCCLoss(SearchConfig(radius=1.0, step_size=0.1, num_steps=2)),
        torch.optim.SGD(model.parameters(), lr=0.1),
        progress=False,
    )
    return trainer.fit(loader, epochs=1, seed=0)


def test_labels_that_one_rank_refuses_are_told_to_all(tmp_path: Path, seed: int) -> None:
    first, second = run_ranks(tmp_path, with_a_label_of_two, seed, timeout=60)
    assert isinstance(second, ValueError) and "(negative), got 2" in str(second)
    assert isinstance(first, RuntimeError)
    assert "another rank could not read its rows" in str(first)


class FullDisk(Callback):
    """No file of rank 0 may grow beyond a kilobyte after the first epoch."""

    def on_epoch_end(self, trainer: Trainer, record: dict[str, float]) -> None:
        if torch.distributed.get_rank() == 0 and record["epoch"] == 2:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))

    def on_fit_end(self, trainer: Trainer, history: Any) -> None:
        raise AssertionError("the disk was not full")


def without_room(seed: int, directory: Path) -> Any:
    try:
        return fit(seed, 16, wrap=True, callbacks=[FullDisk()], checkpoint_dir=directory)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)


def test_a_full_disk_on_rank_0_is_told_to_all(tmp_path: Path, seed: int) -> None:
    first, second = run_ranks(tmp_path, without_room, seed, tmp_path / "run")
    assert isinstance(first, OSError) and "File too large" in str(first)
    assert isinstance(second, OSError) and str(second).startswith("rank 0: ")
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["checkpoint.pt"]
    assert read_checkpoint(tmp_path / "run" / "checkpoint.pt")["fit"]["epoch"] == 1


def elastic(directory: Path, kills: int, seed: int) -> dict[str, Any]:
    directory.mkdir()
    python(
        *("-m", "torch.distributed.run", "--nproc-per-node", "2"),
        # One machine needs no rendezvous that restarts everybody when a heartbeat comes late.
        *("--master-addr", "127.0.0.1", "--master-port", str(free_port())),
        *("--max-restarts", str(kills), "--monitor-interval", "0.1"),
        *(Path(__file__).with_name("elastic_worker.py"), directory, str(kills), str(seed)),
        PYTHONPATH=":".join(sys.path),
    )
    end: dict[str, Any] = torch.load(directory / "end.pt")
    assert end["lives"] == kills + 1
    return end


@pytest.mark.slow
def test_ranks_that_are_killed_lose_nothing(tmp_path: Path, seed: int) -> None:
    """torchrun starts all ranks again; they end with the weights of an undisturbed run."""
    straight = elastic(tmp_path / "straight", 0, seed)
    killed = elastic(tmp_path / "killed", KILLS, seed)
    assert killed["monitor"] == straight["monitor"]
    for name, value in straight["weights"].items():
        assert torch.equal(value, killed["weights"][name])
    assert [file.name for file in (tmp_path / "killed" / "run").iterdir()] == ["checkpoint.pt"]


def fits(seed: int, count: int) -> list[Any]:
    """Fits that stop early, on rows of which each rank has others, with chance and BatchNorm."""
    found = []
    for number in range(count):
        options: dict[str, Any] = {"kind": "norm", "wrap": True, "repeatable": False}
        options |= {"monitor": ["loss", "auc"][number % 2], "labelled": number % 3 == 0}
        found.append(fit(seed + number, 16, **options, epochs=60, patience=1 + number % 3))
    return found


@pytest.mark.slow
def test_fits_that_stop_early_never_differ(tmp_path: Path, seed: int) -> None:
    one, two = run_ranks(tmp_path, fits, seed, FITS)
    assert not isinstance(one, Exception), one
    lengths = [len(result["history"]) for result in one]
    assert min(lengths) < 60  # some did stop
    for first, second in zip(one, two, strict=True):
        assert_same(first, second)
