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


def _unit(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x / ||x|| (0 for a zero row) with ||x|| as `scaled / scale`, and the row's maximum.

    A row with a NaN or an infinity has maximum NaN.
    """
    scale, maximum = row_scale(x)
    scaled = x * per_row(scale, x)
    zero = maximum == 0
    # A zero row would make the square root's derivative infinite: give it the norm of ones.
    safe = torch.where(per_row(zero, x), torch.ones_like(x), scaled)
    norm = row_dot(safe, safe).sqrt()
    unit = torch.where(per_row(zero, x), torch.zeros_like(x), safe / per_row(norm, x))
    return unit, norm, scale, maximum


def _poison(y: Tensor, *bad: Tensor) -> Tensor:
    """Make whole rows, and what is derived from them, NaN where any of the `[B]` masks says so."""
    mask = bad[0]
    for other in bad[1:]:
        mask = mask | other
    ones = torch.ones_like(mask, dtype=y.dtype)
    return y * per_row(ones.masked_fill(mask, torch.nan), y)


def _ascent(h: Tensor, grad: Tensor, step_size: float) -> Tensor:
    direction, _, _, maximum = _unit(grad)
    # A step beyond the type's range must not become infinite: 0 * inf would spoil other entries.
    limit = torch.finfo(h.dtype).max
    step_size = min(max(step_size, -limit), limit)
    return _poison(h + step_size * direction, maximum.isnan(), row_scale(h)[1].isnan())


class _Sides(NamedTuple):
    """Where rows lie: `[B]` masks, and the norm each is brought to (the bound, where outside)."""

    near: Tensor
    far: Tensor
    zero: Tensor
    bad: Tensor
    target: Tensor


def _sides(
    norm: Tensor, scale: Tensor, maximum: Tensor, radius: float | Tensor, gamma: float
) -> _Sides:
    inner = torch.as_tensor(radius, dtype=norm.dtype, device=norm.device).expand(norm.shape)
    bad = maximum.isnan() | ~(inner > 0) | inner.isinf()
    inner = torch.where(bad, torch.ones_like(inner), inner)
    zero = maximum == 0
    near = zero | (norm < inner * scale)
    far = ~near & (norm > gamma * inner * scale)
    # gamma may be infinite (no row is far then); kept out of the product, it leaves no 0 * inf in
    # the gradient of the radius.
    ones = torch.ones_like(inner)
    factor = torch.full_like(inner, min(gamma, torch.finfo(inner.dtype).max))
    target = inner * torch.where(far, factor, ones)
    return _Sides(near, far, zero, bad, target)


def _project(y: Tensor, radius: float | Tensor, gamma: float) -> Tensor:
    unit, norm, scale, maximum = _unit(y)
    sides = _sides(norm, scale, maximum, radius, gamma)
    first = torch.zeros_like(y)  # in the layout of y, which the result then keeps
    if first.numel():
        corner: tuple[slice | int, ...] = (slice(None), *[0] * (y.dim() - 1))
        first[corner] = 1
    direction = torch.where(per_row(sides.zero, y), first, unit)
    outside = per_row(sides.near | sides.far, y)
    return _poison(torch.where(outside, per_row(sides.target, y) * direction, y), sides.bad)


def normalized_ascent(h: Tensor, grad: Tensor, step_size: float) -> Tensor:
    """Return h + step_size * grad / ||grad||, Algorithm 1, step 2."""
    return _ascent(_widen(h), _widen(grad), step_size).to(h.dtype)


def project_l2_shell(h: Tensor, radius: float | Tensor, gamma: float) -> Tensor:
    """Nearest point of radius <= ||h|| <= gamma * radius, Algorithm 1, step 3."""
    return _project(_widen(h), radius, gamma).to(h.dtype)


def l2_shell_step(
    h: Tensor, grad: Tensor, step_size: float, radius: float | Tensor, gamma: float
) -> Tensor:
    """Ascent and projection in one, rounded once."""
    return _project(_ascent(_widen(h), _widen(grad), step_size), radius, gamma).to(h.dtype)


# Inside a registered operator's kernel autograd is off, so the fallbacks of the backward operators
# need the formulas written out; csrc/math/l2_shell.h says how they come about.


def normalized_ascent_backward(grad_out: Tensor, grad: Tensor, step_size: float) -> Tensor:
    """step_size / ||grad|| * (G - v <v, G>) with v = grad / ||grad||; 0 for a zero row."""
    upstream = _widen(grad_out)
    unit, norm, scale, maximum = _unit(_widen(grad))
    tangent = upstream - unit * per_row(row_dot(unit, upstream), unit)
    result = per_row(step_size / norm, unit) * tangent * per_row(scale, unit)
    result = torch.where(per_row(maximum == 0, unit), torch.zeros_like(result), result)
    return _poison(result, maximum.isnan()).to(grad.dtype)


def project_l2_shell_backward(
    grad_out: Tensor, h: Tensor, radius: float | Tensor, gamma: float
) -> tuple[Tensor, Tensor]:
    """Gradients of h, R / ||h|| * (G - u <u, G>) outside the shell, and of the radius, `[B]`."""
    upstream, y = _widen(grad_out), _widen(h)
    unit, norm, scale, maximum = _unit(y)
    sides = _sides(norm, scale, maximum, radius, gamma)
    dot = row_dot(unit, upstream)
    gain = torch.where(sides.zero, torch.zeros_like(norm), sides.target / norm * scale)
    tangent = per_row(gain, y) * (upstream - per_row(dot, y) * unit)
    grad_h = torch.where(per_row(sides.near | sides.far, y), tangent, upstream)
    inside = torch.zeros_like(dot)
    grad_radius = torch.where(sides.near, dot, torch.where(sides.far, gamma * dot, inside))
    first = upstream.flatten(1)[:, :1].sum(1)
    grad_radius = torch.where(sides.zero, first, grad_radius)
    return _poison(grad_h, sides.bad).to(h.dtype), _poison(grad_radius, sides.bad)


def l2_shell_step_backward(
    grad_out: Tensor,
    h: Tensor,
    grad: Tensor,
    step_size: float,
    radius: float | Tensor,
    gamma: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of h, grad and the radius: the projection's, then the ascent's."""
    y = _ascent(_widen(h), _widen(grad), step_size)
    grad_h, grad_radius = project_l2_shell_backward(_widen(grad_out), y, radius, gamma)
    grad_grad = normalized_ascent_backward(grad_h, _widen(grad), step_size)
    return grad_h.to(h.dtype), grad_grad.to(h.dtype), grad_radius
