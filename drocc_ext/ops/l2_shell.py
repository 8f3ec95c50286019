"""The l2 shell: normalized gradient ascent, projection, and both in one pass (Algorithm 1)."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from drocc_ext.ops import _backend, _checks, _l2_shell_rules
from drocc_ext.ops.eager import l2_shell as reference


def normalized_ascent(h: Tensor, grad: Tensor, step_size: float) -> Tensor:
    """One step of normalized steepest ascent (Algorithm 1, step 2).

    `h + step_size * grad / ||grad||_2`, row by row.

    Args:
        h: [B, *] float32, float64, float16 or bfloat16.
        grad: [B, *], shape, dtype and device of `h`.
        step_size: length of the step in units of h; any finite number, negative descends.

    Returns:
        [B, *], dtype (under autocast float32) and device of `h`.

    Differentiable with respect to h and grad (once; any number of times with the eager backend).
    A row whose gradient is exactly zero does not move; an empty batch gives an empty result; NaN or
    infinity in a row makes that row NaN and touches no other.

    Raises:
        TypeError: On a dtype that is not floating or differs.
        ValueError: On a shape or device that differs, or a step size that is not finite.
    """
    op = "normalized_ascent"
    step_size = _checks.check_ascent(op, h, grad, step_size)
    kernels = _backend.kernels(op, h)
    if kernels is None:
        h, grad = _checks.autocast(h, grad)
        return reference.normalized_ascent(h, grad, step_size)
    result: Tensor = kernels.normalized_ascent(h, grad, step_size)
    return result


def project_l2_shell(h: Tensor, radius: float | Tensor, gamma: float) -> Tensor:
    """Nearest point of the shell `radius <= ||h||_2 <= gamma * radius` (Algorithm 1, step 3).

    Args:
        h: [B, *] float32, float64, float16 or bfloat16.
        radius: number > 0, or [B] floating tensor with one radius per row, in units of h. A tensor
            is not read on the host: a row whose radius is not positive and finite becomes NaN.
        gamma: number >= 1, ratio of the outer to the inner radius; infinity means no outer bound.

    Returns:
        [B, *], dtype (under autocast float32) and device of `h`. Rows inside the shell come back
        unchanged.

    Differentiable with respect to h and a tensor radius (once; any number of times with the eager
    backend). A zero row goes to `radius` on its first coordinate (every direction is equally near;
    gradient 0 for h); an empty batch gives an empty result; NaN or infinity in a row makes that
    row NaN and touches no other.

    Raises:
        TypeError: On a dtype that is not floating.
        ValueError: On radius <= 0, gamma < 1 or a wrong shape or device.
    """
    op = "project_l2_shell"
    radius, rows, gamma = _checks.check_shell(op, h, radius, gamma)
    kernels = _backend.kernels(op, h)
    if kernels is None:
        (h,) = _checks.autocast(h)
        return reference.project_l2_shell(h, radius if rows is None else rows, gamma)
    result: Tensor = kernels.project_l2_shell(h, radius, rows, gamma)
    return result


def l2_shell_step(
    h: Tensor, grad: Tensor, step_size: float, radius: float | Tensor, gamma: float
) -> Tensor:
    """Ascent and projection in one pass: a whole step of DROCC's search (Algorithm 1, steps 2-3).

    Equivalent to `project_l2_shell(normalized_ascent(h, grad, step_size), radius, gamma)`, rounded
    once. Arguments, gradients, edge rows and errors are those of the two.

    Args:
        h: [B, *] float32, float64, float16 or bfloat16.
        grad: [B, *], shape, dtype and device of `h`.
        step_size: length of the step in units of h; any finite number.
        radius: number > 0, or [B] floating tensor with one radius per row, in units of h.
        gamma: number >= 1; infinity means no outer bound.

    Returns:
        [B, *], dtype (under autocast float32) and device of `h`.

    Differentiable with respect to h, grad and a tensor radius (once; any number of times with the
    eager backend). Zero gradient rows are only projected; empty batches give an empty result; NaN
    or infinity in a row makes that row NaN and touches no other.

    Raises:
        TypeError: On a dtype that is not floating or differs.
        ValueError: On radius <= 0, gamma < 1, a step size that is not finite, or a wrong shape or
            device.
    """
    op = "l2_shell_step"
    step_size, radius, rows, gamma = _checks.check_step(op, h, grad, step_size, radius, gamma)
    kernels = _backend.kernels(op, h)
    if kernels is None:
        h, grad = _checks.autocast(h, grad)
        return reference.l2_shell_step(h, grad, step_size, radius if rows is None else rows, gamma)
    result: Tensor = kernels.l2_shell_step(h, grad, step_size, radius, rows, gamma)
    return result


def normalized_ascent_(h: Tensor, grad: Tensor, step_size: float) -> Tensor:
    """`normalized_ascent` in place; returns h.

    Raises:
        RuntimeError: If an argument requires grad while grad mode is on.
        ValueError: If h is expanded, and for the reasons of `normalized_ascent`.
    """
    op = "normalized_ascent_"
    check = partial(_checks.check_ascent, op, h, grad, step_size)
    if type(step_size) is not float:
        step_size = check()
    _checks.check_in_place(op, h, grad)
    kernels = _backend.kernels(op, h)
    if kernels is None:
        check()
        return h.copy_(reference.normalized_ascent(h, grad, step_size))
    _checks.call_in_place(op, kernels.normalized_ascent_.default, check, h, grad, step_size)
    return h


def project_l2_shell_(h: Tensor, radius: float | Tensor, gamma: float) -> Tensor:
    """`project_l2_shell` in place; returns h.

    Raises:
        RuntimeError: If an argument requires grad while grad mode is on.
        ValueError: If h is expanded, and for the reasons of `project_l2_shell`.
    """
    op = "project_l2_shell_"
    check = partial(_checks.check_shell, op, h, radius, gamma)
    rows = None
    if not (type(radius) is type(gamma) is float):
        radius, rows, gamma = check()
    _checks.check_in_place(op, h, rows)
    kernels = _backend.kernels(op, h)
    if kernels is None:
        check()
        return h.copy_(reference.project_l2_shell(h, radius if rows is None else rows, gamma))
    _checks.call_in_place(op, kernels.project_l2_shell_.default, check, h, radius, rows, gamma)
    return h


def l2_shell_step_(
    h: Tensor, grad: Tensor, step_size: float, radius: float | Tensor, gamma: float
) -> Tensor:
    """`l2_shell_step` in place; returns h. Allocates nothing when h and grad share one layout.

    Raises:
        RuntimeError: If an argument requires grad while grad mode is on.
        ValueError: If h is expanded, and for the reasons of `l2_shell_step`.
    """
    op = "l2_shell_step_"
    check = partial(_checks.check_step, op, h, grad, step_size, radius, gamma)
    rows = None
    if not (type(step_size) is type(radius) is type(gamma) is float):
        step_size, radius, rows, gamma = check()
    _checks.check_in_place(op, h, grad, rows)
    kernels = _backend.kernels(op, h)
    if kernels is None:
        check()
        rows_or_number = radius if rows is None else rows
        return h.copy_(reference.l2_shell_step(h, grad, step_size, rows_or_number, gamma))
    _checks.call_in_place(
        op, kernels.l2_shell_step_.default, check, h, grad, step_size, radius, rows, gamma
    )
    return h


_l2_shell_rules.register()
