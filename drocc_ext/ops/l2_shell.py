"""The l2 shell: normalized gradient ascent, projection, and both in one pass (Algorithm 1)."""

from __future__ import annotations

from torch import Tensor

from drocc_ext.ops._call import call, call_in_place


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
    A row with a gradient of exactly zero does not move. An empty batch gives an empty result. NaN
    or infinity in a row makes that row NaN and touches no other.

    Raises:
        TypeError: On a dtype that is not floating or differs.
        ValueError: On a shape or device that differs, or a step size that is not finite.
    """
    return call("normalized_ascent", h, grad, step_size)


def project_l2_shell(h: Tensor, radius: float | Tensor, gamma: float) -> Tensor:
    """Nearest point of the shell `radius <= ||h||_2 <= gamma * radius` (Algorithm 1, step 3).

    Args:
        h: [B, *] float32, float64, float16 or bfloat16.
        radius: number > 0, or [B] floating tensor with one radius per row, in units of h. A tensor
            is not read on the host: a radius that is not positive and finite makes its row NaN.
        gamma: number >= 1, ratio of the outer to the inner radius; infinity means no outer bound.

    Returns:
        [B, *], dtype (under autocast float32) and device of `h`. Rows inside the shell come back
        unchanged.

    Differentiable with respect to h and a tensor radius (once; any number of times with the eager
    backend). A zero row goes to `radius` on its first coordinate (every direction is equally near;
    gradient 0 for h). An empty batch gives an empty result. NaN or infinity in a row makes that
    row NaN and touches no other.

    Raises:
        TypeError: On a dtype that is not floating.
        ValueError: On radius <= 0, gamma < 1 or a wrong shape or device.
    """
    return call("project_l2_shell", h, radius, gamma)


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
    eager backend). Rows with a zero gradient are only projected. An empty batch gives an empty
    result. NaN or infinity in a row makes that row NaN and touches no other.

    Raises:
        TypeError: On a dtype that is not floating or differs.
        ValueError: On radius <= 0, gamma < 1, a step size that is not finite, or a wrong shape or
            device.
    """
    return call("l2_shell_step", h, grad, step_size, radius, gamma)


def normalized_ascent_(h: Tensor, grad: Tensor, step_size: float) -> Tensor:
    """`normalized_ascent` in place; returns h.

    Raises:
        RuntimeError: If an argument requires grad while grad mode is on.
        ValueError: If h is expanded, and for the reasons of `normalized_ascent`.
    """
    return call_in_place("normalized_ascent", h, grad, step_size)


def project_l2_shell_(h: Tensor, radius: float | Tensor, gamma: float) -> Tensor:
    """`project_l2_shell` in place; returns h.

    Raises:
        RuntimeError: If an argument requires grad while grad mode is on.
        ValueError: If h is expanded, and for the reasons of `project_l2_shell`.
    """
    return call_in_place("project_l2_shell", h, radius, gamma)


def l2_shell_step_(
    h: Tensor, grad: Tensor, step_size: float, radius: float | Tensor, gamma: float
) -> Tensor:
    """`l2_shell_step` in place; returns h. Allocates nothing when h and grad share one layout.

    Raises:
        RuntimeError: If an argument requires grad while grad mode is on.
        ValueError: If h is expanded, and for the reasons of `l2_shell_step`.
    """
    return call_in_place("l2_shell_step", h, grad, step_size, radius, gamma)
