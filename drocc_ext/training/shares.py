"""Each rank's share of the data: the rows of an epoch, dealt out to all ranks without repeats."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

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
from drocc_ext.training.loss import as_normal_mask


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
    callbacks: tuple[Any, ...]


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
        count: How many come in a pass, the first in the order; None for all.
    """

    def __init__(
        self, data: Sized, rank: int, ranks: int, seed: int | None, count: int | None = None
    ) -> None:
        """Keep the settings."""
        self.count: int = len(data) if count is None else count
        self.data = data
        self.rank = rank
        self.ranks = ranks
        self.seed = seed
        self.epoch: int = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order.

        Args:
            epoch: Number of the epoch, from 0.
        """
        self.epoch = epoch

    def __len__(self) -> int:
        """Count this rank's rows."""
        return len(range(self.rank, self.count, self.ranks))

    def __iter__(self) -> Iterator[int]:
        """Yield their positions."""
        if self.seed is None:
            return iter(range(self.rank, self.count, self.ranks))
        generator = torch.Generator("cpu").manual_seed((self.seed + self.epoch) % 2**63)
        order: list[int] = torch.randperm(
            len(self.data), generator=generator, device="cpu"
        ).tolist()
        return iter(order[self.rank : self.count : self.ranks])


class Turn(NamedTuple):
    """What one rank does in a step of all.

    Attributes:
        batch: Its rows, never none: a rank that has no rows left gets some again, of weight 0.
        rows: Rows of the step, over all ranks.
        row_weight: This rank's share of those rows, times the number of ranks.
        normal_weight: The same of normal rows.
    """

    batch: Batch
    rows: int
    row_weight: float
    normal_weight: float


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
        return self._whole_order()[self.rank :: self.ranks]

    def turns(self) -> Iterator[Turn]:
        """Yield one pass. All ranks know what the others do, without asking."""
        order = self._whole_order()
        for start in range(0, len(order), self.batch_size * self.ranks):
            together = order[start : start + self.batch_size * self.ranks]
            mine = together[self.rank :: self.ranks]
            rows, count = len(together), len(mine)
            batch = self.batch_at(mine if count > 0 else together[:1])
            normal, all_normal = count, rows
            if self.y is not None and batch[1] is not None:
                all_normal = int((self.y.index_select(0, together) == 1).sum())
                normal = int((batch[1] == 1).sum()) if count > 0 else 0
            yield _turn(batch, self.ranks, count, rows, normal, all_normal)

    def _whole_order(self) -> Tensor:
        order = super().order()
        return torch.arange(self.x.shape[0], device=self.x.device) if order is None else order


@dataclass
class SharedBatches:
    """Batches of which all ranks take as many: none waits for one that has no rows left.

    Attributes:
        batches: This rank's.
        add: Adds numbers up over the ranks.
        ranks: Their number.
        trainer: Its callbacks may stop it, on any rank; then all stop.
        turn: What is done in the current step.
        stops: Whether all stop before the next one.
    """

    batches: Batches
    add: Callable[[list[float]], list[float]]
    ranks: int
    trainer: Stoppable
    turn: Turn = field(init=False)
    stops: bool = field(init=False, default=False)

    def __len__(self) -> int:
        """Count batches; 0 where the loader does not know."""
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        """Yield one pass."""
        self.stops = False
        dealt = self.batches if isinstance(self.batches, TensorShare) else None
        for turn in self._turns() if dealt is None else dealt.turns():
            self.turn = turn
            # Where ranks ask each other anyway, they ask for this too.
            if dealt is not None and self.trainer.callbacks:
                self._agree(self.add([self.trainer.should_stop])[0] > 0)
            yield turn.batch

    def _agree(self, stops: bool) -> None:
        self.stops = self.stops or stops
        if stops:  # not back: somebody may have set it meanwhile
            self.trainer.should_stop = True

    def _turns(self) -> Iterator[Turn]:
        """Ask all ranks, before each step, what they have."""
        spare: Batch | None = None
        own = iter(self.batches)
        while True:
            batch, failure, normal = None, None, 0
            try:
                batch = next(own, None)
                if batch is not None:
                    normal = _count_normal(*batch)
            except Exception as error:  # the others would wait for this rank
                batch, failure = None, error
            count = 0 if batch is None else batch[0].shape[0]
            missing = batch is None and spare is None and failure is None
            rows, all_normal, stops, without, failed = self.add(
                [count, normal, self.trainer.should_stop, missing, failure is not None]
            )
            if failure is not None:
                raise failure
            if failed:
                raise RuntimeError(
                    "Trainer.fit: another rank could not read its rows; its own message says more"
                )
            if rows == 0:
                return
            self._agree(stops > 0)
            if without:
                raise ValueError(
                    f"Trainer.fit: train must hold rows for every rank, got none for {without:.0f} "
                    f"of {self.ranks} ranks"
                )
            spare = spare if batch is None else batch
            assert spare is not None  # or it would be missing
            yield _turn(spare, self.ranks, count, int(rows), normal, all_normal)

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


def _count_normal(x: Tensor, y: Tensor | None) -> int:
    if y is None:
        return x.shape[0]
    return int(as_normal_mask("Trainer.fit: train", y, x.shape[0]).sum())


def _turn(batch: Batch, ranks: int, count: int, rows: int, normal: int, all_normal: float) -> Turn:
    return Turn(batch, rows, ranks * count / rows, ranks * normal / max(all_normal, 1))


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
        if batches.y is not None:  # all ranks have them all, so that all refuse a bad one
            as_normal_mask("Trainer.fit: labels", batches.y, batches.x.shape[0])
        return TensorShare(**vars(batches), rank=rank, ranks=ranks)
    loader: Any = batches.loader
    if isinstance(loader, Shareable):
        loader = copy.copy(loader)  # the caller's own goes on with all rows
        loader.share(rank, ranks)
        shared: Batches = replace(batches, loader=loader)
        return shared
    if not _is_divisible(loader):
        return batches
    shuffled = isinstance(loader.sampler, RandomSampler)
    count = len(loader.dataset)
    if loader.drop_last:  # the last batch of all ranks together
        count -= count % (loader.batch_size * ranks)
    sampler = ShareSampler(loader.dataset, rank, ranks, seed if shuffled else None, count)
    return LoaderBatches(
        batches.caller,
        _with_sampler(loader, sampler),
        batches.device,
        batches.dtype,
        batches.channels_last,
    )


def is_dealt(batches: Batches) -> bool:
    """Say whether a rank's rows are every `ranks`-th of all, in their order.

    Args:
        batches: A rank's share, not shuffled.

    Returns:
        Whether they are.
    """
    loader = getattr(batches, "loader", None)
    return isinstance(batches, TensorShare) or isinstance(
        getattr(loader, "sampler", None), ShareSampler
    )


def in_order(parts: list[Tensor], *, dealt: bool) -> Tensor:
    """Put the ranks' parts together.

    Args:
        parts: Of each rank, `[n, *]`.
        dealt: Whether a rank has every `ranks`-th row.

    Returns:
        All rows, `[N, *]`: in the order that they were dealt out from, else one rank after another.
    """
    whole, ranks = torch.cat(parts), len(parts)
    if not dealt or any(
        len(part) != len(range(rank, len(whole), ranks)) for rank, part in enumerate(parts)
    ):
        return whole
    ordered = torch.empty_like(whole)
    for rank, part in enumerate(parts):
        ordered[rank::ranks] = part
    return ordered


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
