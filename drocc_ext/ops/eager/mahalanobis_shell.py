"""The Mahalanobis shell operators in eager PyTorch, differentiable any number of times.

Every function takes `h`, `grad`: `[B, *]`; `sigma`: `[*]` or `[B, *]`, >= 0; `radius`: a number or
`[B]`; and computes in float64 (float32 on devices without it), row by row. `grid_points` 0 stands
for the exact solver. See `drocc_ext.ops` for the meaning of the arguments.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from drocc_ext.ops.eager import l2_shell
from drocc_ext.ops.eager.rows import row_scale
from drocc_ext.ops.eager.secular import Equation, newton_step, solve, solve_on_grid


def _wide(t: Tensor) -> Tensor:
    return t.float() if t.device.type == "mps" else t.double()


def _rows(t: Tensor, h: Tensor) -> Tensor:
    """Return h, grad, or a sigma that all rows may share, as wide rows `[B, D]`."""
    return _wide(t).expand(h.shape).reshape(h.shape[0], math.prod(h.shape[1:]))


def _narrow(rows: Tensor, h: Tensor) -> Tensor:
    """Bring wide rows to the shape, dtype and memory layout of h."""
    result = rows.reshape(h.shape).to(h.dtype)
    if result.stride() == h.stride():
        return result
    strides = h.stride()
    order = sorted(range(h.dim()), key=lambda dim: -strides[dim])
    back = [order.index(dim) for dim in range(h.dim())]
    return result.permute(order).contiguous().permute(back)


def _inner(radius: float | Tensor, h: Tensor) -> Tensor:
    """Return the radii, `[B]`, rounded to the compute type of h as every backend does."""
    compute = torch.float64 if h.dtype == torch.float64 else torch.float32
    radii = torch.as_tensor(radius, dtype=compute, device=h.device)
    return _wide(radii.expand(h.shape[0]))


def _equation(d: Tensor, sigma: Tensor, bound: Tensor) -> Equation:
    """Set up the equation of `||x||_S = bound`, differentiable in all three.

    Any constant may stand for s_max, t only means something else then: it gets no gradient.
    """
    s_scale = row_scale(sigma)[0][:, None]
    scaled = sigma * s_scale
    top = scaled.detach().amax(1, keepdim=True)
    tied = (scaled.detach() == top) & (top > 0)
    top = torch.where(top > 0, top, 1.0)
    # Both d and the length it is compared with fit the scale. Without a weight a coordinate takes
    # no part, whatever its size.
    wanted = bound.detach()[:, None] * (s_scale.sqrt() / top.sqrt())
    sizes = torch.cat([torch.where(sigma > 0, d, 0.0).detach(), wanted], 1)
    d_scale = row_scale(sizes)[0][:, None]
    # Scaled and scaled back by powers of two: neither side leaves the range that u needs.
    scaled_unit = bound[:, None] * d_scale * (s_scale.sqrt() / top.sqrt())
    u = d * d_scale / scaled_unit
    return Equation(
        # Without a weight it may be too large for the products it then has no part in.
        u=torch.where((sigma > 0) | (u.abs() < torch.finfo(u.dtype).max ** 0.4), u, 0.0),
        w=scaled / top,
        b=(top - scaled) / top,
        tied=tied,
        unit=scaled_unit / d_scale,
    )


class _Shell(NamedTuple):
    """Where rows lie, masks `[B]`, and the multipliers t, `[B]`, of those outside."""

    near: Tensor
    far: Tensor
    bad: Tensor
    hard: Tensor
    on_grid: Tensor
    t: Tensor

    @property
    def outside(self) -> Tensor:
        return self.near | self.far

    def factor(self, gamma: float) -> Tensor:
        """Return gamma for far rows, else 1."""
        # An infinite gamma (no row is far then) is kept out of products: no 0 * inf.
        ones = torch.ones_like(self.t)
        return torch.where(self.far, ones * min(gamma, torch.finfo(ones.dtype).max), ones)

    def bound(self, inner: Tensor, gamma: float) -> Tensor:
        """Return the bound that rows are brought to; 1 for the others."""
        return torch.where(self.outside, inner, 1.0) * self.factor(gamma)


def _place(d: Tensor, sigma: Tensor, inner: Tensor, gamma: float, grid_points: int) -> _Shell:
    with torch.no_grad():
        d, sigma, inner = d.detach(), sigma.detach(), inner.detach()
        bad = row_scale(d)[1].isnan() | row_scale(sigma)[1].isnan() | (sigma < 0).any(1)
        bad = bad | ~(inner > 0) | inner.isinf()
        d = torch.where(bad[:, None], 1.0, d)
        sigma = torch.where(bad[:, None], 1.0, sigma)
        inner = torch.where(bad, 1.0, inner)
        length = _equation(d, sigma, inner).length()
        # Without any sigma > 0 there is neither a length nor a point to project to.
        usable = ~bad & (sigma > 0).any(1)
        bad = bad | (usable & ~length.isfinite())
        near, far = usable & (length < 1), usable & (length > gamma)
        none = torch.zeros_like(near)
        shell = _Shell(near, far, bad, none, none, torch.ones_like(inner))
        equation = _equation(d, sigma, shell.bound(inner, gamma))
        # Ratios beyond the range of the type: not computable.
        lost = ~(equation.unit[:, 0].isfinite() & (equation.unit[:, 0] > 0))
        lost = lost | ~equation.length().isfinite()
        bad = bad | ((near | far) & lost)
        near, far = near & ~bad, far & ~bad
        shell = _Shell(near, far, bad, none, none, torch.ones_like(inner))
        equation = _equation(d, sigma, shell.bound(inner, gamma))
        t, hard = solve(equation, near)
        on_grid = none
        if grid_points:
            t, on_grid = solve_on_grid(equation, near, grid_points, t)
        outside = shell.outside
        t = torch.where(outside, t, 1.0)
        return _Shell(near, far, bad, outside & hard & ~on_grid, outside & on_grid, t)


def _project(d: Tensor, sigma: Tensor, inner: Tensor, gamma: float, grid_points: int) -> Tensor:
    """Project wide rows `[B, D]`."""
    if d.numel() == 0:
        return d + 0 * sigma + 0 * inner[:, None]  # of no elements, but connected
    shell = _place(d, sigma, inner, gamma, grid_points)
    # Rows that stay get harmless values here, so that no gradient through them is NaN.
    outside = shell.outside[:, None]
    safe_d, safe_sigma = torch.where(outside, d, 1.0), torch.where(outside, sigma, 1.0)
    bound = shell.bound(inner, gamma)
    if grid_points:
        bound = _for_grid(shell, safe_d, safe_sigma, bound)
    equation = _equation(safe_d, safe_sigma, bound)
    hard = shell.hard[:, None]
    moved = torch.where(
        hard, _hard(shell, equation, safe_d), _regular(shell, equation, safe_d, gamma)
    )
    result = torch.where(outside, moved, d)
    return _poisoned(result, shell.bad, sigma, inner)


def _poisoned(result: Tensor, bad: Tensor, sigma: Tensor, inner: Tensor) -> Tensor:
    """Make bad rows NaN, and with them the gradients of all that they come from."""
    poison = torch.zeros_like(inner).masked_fill(bad, torch.nan)
    taint = (sigma * poison[:, None]).sum(1) + inner * poison
    return result * (1 + poison)[:, None] + taint[:, None]


def _for_grid(shell: _Shell, d: Tensor, sigma: Tensor, bound: Tensor) -> Tensor:
    """Return the same bounds with the derivative that Newton's formula has for them.

    The formula takes F = 1 for granted, of a grid point only the multiplier: dF / F there.
    """
    fixed = bound.detach()
    f, _ = _equation(d.detach(), sigma.detach(), fixed).value(torch.where(shell.hard, 1.0, shell.t))
    return fixed * (bound / fixed) ** torch.where(shell.on_grid, 1 / f, 1.0)


def _regular(shell: _Shell, equation: Equation, d: Tensor, gamma: float) -> Tensor:
    hard = shell.hard[:, None]
    u, w = torch.where(hard, 1.0, equation.u), torch.where(hard, 1.0, equation.w)
    safe = equation._replace(u=u, w=w, b=torch.where(hard, 0.0, equation.b))
    t = torch.where(shell.hard, 1.0, shell.t)
    # Two steps from the root do not move it, and make its first three derivatives right.
    exact = newton_step(safe, newton_step(safe, t))
    f, slope = safe.value(t)
    kept = t + (f - f.detach()) / (2 * slope.detach())  # where F keeps its value
    t = torch.where(shell.on_grid, kept, exact)
    x = d * safe.quotients(t)
    rescaling = _rescaling(shell, safe.value(t)[0].sqrt(), gamma)
    # The formula is that of the point before it is brought back into the shell.
    rescaling = torch.where(shell.on_grid, 1.0, rescaling)[:, None]
    x = x * torch.where(equation.w > 0, rescaling, 1.0)
    back = _rescaling(shell, f.detach().sqrt(), gamma)[:, None] - 1
    outside = shell.on_grid[:, None] & (equation.w > 0)
    return x + torch.where(outside, x.detach() * back, 0.0)


def _rescaling(shell: _Shell, length: Tensor, gamma: float) -> Tensor:
    """Return the factor, `[B]`, for points of `length` bounds.

    It brings them onto the bound. Points of the grid respect one bound only: it brings them back
    into the shell.
    """
    one = torch.ones_like(length)  # two numbers would make `where` work in float32
    least = torch.where(shell.far & shell.on_grid, one / gamma, one)
    most = torch.where(shell.near & shell.on_grid, one * gamma, one)
    return torch.minimum(torch.maximum(length, least), most) / length


def _hard(shell: _Shell, equation: Equation, d: Tensor) -> Tensor:
    """Project rows that are 0 where sigma is largest: those coordinates take the missing length."""
    hard, tied = shell.hard[:, None], equation.tied
    u, b = torch.where(hard, equation.u, 0.0), torch.where(tied, 1.0, equation.b)
    w = equation.w
    direction = _direction(d, tied)
    others = torch.where(tied, 0.0, u)

    def missing(t: Tensor | float) -> Tensor:
        v = others / (b + t * w)
        return torch.where(hard, 1 - (w * v * v).sum(1, keepdim=True), 1.0).sqrt()

    # t is 0, as are both sides of `<b + t w, direction^2> length = <u, direction>`; their
    # derivatives are not.
    square = direction * direction
    top_w = (w * square).sum(1, keepdim=True)
    top_b = (equation.b * square).sum(1, keepdim=True)
    t = ((u * direction).sum(1, keepdim=True) / missing(0.0).detach() - top_b) / top_w
    t = t - t.detach()
    share = missing(t) / top_w.sqrt() * equation.unit
    return torch.where(tied, share * direction, d / (b + t * w))


def _direction(d: Tensor, tied: Tensor) -> Tensor:
    """Return the unit vector along d's tied coordinates, or the first of them where they are 0."""
    with torch.no_grad():
        along = torch.where(tied, d.detach(), 0.0)
        zero = (along == 0).all(1, keepdim=True)
        first = (tied & (tied.cumsum(1) == 1)).to(d.dtype)
        along = torch.where(zero, first, along)
        return l2_shell.normalized_ascent(torch.zeros_like(along), along, 1.0)


def project_mahalanobis_shell(
    h: Tensor, sigma: Tensor, radius: float | Tensor, gamma: float, grid_points: int = 0
) -> Tensor:
    """Nearest point of radius <= ||h||_S <= gamma * radius, Proposition 1."""
    rows = _project(_rows(h, h), _rows(sigma, h), _inner(radius, h), gamma, grid_points)
    return _narrow(rows, h)


def mahalanobis_shell_step(
    h: Tensor,
    grad: Tensor,
    sigma: Tensor,
    step_size: float,
    radius: float | Tensor,
    gamma: float,
    grid_points: int = 0,
) -> Tensor:
    """Ascent and projection in one, rounded once (Algorithm 2, steps 2-3)."""
    if h.numel() == 0:
        return h.clone()
    d = l2_shell.normalized_ascent(_rows(h, h), _rows(grad, h), step_size)
    rows = _project(d, _rows(sigma, h), _inner(radius, h), gamma, grid_points)
    return _narrow(rows, h)


def mahalanobis_norm(h: Tensor, sigma: Tensor) -> Tensor:
    """sqrt(sum_j sigma_j h_j^2) per row, `[B]`, in the compute type of h."""
    compute = torch.float64 if h.dtype == torch.float64 else torch.float32
    d, s = _rows(h, h), _rows(sigma, h)
    if h.numel() == 0:
        return (d * s).sum(1).to(compute)
    every, d_max = d, row_scale(d)[1]
    d = torch.where(s > 0, d, 0.0)  # without a weight a coordinate may be of any size
    d_scale = row_scale(d)[0]
    # What a weight of 0 would add per unit: the weight's derivative needs it, the value does not.
    idle = torch.where(s > 0, 0.0, (every * d_scale[:, None]).detach().square())
    idle = idle.clamp(max=torch.finfo(d.dtype).max)
    s_scale, s_max = row_scale(s)
    bad = d_max.isnan() | s_max.isnan() | (s.detach() < 0).any(1)
    scaled = d * d_scale[:, None]
    weights = s * s_scale[:, None]
    square = torch.where(bad[:, None], 1.0, weights * scaled * scaled + weights * idle).sum(1)
    zero = square == 0
    norm = torch.where(zero, 1.0, square).sqrt() / (d_scale * s_scale.sqrt())
    norm = torch.where(zero, square * 0.0, norm)
    poison = torch.zeros_like(norm).masked_fill(bad, torch.nan)
    return (norm * (1 + poison) + (s * poison[:, None]).sum(1)).to(compute)


# Inside a registered operator's kernel autograd is off, so the fallbacks of the backward operators
# need the formulas written out; csrc/math/mahalanobis_shell.h says how they come about.


def _project_backward(
    g: Tensor, d: Tensor, sigma: Tensor, inner: Tensor, gamma: float, grid_points: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of d and sigma, `[B, D]`, and of the inner radius, `[B]`, for an upstream g."""
    shell = _place(d, sigma, inner, gamma, grid_points)
    outside = shell.outside[:, None]
    safe_d, safe_sigma = torch.where(outside, d, 1.0), torch.where(outside, sigma, 1.0)
    equation = _equation(safe_d, safe_sigma, shell.bound(inner, gamma))
    u, w, unit = equation.u, equation.w, equation.unit
    hard = shell.hard[:, None]
    taken = hard & equation.tied  # the coordinates that take a hard row's missing length
    t = torch.where(shell.hard, 0.0, shell.t)[:, None]
    c = torch.where(taken, 0.0, 1 / torch.where(taken, 1.0, equation.b + t * w))
    # Sums over the coordinates that are not tied, see there; the tied ones have c = 1 / t.
    tied, rest = equation.tied, torch.where(equation.tied, 0.0, c)
    # u of a row 1e154 radii long has no square in float64; v = u c is at most 1.
    v = u * rest
    a = (g * w * v * rest).sum(1, keepdim=True)
    q = (w * v * (w * v) * rest).sum(1, keepdim=True)
    own = torch.where(tied & ~hard, c, 0.0)
    own_v = u * own
    tied_along = (g * own_v).sum(1, keepdim=True)
    tied_square = (own_v * own_v).sum(1, keepdim=True)
    all_q = q + (own_v * own_v * own).sum(1, keepdim=True)
    all_a = a + (g * own_v * own).sum(1, keepdim=True)

    direction = _direction(safe_d, equation.tied)
    along = torch.where(taken, g * direction, 0.0).sum(1, keepdim=True)
    missing = 1 - (w * v * v).sum(1, keepdim=True)
    length = torch.where(hard, missing, 1.0).sqrt()
    ratio = torch.where(hard, along / length, all_a / all_q)
    from_tied = ratio * q - a

    largest = (unit / shell.bound(inner, gamma)[:, None]) ** -2  # s_max
    grad_d = g * c - ratio * w * u * c * c
    across = torch.where(
        tied.sum(1, keepdim=True) > 1, own * (g * tied_square - own_v * tied_along), 0.0
    )
    by_tied = own * ((g * q - own_v * a + across) / all_q)
    grad_d = torch.where(tied & ~hard, by_tied, grad_d)
    grad_d = torch.where(taken, direction * from_tied / length, grad_d)
    half = ratio * (u * c) * (u * c) * c * (1 - (t - 1) * w) / 2
    grad_sigma = unit / largest * (-(t - 1) * g * (u * c) * c - half)
    lift = own_v * (by_tied * (1 - t / 2) - g / 2)
    grad_sigma = torch.where(tied & ~hard, unit / largest * lift, grad_sigma)
    share = from_tied - along * length / 2
    grad_sigma = torch.where(taken, unit / largest * direction**2 * share, grad_sigma)
    grad_inner = ratio / largest.sqrt() * shell.factor(gamma)[:, None]

    poison = torch.ones_like(inner).masked_fill(shell.bad, torch.nan)
    return (
        torch.where(outside, grad_d, g) * poison[:, None],
        torch.where(outside, grad_sigma, 0.0) * poison[:, None],
        torch.where(outside, grad_inner, 0.0)[:, 0] * poison,
    )


def project_mahalanobis_shell_backward(
    grad_out: Tensor,
    h: Tensor,
    sigma: Tensor,
    radius: float | Tensor,
    gamma: float,
    grid_points: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of h, `[B, *]`, of each row's sigma, `[B, D]`, and of the radius, `[B]`."""
    inner = _inner(radius, h)
    compute = torch.float64 if h.dtype == torch.float64 else torch.float32
    if h.numel() == 0:
        return h.clone(), _rows(h, h).to(compute), inner.to(compute)
    grad_h, grad_sigma, grad_radius = _project_backward(
        _rows(grad_out, h), _rows(h, h), _rows(sigma, h), inner, gamma, grid_points
    )
    return _narrow(grad_h, h), grad_sigma.to(compute), grad_radius.to(compute)


def mahalanobis_shell_step_backward(
    grad_out: Tensor,
    h: Tensor,
    grad: Tensor,
    sigma: Tensor,
    step_size: float,
    radius: float | Tensor,
    gamma: float,
    grid_points: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of h, grad, each row's sigma and radius: the projection's, the ascent's."""
    inner = _inner(radius, h)
    compute = torch.float64 if h.dtype == torch.float64 else torch.float32
    if h.numel() == 0:
        return h.clone(), h.clone(), _rows(h, h).to(compute), inner.to(compute)
    direction = _rows(grad, h)
    d = l2_shell.normalized_ascent(_rows(h, h), direction, step_size)
    grad_h, grad_sigma, grad_radius = _project_backward(
        _rows(grad_out, h), d, _rows(sigma, h), inner, gamma, grid_points
    )
    grad_grad = l2_shell.normalized_ascent_backward(grad_h, direction, step_size)
    return (
        _narrow(grad_h, h),
        _narrow(grad_grad, h),
        grad_sigma.to(compute),
        grad_radius.to(compute),
    )


def mahalanobis_norm_backward(grad_out: Tensor, h: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """G sigma_j h_j / n and G h_j^2 / (2 n), of h and each row's sigma; 0 for length n = 0."""
    compute = torch.float64 if h.dtype == torch.float64 else torch.float32
    if h.numel() == 0:
        return h.clone(), _rows(h, h).to(compute)
    d, s = _rows(h, h), _rows(sigma, h)
    norm = _wide(mahalanobis_norm(d, s))
    gain = torch.where(norm == 0, 0.0, _wide(grad_out) / torch.where(norm == 0, 1.0, norm))
    half = 0.5 * gain[:, None]
    return _narrow(2 * half * s * d, h), (half * d * d).to(compute)
