"""The multiplier of Proposition 1 in eager PyTorch; csrc/math/secular.h says how it comes about.

With t = 1 + tau * s_max the nearest point of the ellipsoid `||x||_S = R` is
`x_j = d_j / (b_j + t w_j)`, where `w_j = sigma_j / s_max` and `b_j = 1 - w_j`. What is solved for t
is `F(t) = sum_j w_j (u_j / (b_j + t w_j))^2 = 1` with `u_j = d_j sqrt(s_max) / R`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

# Convergence is quadratic from the left; no row that was tried takes more than 22 steps.
_MOST_STEPS = 64
_STEPS_UNSEEN = 32


class Equation(NamedTuple):
    """The equations of N rows.

    Attributes:
        u, w, b: `[N, D]`, see above.
        tied: `[N, D]`, where sigma is the largest of its row, so that b = 0.
        unit: `[N, 1]`, R / sqrt(s_max): d = u * unit.
    """

    u: Tensor
    w: Tensor
    b: Tensor
    tied: Tensor
    unit: Tensor

    def length(self) -> Tensor:
        """Return sqrt(F(1)), `[N]`: ||d||_S / R, without overflow on the way."""
        size = self.u.abs().amax(1, keepdim=True)
        scaled = torch.where(size > 0, self.u / torch.where(size > 0, size, 1.0), 0.0)
        return (self.w * scaled * scaled).sum(1).sqrt() * size[:, 0]

    def quotients(self, t: Tensor) -> Tensor:
        """Return 1 / (b + t w), which brings d to x; t is `[N]` and positive."""
        return 1 / (self.b + t[:, None] * self.w)

    def value(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return F(t) and -F'(t) / 2, both `[N]`; t is positive."""
        return self._value(self.quotients(t))

    def value_without_tied(self) -> tuple[Tensor, Tensor]:
        """Return the same at t = 0, leaving out the coordinates that have a pole there."""
        return self._value(torch.where(self.tied, 0.0, 1 / torch.where(self.tied, 1.0, self.b)))

    def _value(self, q: Tensor) -> tuple[Tensor, Tensor]:
        v = self.u * q
        share = self.w * v * v
        return share.sum(1), (share * self.w * q).sum(1)


def newton_step(equation: Equation, t: Tensor) -> Tensor:
    """One step for 1 / sqrt(F) = 1, whose left side is increasing and concave in t."""
    f, slope = equation.value(t)
    after = t + f / slope * (f.sqrt() - 1)
    return torch.where(after <= 0, t, after)  # rounding only; NaN stays


def solve(equation: Equation, near: Tensor) -> tuple[Tensor, Tensor]:
    """Find the roots t, `[N]`, and where there is none (the hard case: t is 0 there).

    Args:
        equation: Of rows outside the shell.
        near: True for rows below the inner radius, with a root in [0, 1); False for rows beyond
            the outer one, with a root above 1.
    """
    one = torch.ones_like(equation.u[:, 0])
    tiny, eps = torch.finfo(one.dtype).tiny, torch.finfo(one.dtype).eps
    # By concavity a step from t = 1 ends left of the root, as every start has to lie.
    from_one = newton_step(equation, one).nan_to_num(0.0, posinf=0.0)
    pole = torch.where(equation.tied, equation.u.abs(), 0.0).amax(1)
    f0, slope0 = equation.value_without_tied()
    poleless = near & (pole < tiny)
    hard = poleless & (f0 < 1)
    from_zero = (f0 / slope0 * (f0.sqrt() - 1)).nan_to_num(0.0)
    # Far out b + t w <= t, so that sqrt(F(t)) >= length / t.
    start = torch.where(near, torch.where(poleless, from_zero, pole), equation.length())
    left = start.clamp_min(tiny)
    t = torch.maximum(left, from_one)
    readable = _may_read(t)
    for _ in range(_MOST_STEPS if readable else _STEPS_UNSEEN):
        f, slope = equation.value(t)
        away = f.sqrt() - 1
        after = t + f / slope * away
        # Where the root is tiny, rounding may have put the start on its right.
        after = torch.where(away < 0, torch.maximum(after, left), after)
        moving = ~hard & torch.where(away > 0, (away > 4 * eps) & (after > t), after < t)
        moving = moving & (away.abs() > 4 * eps)
        t = torch.where(moving, after, t)
        if readable and not bool(moving.any()):
            break
    return torch.where(hard, torch.zeros_like(t), t), hard


def solve_on_grid(
    equation: Equation, near: Tensor, grid_points: int, fallback: Tensor
) -> tuple[Tensor, Tensor]:
    """Try every point of the paper's grid (section 4): the best feasible one.

    The grid is even in tau (near) or 1 / tau (far) between the bounds of section 4; its first point
    is singular and left out.

    Args:
        equation: Of rows outside the shell.
        near: As in `solve`.
        grid_points: Number K of points, >= 2.
        fallback: `[N]`, t where no point is feasible.

    Returns:
        t, `[N]`, and whether it is a point of the grid.
    """
    length = equation.length()
    tolerance = 16 * torch.finfo(fallback.dtype).eps
    best = fallback
    found = torch.zeros_like(near)
    least = torch.full_like(fallback, torch.inf)
    for k in range(1, grid_points):
        t = grid_point(k, grid_points, near, length)
        q = equation.quotients(t)
        f, _ = equation._value(q)
        feasible = torch.where(near, f >= 1 - tolerance, f <= 1 + tolerance)
        moved = equation.u * (q * (t[:, None] - 1) * equation.w)  # (d - x) sqrt(s_max) / R
        objective = (moved * moved).sum(1)
        # The distance falls with k, but very far out by less than its rounding.
        better = feasible & (objective <= least * (1 + tolerance))
        best = torch.where(better, t, best)
        least = torch.where(better, objective, least)
        found = found | better
    return best, found


def grid_point(k: int, grid_points: int, near: Tensor, length: Tensor) -> Tensor:
    """Return t at the k-th grid point, 1 <= k < grid_points; length is ||d||_S / R."""
    even = torch.full_like(length, k / (grid_points - 1))
    return torch.where(near, even, 1 + (length - 1) * (grid_points - 1) / k)


def _may_read(t: Tensor) -> bool:
    """Say whether values may decide how long a loop runs: not in traces, not on accelerators."""
    if t.device.type != "cpu" or torch.compiler.is_compiling() or forward_ad._current_level >= 0:
        return False
    return torch._C._functorch.maybe_current_level() is None
