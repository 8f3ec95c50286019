"""Batches of rows that are read block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from drocc_ext._checks import as_int, describe
from drocc_ext.streams.blocks import Array, Blocks, check_blocks


@dataclass
class RowStream:
    """Batches of rows from blocks, the same for the same seed and epoch.

    In each epoch the blocks come in another order, and rows are mixed among `mixed_blocks` of them:
    that much memory, whatever there is to read. Rows that are sorted in a file need more of it, or
    to be shuffled once.

    Args:
        blocks: Where rows come from.
        batch_size: Rows per batch and rank.
        transform: Makes what the network sees of rows `[n, *]`, such as `Standardizer.transform`.
        seed: Of the order; None keeps the file's, for scoring and validation.
        mixed_blocks: Blocks that are held and mixed at a time.
        dtype: Floating-point type of the batches.

    Raises:
        TypeError: If a setting has the wrong type.
        ValueError: If batch_size or mixed_blocks is below 1, or seed below 0.
    """

    blocks: Blocks
    batch_size: int
    transform: Callable[[Array], Array] | None = None
    seed: int | None = None
    mixed_blocks: int = 4
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        """Check the settings."""
        self.batch_size = as_int("RowStream", "batch_size", self.batch_size, 1)
        self.mixed_blocks = as_int("RowStream", "mixed_blocks", self.mixed_blocks, 1)
        if self.seed is not None:
            self.seed = as_int("RowStream", "seed", self.seed, 0)
        check_blocks("RowStream", self.blocks)
        if not (isinstance(self.dtype, torch.dtype) and self.dtype.is_floating_point):
            raise TypeError(f"RowStream: dtype must be a floating-point type, got {self.dtype!r}")
        if self.transform is not None and not callable(self.transform):
            raise TypeError(
                f"RowStream: transform must be callable or None, got {describe(self.transform)}"
            )
        self.epoch: int = 0
        self._rank, self._ranks = 0, 1

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; `Trainer` calls it.

        Args:
            epoch: Number of the epoch, from 0.
        """
        self.epoch = epoch

    def share(self, rank: int, ranks: int) -> None:
        """Serve one rank's blocks only; `Trainer` calls it.

        Args:
            rank: Which rank, from 0.
            ranks: How many there are.
        """
        self._rank, self._ranks = rank, ranks

    def __iter__(self) -> Iterator[Tensor | tuple[Tensor, Tensor]]:
        """Yield one pass."""
        rng = None if self.seed is None else np.random.default_rng((self.seed, self.epoch))
        order = np.arange(len(self.blocks)) if rng is None else rng.permutation(len(self.blocks))
        mine = order[self._rank :: self._ranks]
        held = self.mixed_blocks if rng is not None else 1
        rest: tuple[Array, Array | None] | None = None
        for start in range(0, len(mine), held):
            parts = [self.blocks.read(int(number)) for number in mine[start : start + held]]
            x, y = _joined(parts)
            if rng is not None:
                mixed = rng.permutation(len(x))
                x, y = x[mixed], None if y is None else y[mixed]
            x, y = _joined([rest, (x, y)]) if rest is not None else (x, y)
            whole = len(x) - len(x) % self.batch_size
            for row in range(0, whole, self.batch_size):
                yield self._batch(x, y, slice(row, row + self.batch_size))
            # Copies, or a few rows would keep whole blocks in memory.
            rest = (x[whole:].copy(), None if y is None else y[whole:].copy())
        if rest is not None and len(rest[0]) > 0:
            yield self._batch(*rest, slice(None))

    def _batch(self, x: Array, y: Array | None, rows: slice) -> Tensor | tuple[Tensor, Tensor]:
        part = x[rows]
        if self.transform is not None:
            part = np.asarray(self.transform(np.asarray(part, np.float64)))
            if part.dtype.kind not in "fiub":
                raise TypeError(f"RowStream: transform must return numbers, got {part.dtype}")
        batch = _tensor(part).to(self.dtype)
        return batch if y is None else (batch, _tensor(y[rows]))


def _tensor(array: Array) -> Tensor:
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    # torch takes no negative strides, and warns of read-only data
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def _joined(parts: list[tuple[Array, Array | None]]) -> tuple[Array, Array | None]:
    if len(parts) == 1:
        return parts[0]
    shapes = {x.shape[1:] for x, _ in parts}
    if len(shapes) > 1:
        raise ValueError(f"RowStream: blocks must have rows of one shape, got {sorted(shapes)}")
    labels = [y for _, y in parts if y is not None]
    if len(labels) not in (0, len(parts)):
        raise ValueError("RowStream: all blocks must have labels or none, got some with labels")
    return np.concatenate([x for x, _ in parts]), np.concatenate(labels) if labels else None
