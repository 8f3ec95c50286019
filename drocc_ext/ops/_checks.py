"""Argument checks of the public operators and of their fakes: op, argument, rule and value."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from drocc_ext import _checks

# The eager backend tries every point.
_MOST_GRID_POINTS = 1_000_000

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


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast as autocast does for the registered operators, which the eager backend bypasses."""
    device_type = tensors[0].device.type
    if device_type not in ("cpu", "cuda") or not torch.is_autocast_enabled(device_type):
        return tensors
    return tuple(t if t.dtype == torch.float64 else t.float() for t in tensors)


def check_step_size(op: str, step_size: float) -> float:
    """Return a finite step size as float."""
    if type(step_size) is not float:
        step_size = _checks.as_float(op, "step_size", step_size)
    if not -math.inf < step_size < math.inf:  # comparisons, unlike math.isfinite, can be traced
        raise ValueError(f"{op}: step_size must be finite, got {step_size}")
    return step_size


def check_gamma(op: str, gamma: float) -> float:
    """Return gamma >= 1 as float; infinity is allowed and means no outer bound."""
    if type(gamma) is not float:
        gamma = _checks.as_float(op, "gamma", gamma)
    if not gamma >= 1.0:
        raise ValueError(f"{op}: gamma must be >= 1, got {gamma}")
    return gamma


def split_radius(op: str, radius: float | Tensor, h: Tensor) -> tuple[float, Tensor | None]:
    """Split a radius into the schema's pair: one number, or `[B]` rows in the compute dtype.

    Values of a tensor are not read (that would wait for the device): a row whose radius is not
    positive and finite becomes NaN.
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
    if type(radius) is not float:
        radius = _checks.as_float(op, "radius", radius)
    if not 0.0 < radius < math.inf:
        raise ValueError(f"{op}: radius must be > 0 and finite, got {radius}")
    return radius, None


def check_in_place(op: str, h: Tensor, *others: Tensor | None) -> None:
    """Refuse what would go wrong without a word: autograd, and an h that overlaps itself."""
    if torch.is_grad_enabled() and any(
        isinstance(tensor, Tensor) and tensor.requires_grad for tensor in (h, *others)
    ):
        raise RuntimeError(
            f"{op}: an argument requires grad; the in-place form is not differentiable, "
            f"use {op[:-1]} or call it under torch.no_grad()"
        )
    if (
        isinstance(h, Tensor)
        and not h.is_contiguous()
        and any(stride == 0 and size > 1 for stride, size in zip(h.stride(), h.shape, strict=True))
    ):
        raise ValueError(f"{op}: h must not be an expanded tensor, several elements share memory")


def call_in_place(op: str, native: Any, check: Callable[[], object], h: Tensor, *args: Any) -> None:
    """Run a native in-place operator and tell autograd that h changed.

    The kernels check their inputs themselves, before they write; the checks here, which have the
    better words, run first only where tracing needs it and otherwise when a call has failed: they
    would double the cost of a small call.
    """
    if torch.compiler.is_compiling():
        check()
        native(h, *args)
        return
    failure: Exception | None = None
    try:
        native(h, *args)
    except (RuntimeError, TypeError) as error:
        failure = error
    if failure is not None:  # outside the handler, so that one error is shown, not two
        check()
        if h.is_neg():
            raise ValueError(f"{op}: h must not be a lazily negated view; call resolve_neg() on it")
        raise failure
    if not h.is_inference():
        torch.autograd.graph.increment_version(h)


def check_ascent(op: str, h: Tensor, grad: Tensor, step_size: float) -> float:
    """Check the operands of an ascent step; return its size as float."""
    check_rows(op, "h", h)
    check_like(op, "grad", grad, h)
    return check_step_size(op, step_size)


def check_shell(
    op: str, h: Tensor, radius: float | Tensor, gamma: float
) -> tuple[float, Tensor | None, float]:
    """Check the operands of a projection; return number, rows and gamma as the schema wants."""
    check_rows(op, "h", h)
    number, rows = split_radius(op, radius, h)
    return number, rows, check_gamma(op, gamma)


def check_step(
    op: str, h: Tensor, grad: Tensor, step_size: float, radius: float | Tensor, gamma: float
) -> tuple[float, float, Tensor | None, float]:
    """Check the operands of a whole step; return its numbers as the schema wants them."""
    step_size = check_ascent(op, h, grad, step_size)
    return (step_size, *check_shell(op, h, radius, gamma))


def check_metric(op: str, h: Tensor, sigma: Tensor) -> None:
    """Check a batch and its metric, `[*]` or `[B, *]`. The values of sigma are not read."""
    check_rows(op, "h", h)
    if not isinstance(sigma, Tensor):
        raise TypeError(f"{op}: sigma must be a tensor, got {type(sigma).__name__}")
    if sigma.shape not in (h.shape, h.shape[1:]):
        raise ValueError(
            f"{op}: sigma must have the shape of h, {list(h.shape)}, or of one row of it, "
            f"{list(h.shape[1:])}, got {list(sigma.shape)}"
        )
    if sigma.layout != torch.strided:
        raise TypeError(f"{op}: sigma must be a dense tensor, got layout {sigma.layout}")
    _check_like_in_kind(op, "sigma", sigma, h)


def check_metric_shell(
    op: str, h: Tensor, sigma: Tensor, radius: float | Tensor, gamma: float
) -> tuple[float, Tensor | None, float]:
    """Check the operands of a Mahalanobis projection; return what `check_shell` does."""
    check_metric(op, h, sigma)
    return check_shell(op, h, radius, gamma)


def check_metric_step(
    op: str,
    h: Tensor,
    grad: Tensor,
    sigma: Tensor,
    step_size: float,
    radius: float | Tensor,
    gamma: float,
) -> tuple[float, float, Tensor | None, float]:
    """Check the operands of a whole step with a metric; return what `check_step` does."""
    check_metric(op, h, sigma)
    return check_step(op, h, grad, step_size, radius, gamma)


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
