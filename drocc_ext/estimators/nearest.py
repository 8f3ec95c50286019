"""How far training rows are from each other, and in what units logits and distances add up."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from drocc_ext.estimators.usual_values import are_continuous
from drocc_ext.models.networks import NearestMLP
from drocc_ext.ops.nearest import nearest_row

Floats = npt.NDArray[np.float64]

# Rows that distances are measured from: a score takes time in proportion to them.
MOST_ROWS = 4096

_BLOCK = 1024
# Least unit of distances in radii: in a table of many copies half of them are 0.
_LEAST_UNIT = 0.1


def chosen_rows(count: int, seed: int) -> npt.NDArray[np.int64]:
    """Choose the rows to measure from: all, or 4096 drawn at random.

    Args:
        count: Rows in all.
        seed: Of the draw.

    Returns:
        Positions, in rising order.
    """
    if count <= MOST_ROWS:
        return np.arange(count)
    return np.sort(np.random.RandomState(seed).permutation(count)[:MOST_ROWS])


def normal_rows(network: nn.Module, least: float) -> Tensor | None:
    """Training rows that a network keeps and takes for normal.

    Args:
        network: The network.
        least: Logit that a row needs.

    Returns:
        `[M, D]`, or None where the network keeps none.
    """
    if not isinstance(network, NearestMLP):
        return None
    with torch.no_grad():
        return network.rows[network(network.rows).reshape(-1) >= least]


def distance_to_others(points: Tensor, rows: Tensor, own: Tensor) -> Tensor:
    """Distance of rows to the nearest of the others, as a fresh row like them would have it.

    Copies of a point are no others where rows differ in some column, so that none has a copy by
    chance: they come from a table with repeated rows, or from rows that are learned again.

    Args:
        points: `[n, D]`.
        rows: `[N, D]`.
        own: Position of each point among rows, int64 `[n]`; -1 where it is not there.

    Returns:
        `[n]`, dtype of points; 0 where there is no other row.
    """
    distances = points.new_zeros(len(points))
    found = copies(rows, points)
    kinds = None if found is None else torch.from_numpy(found)
    are_here = own >= 0 if kinds is None else torch.ones(len(points), dtype=torch.bool)
    fresh = torch.nonzero(~are_here)[:, 0]
    _, index = nearest_row(points[fresh], rows.to(points.dtype))
    distances[fresh] = torch.linalg.vector_norm(points[fresh] - rows[index], dim=1)
    wide = rows.double()
    squares = wide.square().sum(1)
    for block in torch.split(torch.nonzero(are_here)[:, 0], _BLOCK):
        # |a|^2 is left out: it does not change which row is nearest.
        order = squares - 2 * points[block].double() @ wide.T
        there = torch.nonzero(own[block] >= 0)[:, 0]
        order[there, own[block][there]] = torch.inf
        if kinds is not None:
            order[kinds[len(rows) :][block, None] == kinds[None, : len(rows)]] = torch.inf
        least, index = order.min(1)
        gap = torch.linalg.vector_norm(points[block] - rows[index], dim=1)
        distances[block] = torch.where(least.isfinite(), gap, 0.0)
    return distances


def copies(rows: Tensor, points: Tensor) -> npt.NDArray[np.int64] | None:
    """Number rows and points so that copies have one number.

    Args:
        rows: `[N, D]`.
        points: `[n, D]`.

    Returns:
        `[N + n]`; None where no two rows are equal, or equal ones may be chance: where values are
        few, or patterns are drawn again and again.
    """
    values = np.ascontiguousarray(torch.cat([rows, points]).numpy() + 0.0)  # -0 is 0
    whole = values.view(np.dtype((np.void, values.itemsize * values.shape[1])))[:, 0]
    kinds = np.unique(whole, return_inverse=True)[1]
    first = np.unique(kinds[: len(rows)], return_index=True)[1]
    if len(first) == len(rows) or not are_continuous(values[first], len(rows)):
        return None
    return kinds


def without_copies(rows: Tensor) -> tuple[Tensor, npt.NDArray[np.int64]]:
    """Leave out copies, as far as `copies` tells them.

    Args:
        rows: `[N, D]`.

    Returns:
        The rows that stay, in order, and for each of all rows where it is among them, `[N]`.
    """
    kinds = copies(rows, rows[:0])
    if kinds is None:
        return rows, np.arange(len(rows))
    _, first, which = np.unique(kinds, return_index=True, return_inverse=True)
    kept = np.sort(first)
    return rows[torch.from_numpy(kept)], np.searchsorted(kept, first[which])


def set_units(network: NearestMLP, logits: Floats, distances: Floats, radius: float) -> None:
    """Set what logits and distances are measured in: interquartile ranges, about the medians.

    Args:
        network: Its units are set.
        logits: Of normal rows, unseen ones where there are some, `[n]`.
        distances: Of normal rows to the nearest of the others, `[m]`.
        radius: Inner radius of the shell.
    """
    low, middle, high = np.quantile(logits, [0.25, 0.5, 0.75])
    close, near, far = np.quantile(distances, [0.25, 0.5, 0.75])
    units = [middle, (high - low) or 1.0, near, max(far - close, _LEAST_UNIT * radius)]
    network.units.copy_(torch.tensor(units, dtype=torch.float32, device="cpu"))
