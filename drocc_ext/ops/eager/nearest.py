"""The nearest of many rows in eager PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

# Elements of the largest matrix of distances.
_BLOCK = 1 << 18

# Rows that all points are measured from at once where a form must serve all sizes of a batch.
_COMPILED_BLOCK = 128

# Distances whose squares keep their precision in float64.
_SAFE = (1e-140, 1e150)


def nearest(points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Distance of each of points `[B, D]` to the nearest of rows `[N, D]`, and which row that is.

    The distances, `[B]`, are in float64 for float64 points, else in float32, and carry no gradient;
    arithmetic is in float64. A row that is not finite is nobody's nearest. Where there is none the
    distance is infinite and the index -1, and NaN and -1 where the point is not finite.
    """
    if points.shape[0] == 0:
        return points.new_zeros(0, dtype=_compute(points)), points.new_zeros(0, dtype=torch.long)
    wide = points.detach().double()
    least = wide.new_full((points.shape[0],), torch.inf)
    index = torch.full((points.shape[0],), -1, device=points.device)
    # A compiled or exported form must not depend on the size of its batch.
    fixed = torch.compiler.is_compiling()
    count = _COMPILED_BLOCK if fixed else max(1, _BLOCK // points.shape[0])
    for first in range(0, len(rows), count):
        block = rows[first : first + count].detach().double()
        # Differences themselves: |a|^2 - 2ab + |b|^2 cancels where it matters, near a row.
        distances = torch.cdist(wide, block, compute_mode="donot_use_mm_for_euclid_dist")
        # An exported program has no branches; it does without for distances as far out as these.
        if points.dtype == torch.float64 and not torch.compiler.is_exporting():
            _scale_where_squares_left_the_range(distances, wide, block)
        distances = distances.nan_to_num(nan=torch.inf)
        smallest, where = distances.min(1)
        nearer = smallest < least
        least = torch.where(nearer, smallest, least)
        index = torch.where(nearer, where + first, index)
    finite = points.isfinite().all(1)
    least = torch.where(finite, least, torch.nan)
    return least.to(_compute(points)), torch.where(finite, index, -1)


def _scale_where_squares_left_the_range(distances: Tensor, wide: Tensor, block: Tensor) -> None:
    point, row = ((distances <= _SAFE[0]) | (distances >= _SAFE[1])).nonzero(as_tuple=True)
    if len(point) == 0:
        return
    count = max(1, _BLOCK // max(1, wide.shape[1]))
    for first in range(0, len(point), count):
        i, j = point[first : first + count], row[first : first + count]
        apart = wide[i] - block[j]
        size = apart.abs().amax(1, keepdim=True)
        scaled = torch.where(size > 0, apart / size, apart)
        distances[i, j] = (scaled.norm(dim=1, keepdim=True) * size)[:, 0]


def _compute(points: Tensor) -> torch.dtype:
    return torch.float64 if points.dtype == torch.float64 else torch.float32
