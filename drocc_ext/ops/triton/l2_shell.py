"""Triton implementations of the l2 shell operators: checks, memory, launches.

Shapes, dtypes and meaning are those of `drocc_ext.ops`; a radius is a number, or rows `[B]` in the
compute type. Gradients come out contiguous.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from drocc_ext.ops import _checks
from drocc_ext.ops.triton import _l2_shell_kernels as kernels
from drocc_ext.ops.triton._launch import (
    check_device,
    check_in_place,
    in_layout_of,
    is_row_dense,
    launch,
    radii,
    row_values,
    scalar,
)

_Shell = tuple[float, Tensor | None, float]  # radius, radius of each row, gamma


def _checked(
    op: str, h: Tensor, grad: Tensor | None, step_size: float, shell: _Shell | None
) -> _Shell:
    """Check the operands, for callers of the operators themselves too; return the shell."""
    check_device(op, h)
    if grad is not None:
        _checks.check_ascent(op, h, grad, step_size)
    if shell is None:
        return 1.0, None, 1.0
    number, rows, gamma = shell
    return _checks.check_shell(op, h, number if rows is None else rows, gamma)[1:]


def _forward(
    op: str,
    h: Tensor,
    grad: Tensor | None,
    step_size: float,
    shell: _Shell | None,
    in_place: bool,
) -> Tensor:
    """Check, and run the kernel for one of the operators; h itself is written if in_place."""
    number, rows, gamma = _checked(op, h, grad, step_size, shell)
    if in_place:
        check_in_place(op, h, grad)
    out = h if in_place else torch.empty_like(h)
    if h.numel() == 0:
        return out
    written = (
        out if is_row_dense(out) else torch.empty_like(out, memory_format=torch.contiguous_format)
    )
    source = in_layout_of(h, written)
    target = written if in_place else None
    arguments = (
        source,
        in_layout_of(grad, written) if grad is not None else source,
        written,
        scalar(step_size, h),
        radii(number, rows, h, target),
        scalar(gamma, h, math.inf),
    )
    flags = {"ASCENT": grad is not None, "SHELL": shell is not None}
    launch(kernels.step_kernel, written, 0, arguments, RADIUS_ROWS=rows is not None, **flags)
    return out if written is out else out.copy_(written)


def _is_beyond_float32(h: Tensor, step_size: float) -> bool:
    """Say whether a kernel in float32 could not take the step size; where it leads may fit."""
    return h.dtype != torch.float64 and _checks.LARGEST < abs(step_size) < math.inf


def normalized_ascent(h: Tensor, grad: Tensor, step_size: float) -> Tensor:
    """H + step_size * grad / ||grad||."""
    if _is_beyond_float32(h, step_size):
        result = _forward("normalized_ascent", h.double(), grad.double(), step_size, None, False)
        return result.float().to(h.dtype)
    return _forward("normalized_ascent", h, grad, step_size, None, False)


def project_l2_shell(h: Tensor, radius: float, radius_rows: Tensor | None, gamma: float) -> Tensor:
    """Nearest point of radius <= ||h|| <= gamma * radius."""
    return _forward("project_l2_shell", h, None, 0.0, (radius, radius_rows, gamma), False)


def l2_shell_step(
    h: Tensor,
    grad: Tensor,
    step_size: float,
    radius: float,
    radius_rows: Tensor | None,
    gamma: float,
) -> Tensor:
    """Both in one pass."""
    return _forward("l2_shell_step", h, grad, step_size, (radius, radius_rows, gamma), False)


def normalized_ascent_(h: Tensor, grad: Tensor, step_size: float) -> None:
    """`normalized_ascent`, written to h."""
    if _is_beyond_float32(h, step_size):
        check_in_place("normalized_ascent_", h, grad)
        h.copy_(normalized_ascent(h, grad, step_size))
        return
    _forward("normalized_ascent_", h, grad, step_size, None, True)


def project_l2_shell_(h: Tensor, radius: float, radius_rows: Tensor | None, gamma: float) -> None:
    """`project_l2_shell`, written to h."""
    _forward("project_l2_shell_", h, None, 0.0, (radius, radius_rows, gamma), True)


def l2_shell_step_(
    h: Tensor,
    grad: Tensor,
    step_size: float,
    radius: float,
    radius_rows: Tensor | None,
    gamma: float,
) -> None:
    """`l2_shell_step`, written to h."""
    _forward("l2_shell_step_", h, grad, step_size, (radius, radius_rows, gamma), True)


def _backward(
    op: str,
    upstream: Tensor,
    h: Tensor,
    grad: Tensor | None,
    step_size: float,
    shell: _Shell | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of h, grad and the radius; of those that the operator lacks, any tensor."""
    number, rows, gamma = _checked(op, h, grad, step_size, shell)
    _checks.check_like(op, "grad_out", upstream, h)
    upstream, h = upstream.contiguous(), h.contiguous()
    direction = grad.contiguous() if grad is not None else h
    grad_h = torch.empty_like(h) if shell is not None else h
    grad_grad = torch.empty_like(h) if grad is not None else h
    grad_radius = row_values(h)
    if h.numel() == 0:
        return grad_h, grad_grad, grad_radius
    arguments = (
        upstream,
        h,
        direction,
        grad_h,
        grad_grad,
        grad_radius,
        scalar(step_size, h),
        radii(number, rows, h, None),
        scalar(gamma, h, math.inf),
    )
    flags = {"ASCENT": grad is not None, "SHELL": shell is not None}
    rows_given = rows is not None
    launch(kernels.step_backward_kernel, h, 1, arguments, RADIUS_ROWS=rows_given, **flags)
    return grad_h, grad_grad, grad_radius


def _normalized_ascent_backward(grad_out: Tensor, grad: Tensor, step_size: float) -> Tensor:
    op = "_normalized_ascent_backward"
    return _backward(op, grad_out, grad, grad, step_size, None)[1]


def _project_l2_shell_backward(
    grad_out: Tensor, h: Tensor, radius: float, radius_rows: Tensor | None, gamma: float
) -> tuple[Tensor, Tensor]:
    shell = (radius, radius_rows, gamma)
    grad_h, _, grad_radius = _backward("_project_l2_shell_backward", grad_out, h, None, 0.0, shell)
    return grad_h, grad_radius


def _l2_shell_step_backward(
    grad_out: Tensor,
    h: Tensor,
    grad: Tensor,
    step_size: float,
    radius: float,
    radius_rows: Tensor | None,
    gamma: float,
) -> tuple[Tensor, Tensor, Tensor]:
    shell = (radius, radius_rows, gamma)
    return _backward("_l2_shell_step_backward", grad_out, h, grad, step_size, shell)
