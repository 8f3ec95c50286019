"""The Mahalanobis shell: Proposition 1, the ascent step with it (Algorithm 2), and the norm."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from drocc_ext.ops._call import call, call_in_place
from drocc_ext.ops._checks import check_solver

Solver = Literal["newton", "grid"]


def mahalanobis_norm(h: Tensor, sigma: Tensor) -> Tensor:
    """Length of each row in the metric of sigma, `sqrt(sum_j sigma_j h_j^2)` (eq. (2)).

    Args:
        h: [B, *] float32, float64, float16 or bfloat16.
        sigma: [*] or [B, *], dtype and device of `h`, >= 0; the diagonal of Sigma, for all rows or
            for each.

    Returns:
        [B], float32 (float64 for a float64 h), device of `h`.

    Differentiable with respect to h and sigma (once; any number of times with the eager backend). A
    row of length 0 gets gradient 0. An empty batch gives an empty result. NaN, infinity or a
    negative sigma in a row makes its length NaN and touches no other.

    Raises:
        TypeError: On a dtype that is not floating or differs.
        ValueError: On a wrong shape or device.
    """
    return call("mahalanobis_norm", h, sigma)


def project_mahalanobis_shell(
    h: Tensor,
    sigma: Tensor,
    radius: float | Tensor,
    gamma: float,
    solver: Solver = "newton",
    grid_points: int = 64,
) -> Tensor:
    """Nearest point, in l2, of the shell `radius <= ||h||_S <= gamma * radius` (Proposition 1).

    `||h||_S = sqrt(sum_j sigma_j h_j^2)`. The nearest point is `h_j / (1 + tau sigma_j)`. "newton"
    finds tau such that shell and distance are right to rounding. "grid" is the paper's search over
    `grid_points` even values of tau, or of its inverse. Its points lie in the shell, farther from h
    than necessary: a row just beyond a bound moves by a whole step of the grid. If no value of the
    grid is feasible, "grid" gives the exact answer.

    Args:
        h: [B, *] float32, float64, float16 or bfloat16.
        sigma: [*] or [B, *], dtype and device of `h`, >= 0; for all rows or for each. Values are
            not read on the host.
        radius: number > 0, or [B] floating tensor with one radius per row, in units of the metric.
            A tensor is not read on the host: a radius that is not positive and finite (in float32,
            unless h is float64) makes its row NaN.
        gamma: number >= 1, ratio of the outer to the inner radius; infinity means no outer bound.
        solver: "newton" or "grid".
        grid_points: number K of points of the grid, >= 2; not used by "newton".

    Returns:
        [B, *], dtype (under autocast float32) and device of `h`. Rows inside the shell come back
        unchanged.

    Differentiable with respect to h, sigma and a tensor radius (once; any number of times with the
    eager backend), by the implicit function theorem; for "grid" the same formula at its tau, an
    approximation. A coordinate with sigma = 0 does not move. Where all coordinates of largest sigma
    are 0 and the others cannot reach the inner shell, those of largest sigma take the missing
    length: in the direction they have, or the first of them if they are exactly 0 (every direction
    is equally near). Beside such rows the gradients of the eager backend lose digits like
    eps / (1 + tau max sigma). A float64 row may become NaN if it is more than about 1e150 radii
    long or if its weights differ by more than 300 decades. A row with sigma 0 throughout comes back
    unchanged. An empty batch gives an empty result. NaN, infinity or a negative sigma in a row
    makes that row NaN and touches no other.

    Raises:
        TypeError: On a dtype that is not floating or differs.
        ValueError: On radius <= 0, gamma < 1, grid_points < 2, an unknown solver, or a wrong shape
            or device.
    """
    points = check_solver("project_mahalanobis_shell", solver, grid_points)
    return call("project_mahalanobis_shell", h, sigma, radius, gamma, points)


def mahalanobis_shell_step(
    h: Tensor,
    grad: Tensor,
    sigma: Tensor,
    step_size: float,
    radius: float | Tensor,
    gamma: float,
    solver: Solver = "newton",
    grid_points: int = 64,
) -> Tensor:
    """Ascent and projection in one: a whole step of DROCC-LF's search (Algorithm 2, steps 2-3).

    Equivalent to `project_mahalanobis_shell(normalized_ascent(h, grad, step_size), sigma, radius,
    gamma, ...)`, rounded once. Arguments, gradients, edge rows and errors are those of the two.

    Args:
        h: [B, *] float32, float64, float16 or bfloat16.
        grad: [B, *], shape, dtype and device of `h`.
        sigma: [*] or [B, *], dtype and device of `h`, >= 0.
        step_size: length of the step in units of h (in l2, not in the metric); any finite number.
        radius: number > 0, or [B] floating tensor with one radius per row, in units of the metric.
        gamma: number >= 1; infinity means no outer bound.
        solver: "newton" or "grid".
        grid_points: number K of points of the grid, >= 2; not used by "newton".

    Returns:
        [B, *], dtype (under autocast float32) and device of `h`.

    Differentiable with respect to h, grad, sigma and a tensor radius (once; any number of times
    with the eager backend). Rows with a zero gradient are only projected. An empty batch gives an
    empty result. NaN, infinity or a negative sigma in a row makes that row NaN and touches no
    other.

    Raises:
        TypeError: On a dtype that is not floating or differs.
        ValueError: On radius <= 0, gamma < 1, a step size that is not finite, grid_points < 2, an
            unknown solver, or a wrong shape or device.
    """
    points = check_solver("mahalanobis_shell_step", solver, grid_points)
    return call("mahalanobis_shell_step", h, grad, sigma, step_size, radius, gamma, points)


def project_mahalanobis_shell_(
    h: Tensor,
    sigma: Tensor,
    radius: float | Tensor,
    gamma: float,
    solver: Solver = "newton",
    grid_points: int = 64,
) -> Tensor:
    """`project_mahalanobis_shell` in place; returns h.

    Raises:
        RuntimeError: If an argument requires grad while grad mode is on.
        ValueError: If h is expanded, and for the reasons of `project_mahalanobis_shell`.
    """
    points = check_solver("project_mahalanobis_shell_", solver, grid_points)
    return call_in_place("project_mahalanobis_shell", h, sigma, radius, gamma, points)


def mahalanobis_shell_step_(
    h: Tensor,
    grad: Tensor,
    sigma: Tensor,
    step_size: float,
    radius: float | Tensor,
    gamma: float,
    solver: Solver = "newton",
    grid_points: int = 64,
) -> Tensor:
    """`mahalanobis_shell_step` in place; returns h.

    Raises:
        RuntimeError: If an argument requires grad while grad mode is on.
        ValueError: If h is expanded, and for the reasons of `mahalanobis_shell_step`.
    """
    points = check_solver("mahalanobis_shell_step_", solver, grid_points)
    return call_in_place("mahalanobis_shell_step", h, grad, sigma, step_size, radius, gamma, points)
