"""The l2 shell operators in eager PyTorch, differentiable any number of times.

Every function takes `h`, `grad`: `[B, *]`; `radius`: a number or `[B]`; and computes in float32
(float64 for float64 tensors), row by row. See `drocc_ext.ops` for the meaning of the arguments.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from drocc_ext.ops.eager.rows import per_row, row_dot, row_scale


def _widen(t: Tensor) -> Tensor:
    return t if t.dtype == torch.float64 else t.float()


class _Unit(NamedTuple):
    """A row x as x / ||x|| (0 for a zero row), with ||x|| as `norm / scale`.

    The maximum is that of |x|, NaN for a row with a NaN or an infinity.
    """

    vector: Tensor
    norm: Tensor
    scale: Tensor
    maximum: Tensor


def _unit(x: Tensor) -> _Unit:
    scale, maximum = row_scale(x)
    scaled = x * per_row(scale, x)
    zero = maximum == 0
    # A zero row would make the square root's derivative infinite: give it the norm of ones.
    safe = torch.where(per_row(zero, x), torch.ones_like(x), scaled)
    norm = row_dot(safe, safe).sqrt()
    vector = torch.where(per_row(zero, x), torch.zeros_like(x), safe / per_row(norm, x))
    return _Unit(vector, norm, scale, maximum)


def _poison(y: Tensor, *bad: Tensor) -> Tensor:
    """Make whole rows, and what is derived from them, NaN where any of the `[B]` masks says so."""
    mask = bad[0]
    for other in bad[1:]:
        mask = mask | other
    ones = torch.ones_like(mask, dtype=y.dtype)
    return y * per_row(ones.masked_fill(mask, torch.nan), y)


def _ascent(h: Tensor, direction: _Unit, step_size: float) -> Tensor:
    # A step beyond the type's range must not become infinite: 0 * inf would spoil other entries.
    limit = torch.finfo(h.dtype).max
    step_size = min(max(step_size, -limit), limit)
    y = h + step_size * direction.vector
    return _poison(y, direction.maximum.isnan(), row_scale(h)[1].isnan())


def _ascent_unit(h: Tensor, direction: _Unit, step_size: float, y: Tensor) -> _Unit:
    """Return the direction and length of y, the ascent's result, also where y overflows."""
    limit = torch.finfo(h.dtype).max
    step_size = min(max(step_size, -limit), limit)
    large = (row_scale(h)[1] > limit / 4) | (abs(step_size) > limit / 4)
    quarter = h / 4 + step_size / 4 * direction.vector
    unit = _unit(torch.where(per_row(large, h), quarter, y))
    return unit._replace(scale=torch.where(large, unit.scale / 4, unit.scale))


class _Sides(NamedTuple):
    """Where rows lie, `[B]` masks, and the bound of those outside, `inner * factor`."""

    near: Tensor
    far: Tensor
    zero: Tensor
    bad: Tensor
    inner: Tensor
    factor: Tensor


def _sides(unit: _Unit, radius: float | Tensor, gamma: float) -> _Sides:
    norm, scale, maximum = unit.norm, unit.scale, unit.maximum
    inner = torch.as_tensor(radius, dtype=norm.dtype, device=norm.device).expand(norm.shape)
    bad = maximum.isnan() | ~(inner > 0) | inner.isinf()
    inner = torch.where(bad, torch.ones_like(inner), inner)
    zero = maximum == 0
    bound = inner * scale
    near = zero | (norm < bound)
    # An infinite gamma makes no row far; 0 * inf is NaN, which compares as wanted.
    far = ~near & (norm > gamma * bound)
    # It is kept out of the product, where it would leave 0 * inf in the gradient of the radius.
    most = torch.full_like(inner, min(gamma, torch.finfo(inner.dtype).max))
    return _Sides(near, far, zero, bad, inner, torch.where(far, most, torch.ones_like(inner)))


def _project(y: Tensor, unit: _Unit, radius: float | Tensor, gamma: float) -> Tensor:
    sides = _sides(unit, radius, gamma)
    first = torch.zeros_like(y)  # in the layout of y, which the result then keeps
    if first.numel():
        corner: tuple[slice | int, ...] = (slice(None), *[0] * (y.dim() - 1))
        first[corner] = 1
    direction = torch.where(per_row(sides.zero, y), first, unit.vector)
    outside = per_row(sides.near | sides.far, y)
    # In this order, as the bound itself may be beyond the type's range.
    moved = per_row(sides.factor, y) * direction * per_row(sides.inner, y)
    return _poison(torch.where(outside, moved, y), sides.bad)


def normalized_ascent(h: Tensor, grad: Tensor, step_size: float) -> Tensor:
    """Return h + step_size * grad / ||grad||, Algorithm 1, step 2."""
    wide, direction = _widen(h), _widen(grad)
    if abs(step_size) > torch.finfo(wide.dtype).max:  # where it goes may be in range all the same
        wide, direction = wide.double(), direction.double()
    return _ascent(wide, _unit(direction), step_size).to(_widen(h).dtype).to(h.dtype)


def project_l2_shell(h: Tensor, radius: float | Tensor, gamma: float) -> Tensor:
    """Nearest point of radius <= ||h|| <= gamma * radius, Algorithm 1, step 3."""
    y = _widen(h)
    return _project(y, _unit(y), radius, gamma).to(h.dtype)


def l2_shell_step(
    h: Tensor, grad: Tensor, step_size: float, radius: float | Tensor, gamma: float
) -> Tensor:
    """Ascent and projection in one, rounded once."""
    wide, direction = _widen(h), _unit(_widen(grad))
    y = _ascent(wide, direction, step_size)
    unit = _ascent_unit(wide, direction, step_size, y)
    return _project(y, unit, radius, gamma).to(h.dtype)


# Inside a registered operator's kernel autograd is off, so the fallbacks of the backward operators
# need the formulas written out; csrc/math/l2_shell.h says how they come about.


def normalized_ascent_backward(grad_out: Tensor, grad: Tensor, step_size: float) -> Tensor:
    """step_size / ||grad|| * (G - v <v, G>) with v = grad / ||grad||; 0 for a zero row."""
    return _ascent_backward(_widen(grad_out), _unit(_widen(grad)), step_size).to(grad.dtype)


def _ascent_backward(upstream: Tensor, direction: _Unit, step_size: float) -> Tensor:
    unit, norm, scale, maximum = direction
    tangent = upstream - unit * per_row(row_dot(unit, upstream), unit)
    result = per_row(step_size / norm, unit) * tangent * per_row(scale, unit)
    result = torch.where(per_row(maximum == 0, unit), torch.zeros_like(result), result)
    return _poison(result, maximum.isnan())


def project_l2_shell_backward(
    grad_out: Tensor, h: Tensor, radius: float | Tensor, gamma: float
) -> tuple[Tensor, Tensor]:
    """Gradients of h, R / ||h|| * (G - u <u, G>) outside the shell, and of the radius, `[B]`."""
    grad_h, grad_radius = _project_backward(_widen(grad_out), _unit(_widen(h)), radius, gamma)
    return grad_h.to(h.dtype), grad_radius


def _project_backward(
    upstream: Tensor, unit: _Unit, radius: float | Tensor, gamma: float
) -> tuple[Tensor, Tensor]:
    sides = _sides(unit, radius, gamma)
    dot = row_dot(unit.vector, upstream)
    gain = sides.inner * sides.factor / unit.norm * unit.scale
    beyond = sides.inner / unit.norm * unit.scale * sides.factor  # of a bound out of range
    gain = torch.where(gain.isinf(), beyond, gain)
    gain = per_row(torch.where(sides.zero, torch.zeros_like(gain), gain), upstream)
    tangent = gain * (upstream - per_row(dot, upstream) * unit.vector)
    grad_h = torch.where(per_row(sides.near | sides.far, upstream), tangent, upstream)
    inside = torch.zeros_like(dot)
    grad_radius = torch.where(sides.near, dot, torch.where(sides.far, gamma * dot, inside))
    first = upstream.flatten(1)[:, :1].sum(1)
    grad_radius = torch.where(sides.zero, first, grad_radius)
    return _poison(grad_h, sides.bad), _poison(grad_radius, sides.bad)


def l2_shell_step_backward(
    grad_out: Tensor,
    h: Tensor,
    grad: Tensor,
    step_size: float,
    radius: float | Tensor,
    gamma: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of h, grad and the radius: the projection's, then the ascent's."""
    wide, direction = _widen(h), _unit(_widen(grad))
    y = _ascent(wide, direction, step_size)
    unit = _ascent_unit(wide, direction, step_size, y)
    grad_h, grad_radius = _project_backward(_widen(grad_out), unit, radius, gamma)
    grad_grad = _ascent_backward(grad_h, direction, step_size)
    return grad_h.to(h.dtype), grad_grad.to(h.dtype), grad_radius
