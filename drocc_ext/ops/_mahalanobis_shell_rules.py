"""Fakes, autograd formulas and eager fallbacks of the Mahalanobis shell operators."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from drocc_ext.ops import _checks
from drocc_ext.ops._registration import (
    refuse_second_order,
    register_autocast,
    register_autograd,
    register_fake,
    register_fallback,
    register_vmap,
)
from drocc_ext.ops.eager import mahalanobis_shell as reference

_Gradients = tuple[Tensor, ...]


def _row_values_like(h: Tensor) -> Tensor:
    return h.new_empty(h.shape[0], dtype=_checks.compute_dtype(h.dtype))


def _contiguous_like(h: Tensor) -> Tensor:
    return torch.empty_like(h, memory_format=torch.contiguous_format)


def _sigma_rows_like(h: Tensor) -> Tensor:
    """Gradients of every row's sigma, `[B, D]`: in the compute type, as they may yet be summed."""
    return h.new_empty((h.shape[0], math.prod(h.shape[1:])), dtype=_checks.compute_dtype(h.dtype))


# ---- fakes -------------------------------------------------------------------------------------


def _fake_norm(h: Tensor, sigma: Tensor) -> Tensor:
    _checks.check_metric("mahalanobis_norm", h, sigma)
    return _row_values_like(h)


def _fake_norm_backward(grad_out: Tensor, h: Tensor, sigma: Tensor) -> _Gradients:
    return _contiguous_like(h), _sigma_rows_like(h)


def _fake_project(
    h: Tensor,
    sigma: Tensor,
    radius: float,
    radius_rows: Tensor | None,
    gamma: float,
    grid_points: int,
) -> Tensor:
    op = "project_mahalanobis_shell"
    _checks.check_metric_shell(op, h, sigma, _either(radius, radius_rows), gamma)
    return torch.empty_like(h)


def _fake_project_(
    h: Tensor,
    sigma: Tensor,
    radius: float,
    radius_rows: Tensor | None,
    gamma: float,
    grid_points: int,
) -> None:
    op = "project_mahalanobis_shell_"
    _checks.check_metric_shell(op, h, sigma, _either(radius, radius_rows), gamma)


def _fake_project_backward(grad_out: Tensor, h: Tensor, *rest: Any) -> _Gradients:
    return _contiguous_like(h), _sigma_rows_like(h), _row_values_like(h)


def _fake_step(
    h: Tensor,
    grad: Tensor,
    sigma: Tensor,
    step_size: float,
    radius: float,
    radius_rows: Tensor | None,
    gamma: float,
    grid_points: int,
) -> Tensor:
    op, either = "mahalanobis_shell_step", _either(radius, radius_rows)
    _checks.check_metric_step(op, h, grad, sigma, step_size, either, gamma)
    return torch.empty_like(h)


def _fake_step_(
    h: Tensor,
    grad: Tensor,
    sigma: Tensor,
    step_size: float,
    radius: float,
    radius_rows: Tensor | None,
    gamma: float,
    grid_points: int,
) -> None:
    op, either = "mahalanobis_shell_step_", _either(radius, radius_rows)
    _checks.check_metric_step(op, h, grad, sigma, step_size, either, gamma)


def _fake_step_backward(grad_out: Tensor, h: Tensor, *rest: Any) -> _Gradients:
    return _contiguous_like(h), _contiguous_like(h), _sigma_rows_like(h), _row_values_like(h)


def _either(radius: float, radius_rows: Tensor | None) -> float | Tensor:
    return radius if radius_rows is None else radius_rows


# ---- autograd ----------------------------------------------------------------------------------
# The backward formulas stand in csrc/math/mahalanobis_shell.h; nothing but the inputs is saved, the
# multiplier is solved for again.


def _sigma_gradient(sigma: Tensor, h: Tensor, grad_sigma: Tensor) -> Tensor:
    rows = grad_sigma.sum(0) if sigma.dim() < h.dim() else grad_sigma
    return rows.reshape(sigma.shape).to(sigma.dtype)


def _setup_norm(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    h, sigma = inputs
    ctx.save_for_backward(h, sigma)


def _backward_norm(ops: Any, ctx: Any, grad_out: Tensor) -> tuple[Any, ...]:
    h, sigma = ctx.saved_tensors
    grad_h, grad_sigma = ops._mahalanobis_norm_backward(grad_out, h, sigma)
    return grad_h, _sigma_gradient(sigma, h, grad_sigma)


def _setup_project(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    h, sigma, ctx.radius, rows, ctx.gamma, ctx.grid_points = inputs
    ctx.save_for_backward(h, sigma, rows)


def _backward_project(ops: Any, ctx: Any, grad_out: Tensor) -> tuple[Any, ...]:
    h, sigma, rows = ctx.saved_tensors
    grad_h, grad_sigma, grad_radius = ops._project_mahalanobis_shell_backward(
        grad_out, h, sigma, ctx.radius, rows, ctx.gamma, ctx.grid_points
    )
    grad_rows = grad_radius if rows is not None else None
    return grad_h, _sigma_gradient(sigma, h, grad_sigma), None, grad_rows, None, None


def _setup_step(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    h, grad, sigma, ctx.step_size, ctx.radius, rows, ctx.gamma, ctx.grid_points = inputs
    ctx.save_for_backward(h, grad, sigma, rows)


def _backward_step(ops: Any, ctx: Any, grad_out: Tensor) -> tuple[Any, ...]:
    h, grad, sigma, rows = ctx.saved_tensors
    grad_h, grad_grad, grad_sigma, grad_radius = ops._mahalanobis_shell_step_backward(
        grad_out, h, grad, sigma, ctx.step_size, ctx.radius, rows, ctx.gamma, ctx.grid_points
    )
    grad_rows = grad_radius if rows is not None else None
    return (
        grad_h,
        grad_grad,
        _sigma_gradient(sigma, h, grad_sigma),
        None,
        None,
        grad_rows,
        None,
        None,
    )


# ---- fallbacks for devices without kernels -----------------------------------------------------


def _eager_norm_backward(grad_out: Tensor, h: Tensor, sigma: Tensor) -> _Gradients:
    return tuple(g.contiguous() for g in reference.mahalanobis_norm_backward(grad_out, h, sigma))


def _eager_project(
    h: Tensor,
    sigma: Tensor,
    radius: float,
    radius_rows: Tensor | None,
    gamma: float,
    grid_points: int,
) -> Tensor:
    either = _either(radius, radius_rows)
    return _like(h, reference.project_mahalanobis_shell(h, sigma, either, gamma, grid_points))


def _eager_project_(h: Tensor, *args: Any) -> None:
    h.copy_(_eager_project(h, *args))


def _eager_project_backward(
    grad_out: Tensor,
    h: Tensor,
    sigma: Tensor,
    radius: float,
    radius_rows: Tensor | None,
    gamma: float,
    grid_points: int,
) -> _Gradients:
    gradients = reference.project_mahalanobis_shell_backward(
        grad_out, h, sigma, _either(radius, radius_rows), gamma, grid_points
    )
    return tuple(g.contiguous() for g in gradients)


def _eager_step(
    h: Tensor,
    grad: Tensor,
    sigma: Tensor,
    step_size: float,
    radius: float,
    radius_rows: Tensor | None,
    gamma: float,
    grid_points: int,
) -> Tensor:
    either = _either(radius, radius_rows)
    stepped = reference.mahalanobis_shell_step(
        h, grad, sigma, step_size, either, gamma, grid_points
    )
    return _like(h, stepped)


def _eager_step_(h: Tensor, *args: Any) -> None:
    h.copy_(_eager_step(h, *args))


def _eager_step_backward(
    grad_out: Tensor,
    h: Tensor,
    grad: Tensor,
    sigma: Tensor,
    step_size: float,
    radius: float,
    radius_rows: Tensor | None,
    gamma: float,
    grid_points: int,
) -> _Gradients:
    gradients = reference.mahalanobis_shell_step_backward(
        grad_out, h, grad, sigma, step_size, _either(radius, radius_rows), gamma, grid_points
    )
    return tuple(g.contiguous() for g in gradients)


def _like(h: Tensor, result: Tensor) -> Tensor:
    """Return the result in new memory with the layout of h, as the kernels make it."""
    return torch.empty_like(h).copy_(result)


# name -> (fake, fallback, position of sigma)
_IMPLEMENTATIONS: dict[str, tuple[Any, Any, int]] = {
    "mahalanobis_norm": (_fake_norm, reference.mahalanobis_norm, 1),
    "_mahalanobis_norm_backward": (_fake_norm_backward, _eager_norm_backward, 2),
    "project_mahalanobis_shell": (_fake_project, _eager_project, 1),
    "project_mahalanobis_shell_": (_fake_project_, _eager_project_, 1),
    "_project_mahalanobis_shell_backward": (_fake_project_backward, _eager_project_backward, 2),
    "mahalanobis_shell_step": (_fake_step, _eager_step, 2),
    "mahalanobis_shell_step_": (_fake_step_, _eager_step_, 2),
    "_mahalanobis_shell_step_backward": (_fake_step_backward, _eager_step_backward, 3),
}
_AUTOGRAD: dict[str, tuple[Any, Any]] = {
    "mahalanobis_norm": (_backward_norm, _setup_norm),
    "project_mahalanobis_shell": (_backward_project, _setup_project),
    "mahalanobis_shell_step": (_backward_step, _setup_step),
}


def register(kernels: Callable[[str], Any] | None = None, namespace: str = "drocc") -> None:
    """Register everything the operators have besides their native kernels.

    Args:
        kernels: Gives the implementation of an operator by its name; the eager one if None.
        namespace: Where the operators stand.
    """
    for name, (fake, fallback, sigma) in _IMPLEMENTATIONS.items():
        register_fake(name, fake, namespace)
        register_fallback(name, kernels(name) if kernels else fallback, namespace)
        register_vmap(name, mutates=name.endswith("_"), shared=sigma, namespace=namespace)
    for name, (backward, setup) in _AUTOGRAD.items():
        register_autograd(name, backward, setup, namespace)
        refuse_second_order(f"_{name}_backward", namespace)
        register_autocast(name, namespace)
