"""What scaling and radius need to know of rows that do not fit in memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from drocc_ext._checks import as_int
from drocc_ext.estimators.columns import Standardizer
from drocc_ext.streams.blocks import Array, Blocks, check_blocks

Floats = npt.NDArray[np.float64]
_CHUNK = 8192  # rows whose distances to all queries are held at a time


@dataclass(frozen=True)
class RowSummary:
    """Moments of all rows, and a sample of them.

    Attributes:
        count: Number of rows N.
        mean: Of each column, `[D]`.
        deviation: Standard deviation of each column, `[D]`.
        sample: Rows drawn without replacement, each with the same chance, `[n, D]`, in the order
            of the file.
    """

    count: int
    mean: Floats
    deviation: Floats
    sample: Floats

    def standardizer(self) -> Standardizer:
        """Make a standardizer with the means and deviations of all rows.

        Whether a column has one value in 99 % of the rows is judged by the sample.

        Returns:
            The standardizer.

        Raises:
            ValueError: If no column varies, or one is too large to standardize.
        """
        kept = Standardizer.fit("RowSummary.standardizer", self.sample).kept
        return Standardizer(kept, self.mean[kept], self.deviation[kept])


def summarize(blocks: Blocks, *, sample_rows: int = 16384, seed: int = 0) -> RowSummary:
    """Look at all rows once, holding one block and a sample.

    Args:
        blocks: Rows `[N, D]`.
        sample_rows: Rows of the sample, all where there are no more.
        seed: Chooses the sample.

    Returns:
        The summary.

    Raises:
        ValueError: If there are no rows, or one is not finite, or if they are arrays `[N, *]`.
    """
    check_blocks("summarize", blocks)
    sample_rows = as_int("summarize", "sample_rows", sample_rows, 1)
    seed = as_int("summarize", "seed", seed, 0)
    rng = np.random.default_rng(seed)
    count, mean, squares = 0, np.zeros(1), np.zeros(1)
    # Each row draws a key, and those of the smallest stay: a sample without replacement, whatever
    # the blocks are.
    keys, places, sample = np.empty(0), np.empty(0, np.int64), np.empty((0, 0))
    for number in range(len(blocks)):
        x = np.asarray(blocks.read(number)[0], dtype=np.float64)
        if len(x) == 0:  # a file may hold a block without rows
            continue
        if x.ndim != 2:
            raise ValueError(
                "summarize: blocks must hold rows [N, D], whose columns are standardized, got "
                f"shape [N, {', '.join(map(str, x.shape[1:]))}]"
            )
        if not np.isfinite(x).all():
            row = count + int(np.argmin(np.isfinite(x).all(axis=1)))
            raise ValueError(f"summarize: rows must be finite, got NaN or infinity in row {row}")
        drawn, where = rng.random(len(x)), np.arange(count, count + len(x))
        near = drawn < keys.max() if len(keys) == sample_rows else np.full(len(x), True)
        keys, places = np.append(keys, drawn[near]), np.append(places, where[near])
        sample = np.concatenate([sample.reshape(-1, x.shape[1]), x[near]])
        if len(keys) > sample_rows:
            best = np.sort(np.argpartition(keys, sample_rows - 1)[:sample_rows])
            keys, places, sample = keys[best], places[best], sample[best]
        # Chan's update: no difference of large sums.
        total, own = count + len(x), x.mean(axis=0)
        shift = own - mean
        squares = squares + ((x - own) ** 2).sum(axis=0) + shift**2 * count * len(x) / total
        count, mean = total, mean + shift * len(x) / total
    if count == 0:
        raise ValueError("summarize: blocks must hold at least one row, got none")
    return RowSummary(count, mean, np.sqrt(squares / count), sample)


def radius_among_all(
    blocks: Blocks,
    queries: Array,
    transform: Callable[[Array], Array],
    *,
    quantile: float = 0.95,
    k: int = 5,
) -> float:
    """Do what `suggest_radius` does for rows that do not fit in memory, in one more pass.

    `suggest_radius(transform(summary.sample))` needs no pass, but a sample's neighbours are farther
    apart than those of all rows: by (N / n) ** (1 / d) for n of N rows that fill d dimensions.

    Args:
        blocks: Rows `[N, D]`.
        queries: Rows among them that look for their neighbours, `[q, D]`, a few hundred of
            `RowSummary.sample`.
        transform: Scales rows as the network sees them.
        quantile: Over the queries, in [0, 1].
        k: Which neighbour, the row itself not counted.

    Returns:
        The radius, in the units of what transform gives.

    Raises:
        ValueError: If an argument is out of range, there are at most k rows, or copies make the
            radius 0.
    """
    check_blocks("radius_among_all", blocks)
    k = as_int("radius_among_all", "k", k, 1)
    if not 0 <= quantile <= 1:
        raise ValueError(f"radius_among_all: quantile must be between 0 and 1, got {quantile}")
    if np.ndim(queries) != 2 or len(queries) == 0:
        raise ValueError(
            f"radius_among_all: queries must be rows [q, D], q >= 1, got shape {np.shape(queries)}"
        )
    around = torch.from_numpy(np.asarray(transform(queries), dtype=np.float64))
    if not bool(around.isfinite().all()):
        raise ValueError("radius_among_all: queries must be finite, got NaN or infinity")
    # As in suggest_radius: by a power of two, and from differences.
    exponent = math.frexp(float(around.abs().max()))[1] if around.numel() else 0
    around = torch.from_numpy(np.ldexp(around.numpy(), -exponent))
    nearest = torch.full((len(around), k + 1), torch.inf, dtype=torch.float64, device="cpu")
    read = 0
    for number in range(len(blocks)):
        x = np.asarray(blocks.read(number)[0], dtype=np.float64)
        for start in range(0, len(x), _CHUNK):
            rows = np.ldexp(np.asarray(transform(x[start : start + _CHUNK]), np.float64), -exponent)
            if not np.isfinite(rows).all():
                row = read + start + int(np.argmin(np.isfinite(rows).all(axis=1)))
                raise ValueError(
                    f"radius_among_all: rows must be finite, got NaN or infinity in row {row}"
                )
            apart = torch.cdist(
                around, torch.from_numpy(rows), compute_mode="donot_use_mm_for_euclid_dist"
            )
            both = torch.cat([nearest, apart], dim=1)
            nearest = both.topk(k + 1, dim=1, largest=False).values
        read += len(x)
    radius = float(np.ldexp(np.quantile(nearest[:, -1].numpy(), quantile), exponent))
    if not 0 < radius < np.inf:
        raise ValueError(
            f"radius_among_all: the {k}-th neighbours must be there and apart, got radius {radius}"
        )
    return radius
