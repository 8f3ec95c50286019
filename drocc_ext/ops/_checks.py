"""Argument checks of the public operators and of their fakes: op, argument, rule and value."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from drocc_ext import _checks

# The eager backend tries every point.
_MOST_GRID_POINTS = 1_000_000

LARGEST = float(torch.finfo(torch.float32).max)

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type arithmetic runs in, which is also the type of per-row radii."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_rows(op: str, name: str, h: Tensor) -> None:
    """Check that a tensor is a floating `[B, *]` batch."""
    if not isinstance(h, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(h).__name__}")
    if h.dtype not in DTYPES:
        raise TypeError(
            f"{op}: {name} must be float32, float64, float16 or bfloat16, got {h.dtype}"
        )
    if h.is_nested:
        raise TypeError(f"{op}: {name} must be a dense tensor, got a nested one")
    if h.layout != torch.strided:
        raise TypeError(f"{op}: {name} must be a dense tensor, got layout {h.layout}")
    if h.dim() < 2:
        raise ValueError(
            f"{op}: {name} must have shape [B, *] with at least one feature dimension, "
            f"got {list(h.shape)}"
        )
    if h.shape[0] != 0 and 0 in h.shape[1:]:
        raise ValueError(f"{op}: {name} must have at least one feature, got {list(h.shape)}")


def check_like(op: str, name: str, other: Tensor, h: Tensor) -> None:
    """Check that `other` has the shape, dtype and device of h."""
    if not isinstance(other, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(other).__name__}")
    if other.shape != h.shape:
        raise ValueError(
            f"{op}: {name} must have the shape of h, {list(h.shape)}, got {list(other.shape)}"
        )
    _check_like_in_kind(op, name, other, h)


def _check_like_in_kind(op: str, name: str, other: Tensor, h: Tensor) -> None:
    if other.device != h.device:
        raise ValueError(f"{op}: {name} must be on the device of h, {h.device}, got {other.device}")
    if other.dtype != h.dtype and not _autocast_unites(op, other, h):
        raise TypeError(f"{op}: {name} must have the dtype of h, {h.dtype}, got {other.dtype}")


def _autocast_unites(op: str, other: Tensor, h: Tensor) -> bool:
    """Say whether autocast will bring both to float32: not float64, and not an h to write to."""
    in_place, double = op.endswith("_"), torch.float64 in (h.dtype, other.dtype)
    return not in_place and not double and torch.is_autocast_enabled(h.device.type)


def _as_float(op: str, name: str, value: float) -> float:
    """Return a number as float; while tracing, as a constant that torch guards.

    torch would make a symbolic number a constant only after it has looked into its caches of
    compiled code. They would then give a call the code of another number.
    """
    if type(value) is not float:
        value = _checks.as_float(op, name, value)
    return value.__float__() if torch.compiler.is_compiling() else value


def check_step_size(op: str, step_size: float) -> float:
    """Return a finite step size as float."""
    step_size = _as_float(op, "step_size", step_size)
    if not -math.inf < step_size < math.inf:
        raise ValueError(f"{op}: step_size must be finite, got {step_size}")
    return step_size


def check_gamma(op: str, gamma: float) -> float:
    """Return gamma >= 1 as float; infinity is allowed and means no outer bound."""
    gamma = _as_float(op, "gamma", gamma)
    if not gamma >= 1.0:
        raise ValueError(f"{op}: gamma must be >= 1, got {gamma}")
    return gamma


def split_radius(op: str, radius: float | Tensor, h: Tensor) -> tuple[float, Tensor | None]:
    """Split a radius into the schema's pair: one number, or `[B]` rows in the compute dtype.

    The values of a tensor are not read, which would wait for the device: a radius that is not
    positive and finite makes its row NaN.
    """
    if isinstance(radius, Tensor):
        if radius.shape != h.shape[:1]:
            raise ValueError(
                f"{op}: radius must be a number or have shape [{h.shape[0]}], "
                f"got {list(radius.shape)}"
            )
        if radius.device != h.device:
            raise ValueError(
                f"{op}: radius must be on the device of h, {h.device}, got {radius.device}"
            )
        if not radius.is_floating_point():
            raise TypeError(f"{op}: radius must be floating point, got {radius.dtype}")
        return 1.0, radius.to(compute_dtype(h.dtype))
    radius = _as_float(op, "radius", radius)
    if not 0.0 < radius < math.inf:
        raise ValueError(f"{op}: radius must be > 0 and finite, got {radius}")
    return radius, None


# ---- all arguments of an operator --------------------------------------------------------------
# Each takes the public arguments and returns those of the schema.


def check_gradient(op: str, grad: Tensor) -> tuple[Tensor]:
    """Check a gradient that stands alone."""
    check_rows(op, "grad", grad)
    return (grad,)


def check_ascent(
    op: str, h: Tensor, grad: Tensor, step_size: float
) -> tuple[Tensor, Tensor, float]:
    """Check an ascent step."""
    check_rows(op, "h", h)
    check_like(op, "grad", grad, h)
    return h, grad, check_step_size(op, step_size)


def check_shell(
    op: str, h: Tensor, radius: float | Tensor, gamma: float
) -> tuple[Tensor, float, Tensor | None, float]:
    """Check a projection."""
    check_rows(op, "h", h)
    number, rows = split_radius(op, radius, h)
    return h, number, rows, check_gamma(op, gamma)


def check_step(
    op: str, h: Tensor, grad: Tensor, step_size: float, radius: float | Tensor, gamma: float
) -> tuple[Tensor, Tensor, float, float, Tensor | None, float]:
    """Check a step, which is both."""
    ascent = check_ascent(op, h, grad, step_size)
    number, rows = split_radius(op, radius, h)
    return (*ascent, number, rows, check_gamma(op, gamma))


def check_metric(op: str, h: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Check a batch and its metric, `[*]` or `[B, *]`. The values of sigma are not read."""
    check_rows(op, "h", h)
    if not isinstance(sigma, Tensor):
        raise TypeError(f"{op}: sigma must be a tensor, got {type(sigma).__name__}")
    # By the number of dimensions: a batch of any size must not be compared with features.
    if sigma.shape != (h.shape if sigma.dim() == h.dim() else h.shape[1:]):
        raise ValueError(
            f"{op}: sigma must have the shape of h, {list(h.shape)}, or of one row of it, "
            f"{list(h.shape[1:])}, got {list(sigma.shape)}"
        )
    if sigma.layout != torch.strided:
        raise TypeError(f"{op}: sigma must be a dense tensor, got layout {sigma.layout}")
    _check_like_in_kind(op, "sigma", sigma, h)
    return h, sigma


def check_metric_shell(
    op: str, h: Tensor, sigma: Tensor, radius: float | Tensor, gamma: float, grid_points: int
) -> tuple[Tensor, Tensor, float, Tensor | None, float, int]:
    """Check a projection with a metric; `grid_points` comes from `check_solver`."""
    check_metric(op, h, sigma)
    number, rows = split_radius(op, radius, h)
    return h, sigma, number, rows, check_gamma(op, gamma), grid_points


def check_metric_step(
    op: str,
    h: Tensor,
    grad: Tensor,
    sigma: Tensor,
    step_size: float,
    radius: float | Tensor,
    gamma: float,
    grid_points: int,
) -> tuple[Tensor, Tensor, Tensor, float, float, Tensor | None, float, int]:
    """Check a step with a metric; `grid_points` comes from `check_solver`."""
    check_metric(op, h, sigma)
    check_like(op, "grad", grad, h)
    step_size = check_step_size(op, step_size)
    number, rows = split_radius(op, radius, h)
    return h, grad, sigma, step_size, number, rows, check_gamma(op, gamma), grid_points


def check_solver(op: str, solver: str, grid_points: int) -> int:
    """Return what the schema takes for a solver: the points of the grid, or 0 for Newton."""
    if solver == "newton":
        return 0
    if solver != "grid":
        raise ValueError(f"{op}: solver must be 'newton' or 'grid', got {solver!r}")
    points = _checks.as_int(op, "grid_points", grid_points, 2)
    if points > _MOST_GRID_POINTS:
        raise ValueError(f"{op}: grid_points must be <= {_MOST_GRID_POINTS}, got {points}")
    return points
