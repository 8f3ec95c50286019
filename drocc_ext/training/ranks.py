"""What a trainer asks of the processes that train with it, and the answers of one that is alone.

`training.distributed` has the answers of many; it is imported once they are needed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from drocc_ext.training.checkpoint import Checkpointer, checkpoint_name
from drocc_ext.training.data import Batches
from drocc_ext.training.loss import DROCCLoss
from drocc_ext.training.step import OptimizerStep

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from drocc_ext.training.trainer import Trainer

__all__ = ["Distributed", "OneProcess", "all_ranks", "device_of", "find_ranks"]

Distributed: TypeAlias = Literal["ddp", "fsdp"]
_T = TypeVar("_T")


class OneProcess:
    """A training by itself: everything stays as it is."""

    rank = 0
    size = 1
    group: ProcessGroup | None = None
    step_type: type[OptimizerStep] = OptimizerStep

    @property
    def is_first(self) -> bool:
        """Whether this process writes, logs and shows progress."""
        return self.rank == 0

    def shared(self, value: _T) -> _T:
        """Give the value that rank 0 has."""
        return value

    def gather(self, value: _T) -> list[_T]:
        """Give the values of all ranks, in their order."""
        return [value]

    def whole(
        self, batches: Batches, scores: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Give scores and labels of all rows, in the order of the data, from this rank's."""
        return scores, labels

    def stops(self, flag: bool) -> bool:
        """Say whether all ranks stop before the next step; `flag` is this rank's wish."""
        return flag

    def add(self, values: list[float]) -> list[float]:
        """Add numbers up over the ranks."""
        return values

    def any(self, flag: bool) -> bool:
        """Say whether a flag is set on some rank."""
        return flag

    def first_alone(self, work: Callable[[], _T]) -> _T:
        """Let rank 0 work; its result, or its error, is everybody's."""
        return work()

    def noise_generator(self, order: torch.Generator) -> torch.Generator:
        """Give the source of a rank's own noise, made from that of the order all ranks share."""
        return order

    def split(self, batches: Batches, seed: int, *, trains: bool = True) -> Batches:
        """Give this rank its share of data that all ranks were given alike."""
        return batches

    def in_step(self, batches: Batches, trainer: Trainer) -> Any:
        """Let all ranks take as many batches, and stop together."""
        return batches

    def start_epoch(self, loss: DROCCLoss) -> None:
        """Begin an epoch of the loss."""
        loss.start_epoch()

    def end_epoch(self, model: nn.Module, sums: list[float]) -> list[float]:
        """Make all models one, and add up what the ranks' steps have summed."""
        return sums

    def checkpoint_name(self) -> str:
        """Name the checkpoint's file."""
        return checkpoint_name()

    def checkpointer(self, noise: torch.Generator, **parts: Any) -> Checkpointer:
        """Make what saves and loads: of `Checkpointer`'s parts, and a rank's own generator."""
        return Checkpointer(**parts)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Say in a sentence what a lost rank looks like to the others."""
        yield


def all_ranks() -> OneProcess:
    """Give the ranks of the process group that there is, or this process alone."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return OneProcess()
    if distributed.get_world_size() == 1:
        return OneProcess()
    from drocc_ext.training.distributed import Ranks

    group = distributed.group.WORLD
    assert group is not None  # it is initialized
    on_cpu = "cpu:" in distributed.get_backend_config(group)
    return Ranks(group, torch.device("cpu" if on_cpu else "cuda"))


def device_of(
    model: nn.Module, device: str | torch.device | None, distributed: Distributed | None
) -> torch.device:
    """Choose where a process trains.

    Args:
        model: The model.
        device: The device asked for; None: where the model's parameters are.
        distributed: Not None: "cuda" means this process's own GPU of its machine's.

    Returns:
        The device.
    """
    if device is None:
        return next(model.parameters(), torch.empty(0)).device
    chosen = torch.device(device)
    if distributed is not None and chosen.type == "cuda" and chosen.index is None:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return chosen


def find_ranks(
    model: nn.Module, optimizer: Optimizer, device: torch.device, distributed: Distributed | None
) -> tuple[nn.Module, OneProcess]:
    """Find out who trains a model, see `training.distributed.ranks_of`.

    Args:
        model: The model, on its device.
        optimizer: Over its parameters.
        device: The device.
        distributed: How to wrap the model, None for not at all.

    Returns:
        The model to train, and its ranks.

    Raises:
        ValueError: If distributed does not fit.
    """
    if distributed is None and not (
        torch.distributed.is_available() and torch.distributed.is_initialized()
    ):
        return model, OneProcess()
    from drocc_ext.training.distributed import ranks_of  # takes a second to import

    return ranks_of(model, optimizer, device, distributed)
