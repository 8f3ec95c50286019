"""Each rank's share of the data: the rows of an epoch, dealt out to all ranks without repeats."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
)

from drocc_ext.training.data import Batch, Batches, LoaderBatches, TensorBatches


@runtime_checkable
class Shareable(Protocol):
    """A loader that deals out its own batches, such as `drocc_ext.streams.RowStream`."""

    def share(self, rank: int, ranks: int) -> None:
        """Serve one rank only.

        Args:
            rank: Which one, from 0.
            ranks: How many there are.
        """


class Stoppable(Protocol):
    """What ends a pass: `Trainer`."""

    should_stop: bool


class ShareSampler(Sampler[int]):
    """One rank's positions of a data set: every `ranks`-th of an order that all ranks draw alike.

    `DistributedSampler` repeats rows until all ranks have as many. Here no row comes twice: a rank
    that has none left takes part with weight 0, so that an epoch of many ranks trains on the very
    rows of one process.

    Args:
        data: What is sampled from, of known length.
        rank: This rank.
        ranks: Their number.
        seed: Of the order, the same on all ranks; None keeps the order of the data.
    """

    def __init__(self, data: Sized, rank: int, ranks: int, seed: int | None) -> None:
        """Keep the settings."""
        self.data, self.rank, self.ranks, self.seed = data, rank, ranks, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order.

        Args:
            epoch: Number of the epoch, from 0.
        """
        self.epoch = epoch

    def __len__(self) -> int:
        """Count this rank's rows."""
        return len(range(self.rank, len(self.data), self.ranks))

    def __iter__(self) -> Iterator[int]:
        """Yield their positions."""
        if self.seed is None:
            return iter(range(self.rank, len(self.data), self.ranks))
        generator = torch.Generator().manual_seed((self.seed + self.epoch) % 2**63)
        order: list[int] = torch.randperm(len(self.data), generator=generator).tolist()
        return iter(order[self.rank :: self.ranks])


@dataclass
class TensorShare(TensorBatches):
    """Every `ranks`-th row of the order that all ranks draw alike.

    The i-th batches of all ranks together are the i-th batch of one process that takes as many
    rows as all of them.

    Attributes:
        rank: This rank.
        ranks: Their number.
    """

    rank: int = 0
    ranks: int = 1

    def __len__(self) -> int:
        """Count batches, those of the rank that has most."""
        return -(-self.x.shape[0] // (self.batch_size * self.ranks))

    def order(self) -> Tensor:
        """Draw the order of one pass; give this rank's part of it."""
        order = super().order()
        if order is None:
            order = torch.arange(self.x.shape[0], device=self.x.device)
        return order[self.rank :: self.ranks]


@dataclass
class SharedBatches:
    """Batches of which all ranks take as many: none waits for one that has no rows left.

    Attributes:
        batches: This rank's.
        add: Adds numbers up over the ranks.
        ranks: Their number.
        trainer: Asked before each batch for its `should_stop`, which is set where any rank's is.
        rows: Rows of the current batches of all ranks.
        row_weight: This rank's share of those rows, times the number of ranks.
        normal_weight: The same of normal rows.
    """

    batches: Batches
    add: Callable[[list[float]], list[float]]
    ranks: int
    trainer: Stoppable
    rows: int = field(default=0, init=False)
    row_weight: float = field(default=1.0, init=False)
    normal_weight: float = field(default=1.0, init=False)

    def __len__(self) -> int:
        """Count batches; 0 where the loader does not know."""
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        """Yield one pass. A rank without rows gets its last batch again, of weight 0."""
        spare: Batch | None = None
        own = iter(self.batches)
        while True:
            batch = next(own, None)
            count = 0 if batch is None else batch[0].shape[0]
            normal, y = count, None if batch is None else batch[1]
            if y is not None:
                normal = int((y == 1).sum())
            missing = batch is None and spare is None
            rows, normal_rows, stops, without = self.add(
                [count, normal, self.trainer.should_stop, missing]
            )
            if rows == 0:
                return
            if stops:
                self.trainer.should_stop = True
            if without:
                raise ValueError(
                    f"Trainer.fit: train must hold rows for every rank, got none for {without:.0f} "
                    f"of {self.ranks} ranks"
                )
            spare = spare if batch is None else batch
            assert spare is not None  # or it would be missing
            self.rows = int(rows)
            self.row_weight = self.ranks * count / rows
            self.normal_weight = self.ranks * normal / max(normal_rows, 1)
            yield spare

    def set_epoch(self, epoch: int) -> None:
        """Tell the batches which epoch begins.

        Args:
            epoch: Number of the epoch, from 0.
        """
        self.batches.set_epoch(epoch)

    def generators(self) -> list[torch.Generator]:
        """List the generators that decide the order.

        Returns:
            Those of the batches.
        """
        return self.batches.generators()


def share_of(batches: Batches, rank: int, ranks: int, seed: int) -> Batches:
    """Give one rank its share of data that all ranks were given alike.

    Rows in memory, and loaders over a data set that are sampled in order or at random, are dealt
    out. What says itself which rows it serves is taken as it is: a loader with a
    `DistributedSampler` or another sampler of its own, over an `IterableDataset`, and any other
    iterable, for nobody else knows what is in it.

    Args:
        batches: All rows.
        rank: Which rank, from 0.
        ranks: How many there are.
        seed: Of a loader's order, the same on all ranks.

    Returns:
        Its share.
    """
    if isinstance(batches, TensorBatches):
        if batches.x.shape[0] < ranks:
            raise ValueError(
                f"Trainer.fit: data must hold a row for each of {ranks} ranks, got "
                f"{batches.x.shape[0]}"
            )
        return TensorShare(**vars(batches), rank=rank, ranks=ranks)
    loader: Any = batches.loader
    if isinstance(loader, Shareable):
        loader.share(rank, ranks)
        return batches
    if not _is_divisible(loader):
        return batches
    shuffled = isinstance(loader.sampler, RandomSampler)
    sampler = ShareSampler(loader.dataset, rank, ranks, seed if shuffled else None)
    return LoaderBatches(
        batches.caller,
        _with_sampler(loader, sampler),
        batches.device,
        batches.dtype,
        batches.channels_last,
    )


def _is_divisible(loader: Any) -> bool:
    return (
        type(loader) is DataLoader
        and not isinstance(loader.dataset, IterableDataset)
        and loader.batch_size is not None
        and type(loader.sampler) in (RandomSampler, SequentialSampler)
        and not getattr(loader.sampler, "replacement", False)
        and getattr(loader.sampler, "_num_samples", None) is None
    )


def _with_sampler(loader: DataLoader[Any], sampler: Sampler[int]) -> DataLoader[Any]:
    workers = {}
    if loader.num_workers > 0:
        workers = {
            "prefetch_factor": loader.prefetch_factor,
            "persistent_workers": loader.persistent_workers,
            "multiprocessing_context": loader.multiprocessing_context,
        }
    return DataLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        sampler=sampler,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        drop_last=loader.drop_last,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        generator=loader.generator,
        **workers,
    )
