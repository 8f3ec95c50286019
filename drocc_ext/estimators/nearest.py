"""How far training rows are from each other, and in what units logits and distances add up."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from drocc_ext.models.networks import NearestMLP

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

    Args:
        points: `[n, D]`.
        rows: `[N, D]`.
        own: Position of each point among rows, int64 `[n]`; -1 where it is not there.

    Returns:
        `[n]`, dtype of points; 0 where there is no other row.
    """
    distances = points.new_zeros(len(points))
    wide = rows.double()
    squares = wide.square().sum(1)
    for first in range(0, len(points), _BLOCK):
        block = slice(first, first + _BLOCK)
        # |a|^2 is left out: it does not change which row is nearest.
        order = squares - 2 * points[block].double() @ wide.T
        there = torch.nonzero(own[block] >= 0)[:, 0]
        order[there, own[block][there]] = torch.inf
        least, index = order.min(1)
        gap = torch.linalg.vector_norm(points[block] - rows[index], dim=1)
        distances[block] = torch.where(least.isfinite(), gap, 0.0)
    return distances


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
    network.units.copy_(torch.tensor(units, dtype=torch.float32))
