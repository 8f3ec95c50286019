"""Triton implementations of the Mahalanobis shell operators: checks, memory, launches.

Shapes, dtypes and meaning are those of `drocc_ext.ops`; a radius is a number, or rows `[B]` in the
compute type; `grid_points` 0 is the exact solver. Gradients come out contiguous, that of sigma in
the shape of h.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from drocc_ext.ops import _checks
from drocc_ext.ops.triton import _mahalanobis_gradients as gradients
from drocc_ext.ops.triton import _mahalanobis_kernels as kernels
from drocc_ext.ops.triton._launch import (
    check_device,
    check_in_place,
    in_layout_of,
    is_row_dense,
    launch,
    radii,
    row_values,
    scalar,
    share_memory,
)

_Shell = tuple[float, Tensor | None, float, int]  # radius, radius of each row, gamma, grid_points


def _checked(
    op: str, h: Tensor, grad: Tensor | None, sigma: Tensor, step_size: float, shell: _Shell
) -> _Shell:
    """Check the operands, for callers of the operators themselves too; return the shell."""
    check_device(op, h)
    number, rows, gamma, points = shell
    either = number if rows is None else rows
    checked = _checks.check_metric_shell(op, h, sigma, either, gamma, points)
    if grad is not None:
        _checks.check_ascent(op, h, grad, step_size)
    if points != 0 and points < 2:
        raise ValueError(f"{op}: grid_points must be >= 2, or 0 for the exact solver, got {points}")
    return checked[2:]


def sigma_rows(sigma: Tensor, rows: Tensor, overwritten: bool) -> tuple[Tensor, int]:
    """Sigma as rows in the layout of `rows`, and the distance from one to the next: 0 if shared."""
    shared = sigma.dim() < rows.dim()
    length = rows.numel() // rows.shape[0]
    if shared and rows.is_contiguous():
        one = sigma.contiguous()
        return (one.clone() if overwritten and share_memory(one, rows) else one), 0
    laid_out = in_layout_of(sigma.expand_as(rows) if shared else sigma, rows)
    if overwritten and laid_out is sigma and share_memory(sigma, rows):
        laid_out = sigma.clone()
    return laid_out, length


def _forward(
    op: str,
    h: Tensor,
    grad: Tensor | None,
    sigma: Tensor,
    step_size: float,
    shell: _Shell,
    in_place: bool,
) -> Tensor:
    """Check, and run the kernel for one of the operators; h itself is written if in_place."""
    number, rows, gamma, points = _checked(op, h, grad, sigma, step_size, shell)
    if in_place:
        check_in_place(op, h, grad)
    out = h if in_place else torch.empty_like(h)
    if h.numel() == 0:
        return out
    dense = torch.contiguous_format
    written = out if is_row_dense(out) else torch.empty_like(out, memory_format=dense)
    source = in_layout_of(h, written)
    metric, stride = sigma_rows(sigma, written, in_place)
    arguments = (
        source,
        in_layout_of(grad, written) if grad is not None else source,
        metric,
        written,
        scalar(step_size, h),
        radii(number, rows, h, written if in_place else None),
        scalar(gamma, h, math.inf),
        points,
        stride,
    )
    flags = {"ASCENT": grad is not None, "RADIUS_ROWS": rows is not None}
    launch(kernels.mahalanobis_step_kernel, written, 1, arguments, **flags)
    return out if written is out else out.copy_(written)


def project_mahalanobis_shell(
    h: Tensor,
    sigma: Tensor,
    radius: float,
    radius_rows: Tensor | None,
    gamma: float,
    grid_points: int,
) -> Tensor:
    """Nearest point of radius <= ||h||_S <= gamma * radius."""
    shell = (radius, radius_rows, gamma, grid_points)
    return _forward("project_mahalanobis_shell", h, None, sigma, 0.0, shell, False)


def project_mahalanobis_shell_(
    h: Tensor,
    sigma: Tensor,
    radius: float,
    radius_rows: Tensor | None,
    gamma: float,
    grid_points: int,
) -> None:
    """The same, written to h."""
    shell = (radius, radius_rows, gamma, grid_points)
    _forward("project_mahalanobis_shell_", h, None, sigma, 0.0, shell, True)


def mahalanobis_shell_step(
    h: Tensor,
    grad: Tensor,
    sigma: Tensor,
    step_size: float,
    radius: float,
    radius_rows: Tensor | None,
    gamma: float,
    grid_points: int,
) -> Tensor:
    """Ascent and projection in one."""
    shell = (radius, radius_rows, gamma, grid_points)
    return _forward("mahalanobis_shell_step", h, grad, sigma, step_size, shell, False)


def mahalanobis_shell_step_(
    h: Tensor,
    grad: Tensor,
    sigma: Tensor,
    step_size: float,
    radius: float,
    radius_rows: Tensor | None,
    gamma: float,
    grid_points: int,
) -> None:
    """The same, written to h."""
    shell = (radius, radius_rows, gamma, grid_points)
    _forward("mahalanobis_shell_step_", h, grad, sigma, step_size, shell, True)


def _backward(
    op: str,
    upstream: Tensor,
    h: Tensor,
    grad: Tensor | None,
    sigma: Tensor,
    step_size: float,
    shell: _Shell,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of h, grad (h itself if there is none), sigma and the radius."""
    number, rows, gamma, points = _checked(op, h, grad, sigma, step_size, shell)
    _checks.check_like(op, "grad_out", upstream, h)
    upstream, h = upstream.contiguous(), h.contiguous()
    grad_h, grad_sigma = torch.empty_like(h), _sigma_rows_like(h)
    grad_grad = torch.empty_like(h) if grad is not None else h
    grad_radius = row_values(h)
    if h.numel():
        metric, stride = sigma_rows(sigma, h, False)
        arguments = (
            upstream,
            h,
            grad.contiguous() if grad is not None else h,
            metric,
            grad_h,
            grad_grad,
            grad_sigma,
            grad_radius,
            scalar(step_size, h),
            radii(number, rows, h, None),
            scalar(gamma, h, math.inf),
            points,
            stride,
        )
        flags = {"ASCENT": grad is not None, "RADIUS_ROWS": rows is not None}
        launch(gradients.mahalanobis_step_backward_kernel, h, 2, arguments, **flags)
    return grad_h, grad_grad, grad_sigma, grad_radius


def _project_mahalanobis_shell_backward(
    grad_out: Tensor,
    h: Tensor,
    sigma: Tensor,
    radius: float,
    radius_rows: Tensor | None,
    gamma: float,
    grid_points: int,
) -> tuple[Tensor, Tensor, Tensor]:
    op = "_project_mahalanobis_shell_backward"
    shell = (radius, radius_rows, gamma, grid_points)
    grad_h, _, grad_sigma, grad_radius = _backward(op, grad_out, h, None, sigma, 0.0, shell)
    return grad_h, grad_sigma, grad_radius


def _mahalanobis_shell_step_backward(
    grad_out: Tensor,
    h: Tensor,
    grad: Tensor,
    sigma: Tensor,
    step_size: float,
    radius: float,
    radius_rows: Tensor | None,
    gamma: float,
    grid_points: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    op = "_mahalanobis_shell_step_backward"
    shell = (radius, radius_rows, gamma, grid_points)
    return _backward(op, grad_out, h, grad, sigma, step_size, shell)


def _sigma_rows_like(h: Tensor) -> Tensor:
    """Room for the gradients of every row's sigma, `[B, D]` in the compute type."""
    return h.new_empty((h.shape[0], math.prod(h.shape[1:])), dtype=_checks.compute_dtype(h.dtype))


def _norm(op: str, h: Tensor, sigma: Tensor, upstream: Tensor | None) -> tuple[Any, Any, Any]:
    """The norms, or the gradients of h and sigma."""
    check_device(op, h)
    _checks.check_metric(op, h, sigma)
    rows = h if upstream is None and is_row_dense(h) else h.contiguous()
    norm = row_values(h)
    backward = upstream is not None
    grad_h = torch.empty_like(rows) if backward else rows
    grad_sigma = _sigma_rows_like(rows) if backward else rows
    if h.numel():
        metric, stride = sigma_rows(sigma, rows, False)
        given = upstream.contiguous() if upstream is not None else norm
        arguments = (rows, metric, norm, given, grad_h, grad_sigma, stride)
        kernel = gradients.mahalanobis_norm_kernel
        heavy = int(backward or h.dtype == torch.float64)
        launch(kernel, rows, heavy, arguments, BACKWARD=backward)
    return norm, grad_h, grad_sigma


def mahalanobis_norm(h: Tensor, sigma: Tensor) -> Tensor:
    """sqrt(sum_j sigma_j h_j^2), `[B]`."""
    norm: Tensor = _norm("mahalanobis_norm", h, sigma, None)[0]
    return norm


def _mahalanobis_norm_backward(grad_out: Tensor, h: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    op = "_mahalanobis_norm_backward"
    if grad_out.shape != h.shape[:1] or grad_out.dtype != _checks.compute_dtype(h.dtype):
        raise ValueError(f"{op}: grad_out must have shape [{h.shape[0]}] and the dtype of the norm")
    return _norm(op, h, sigma, grad_out)[1:]
