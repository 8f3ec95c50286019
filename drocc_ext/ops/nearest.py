"""`nearest_distance`: how far points are from the nearest of many rows, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from drocc_ext.ops import _backend, _checks, _library
from drocc_ext.ops.eager import nearest as reference

__all__ = ["nearest_distance", "nearest_row"]


def nearest_distance(points: Tensor, rows: Tensor) -> Tensor:
    """Distance to the nearest of many rows: `min_j ||x~ - x_j||` of eq. (1).

    The set of eq. (1), points at least r away from ALL training rows, asks for it; Algorithm 1
    relaxes that to the row a point was sought around. No `[B, N]` matrix is made: on a CPU with
    native kernels one pass over the rows serves many points, elsewhere rows come in blocks.

    Args:
        points: `[B, *]`, float32, float64, float16 or bfloat16.
        rows: `[N, *]`, N >= 1, of the same features, dtype and device.

    Returns:
        `[B]`, float32 (float64 for float64 points), without gradient. A row that holds NaN or
        infinity is nobody's nearest; where there is no other, infinity. A point that is not finite
        gets NaN.

    Raises:
        TypeError: If an argument is not a floating-point tensor, or dtypes differ.
        ValueError: If shapes or devices do not fit, or there are no rows.
    """
    return nearest_row(points, rows)[0]


def nearest_row(points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Do what `nearest_distance` does and say which row is nearest.

    Args:
        points: `[B, *]`.
        rows: `[N, *]`.

    Returns:
        The distances, `[B]`, and the positions of the rows, int64 `[B]`, -1 where there is none.

    Raises:
        TypeError: As `nearest_distance`.
        ValueError: As `nearest_distance`.
    """
    op = "nearest_distance"
    _checks.check_rows(op, "points", points)
    _checks.check_rows(op, "rows", rows)
    if rows.shape[1:] != points.shape[1:] or rows.shape[0] == 0:
        raise ValueError(
            f"{op}: rows must have shape {['N >= 1', *points.shape[1:]]}, got {list(rows.shape)}"
        )
    if rows.device != points.device:
        raise ValueError(
            f"{op}: rows must be on the device of points, {points.device}, got {rows.device}"
        )
    if rows.dtype != points.dtype:
        raise TypeError(
            f"{op}: rows must have the dtype of points, {points.dtype}, got {rows.dtype}"
        )
    points, rows = points.detach().flatten(1), rows.detach().flatten(1)
    form = torch.ops.drocc._nearest if _takes_kernel(points) else reference.nearest
    distance, index = form(points, rows)
    return distance, index


def _takes_kernel(points: Tensor) -> bool:
    return (
        points.device.type in ("cpu", "cuda")
        and not torch.compiler.is_compiling()
        and _library.native_error(points.device.type) is None
        and _backend.allows_native()
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._len_torch_dispatch_stack() == 0
    )
