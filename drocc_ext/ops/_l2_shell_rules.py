"""Fakes, autograd formulas and eager fallbacks of the l2 shell operators."""

from __future__ import annotations

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
from drocc_ext.ops.eager import l2_shell as reference

# ---- fakes -------------------------------------------------------------------------------------


def _radius_gradient_like(h: Tensor) -> Tensor:
    return h.new_empty(h.shape[0], dtype=_checks.compute_dtype(h.dtype))


def _contiguous_like(h: Tensor) -> Tensor:
    return torch.empty_like(h, memory_format=torch.contiguous_format)


def _check_pair(rows: Tensor | None, radius: float, h: Tensor, op: str) -> None:
    _checks.split_radius(op, radius if rows is None else rows, h)


def _fake_normalized_ascent(h: Tensor, grad: Tensor, step_size: float) -> Tensor:
    _checks.check_ascent("normalized_ascent", h, grad, step_size)
    return torch.empty_like(h)


def _fake_normalized_ascent_(h: Tensor, grad: Tensor, step_size: float) -> None:
    _checks.check_ascent("normalized_ascent_", h, grad, step_size)


def _fake_normalized_ascent_backward(grad_out: Tensor, grad: Tensor, step_size: float) -> Tensor:
    return _contiguous_like(grad)


def _fake_project_l2_shell(
    h: Tensor, radius: float, radius_rows: Tensor | None, gamma: float
) -> Tensor:
    _check_pair(radius_rows, radius, h, "project_l2_shell")
    return torch.empty_like(h)


def _fake_project_l2_shell_(
    h: Tensor, radius: float, radius_rows: Tensor | None, gamma: float
) -> None:
    _check_pair(radius_rows, radius, h, "project_l2_shell_")


def _fake_project_l2_shell_backward(
    grad_out: Tensor, h: Tensor, radius: float, radius_rows: Tensor | None, gamma: float
) -> tuple[Tensor, Tensor]:
    return _contiguous_like(h), _radius_gradient_like(h)


def _fake_l2_shell_step(
    h: Tensor,
    grad: Tensor,
    step_size: float,
    radius: float,
    radius_rows: Tensor | None,
    gamma: float,
) -> Tensor:
    _checks.check_ascent("l2_shell_step", h, grad, step_size)
    _check_pair(radius_rows, radius, h, "l2_shell_step")
    return torch.empty_like(h)


def _fake_l2_shell_step_(
    h: Tensor,
    grad: Tensor,
    step_size: float,
    radius: float,
    radius_rows: Tensor | None,
    gamma: float,
) -> None:
    _checks.check_ascent("l2_shell_step_", h, grad, step_size)
    _check_pair(radius_rows, radius, h, "l2_shell_step_")


def _fake_l2_shell_step_backward(
    grad_out: Tensor,
    h: Tensor,
    grad: Tensor,
    step_size: float,
    radius: float,
    radius_rows: Tensor | None,
    gamma: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return _contiguous_like(h), _contiguous_like(h), _radius_gradient_like(h)


# ---- autograd ----------------------------------------------------------------------------------
# The backward formulas stand in csrc/math/l2_shell.h; nothing but the inputs is saved.


def _setup_ascent(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, grad, ctx.step_size = inputs
    ctx.save_for_backward(grad)


def _backward_ascent(ops: Any, ctx: Any, grad_out: Tensor) -> tuple[Any, ...]:
    (grad,) = ctx.saved_tensors
    needed = ctx.needs_input_grad[1]
    return (
        grad_out,
        ops._normalized_ascent_backward(grad_out, grad, ctx.step_size) if needed else None,
        None,
    )


def _setup_project(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    h, ctx.radius, rows, ctx.gamma = inputs
    ctx.save_for_backward(h, rows)


def _backward_project(ops: Any, ctx: Any, grad_out: Tensor) -> tuple[Any, ...]:
    h, rows = ctx.saved_tensors
    grad_h, grad_radius = ops._project_l2_shell_backward(grad_out, h, ctx.radius, rows, ctx.gamma)
    return grad_h, None, grad_radius if rows is not None else None, None


def _setup_step(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    h, grad, ctx.step_size, ctx.radius, rows, ctx.gamma = inputs
    ctx.save_for_backward(h, grad, rows)


def _backward_step(ops: Any, ctx: Any, grad_out: Tensor) -> tuple[Any, ...]:
    h, grad, rows = ctx.saved_tensors
    grad_h, grad_grad, grad_radius = ops._l2_shell_step_backward(
        grad_out, h, grad, ctx.step_size, ctx.radius, rows, ctx.gamma
    )
    return grad_h, grad_grad, None, None, grad_radius if rows is not None else None, None


# ---- fallbacks for devices without kernels -----------------------------------------------------


def _eager_normalized_ascent_(h: Tensor, grad: Tensor, step_size: float) -> None:
    h.copy_(reference.normalized_ascent(h, grad, step_size))


def _eager_project(h: Tensor, radius: float, radius_rows: Tensor | None, gamma: float) -> Tensor:
    return reference.project_l2_shell(h, radius if radius_rows is None else radius_rows, gamma)


def _eager_project_(h: Tensor, radius: float, radius_rows: Tensor | None, gamma: float) -> None:
    h.copy_(_eager_project(h, radius, radius_rows, gamma))


def _eager_step(
    h: Tensor,
    grad: Tensor,
    step_size: float,
    radius: float,
    radius_rows: Tensor | None,
    gamma: float,
) -> Tensor:
    rows_or_number = radius if radius_rows is None else radius_rows
    return reference.l2_shell_step(h, grad, step_size, rows_or_number, gamma)


def _eager_step_(
    h: Tensor,
    grad: Tensor,
    step_size: float,
    radius: float,
    radius_rows: Tensor | None,
    gamma: float,
) -> None:
    h.copy_(_eager_step(h, grad, step_size, radius, radius_rows, gamma))


def _eager_normalized_ascent_backward(grad_out: Tensor, grad: Tensor, step_size: float) -> Tensor:
    return reference.normalized_ascent_backward(grad_out, grad, step_size).contiguous()


def _eager_project_backward(
    grad_out: Tensor, h: Tensor, radius: float, radius_rows: Tensor | None, gamma: float
) -> tuple[Tensor, Tensor]:
    rows_or_number = radius if radius_rows is None else radius_rows
    grad_h, grad_radius = reference.project_l2_shell_backward(grad_out, h, rows_or_number, gamma)
    return grad_h.contiguous(), grad_radius


def _eager_step_backward(
    grad_out: Tensor,
    h: Tensor,
    grad: Tensor,
    step_size: float,
    radius: float,
    radius_rows: Tensor | None,
    gamma: float,
) -> tuple[Tensor, Tensor, Tensor]:
    rows_or_number = radius if radius_rows is None else radius_rows
    grad_h, grad_grad, grad_radius = reference.l2_shell_step_backward(
        grad_out, h, grad, step_size, rows_or_number, gamma
    )
    return grad_h.contiguous(), grad_grad.contiguous(), grad_radius


# name -> (fake, fallback)
_IMPLEMENTATIONS: dict[str, tuple[Any, Any]] = {
    "normalized_ascent": (_fake_normalized_ascent, reference.normalized_ascent),
    "normalized_ascent_": (_fake_normalized_ascent_, _eager_normalized_ascent_),
    "_normalized_ascent_backward": (
        _fake_normalized_ascent_backward,
        _eager_normalized_ascent_backward,
    ),
    "project_l2_shell": (_fake_project_l2_shell, _eager_project),
    "project_l2_shell_": (_fake_project_l2_shell_, _eager_project_),
    "_project_l2_shell_backward": (_fake_project_l2_shell_backward, _eager_project_backward),
    "l2_shell_step": (_fake_l2_shell_step, _eager_step),
    "l2_shell_step_": (_fake_l2_shell_step_, _eager_step_),
    "_l2_shell_step_backward": (_fake_l2_shell_step_backward, _eager_step_backward),
}
_AUTOGRAD: dict[str, tuple[Any, Any]] = {
    "normalized_ascent": (_backward_ascent, _setup_ascent),
    "project_l2_shell": (_backward_project, _setup_project),
    "l2_shell_step": (_backward_step, _setup_step),
}


def register(kernels: Callable[[str], Any] | None = None, namespace: str = "drocc") -> None:
    """Register everything the operators have besides their native kernels.

    Args:
        kernels: Gives the implementation of an operator by its name; the eager one if None.
        namespace: Where the operators stand.
    """
    for name, (fake, fallback) in _IMPLEMENTATIONS.items():
        register_fake(name, fake, namespace)
        register_fallback(name, kernels(name) if kernels else fallback, namespace)
        register_vmap(name, mutates=name.endswith("_"), namespace=namespace)
    for name, (backward, setup) in _AUTOGRAD.items():
        register_autograd(name, backward, setup, namespace)
        refuse_second_order(f"_{name}_backward", namespace)
        register_autocast(name, namespace)
