"""The l2 shell operators in eager PyTorch, differentiable any number of times.

Every function takes `h`, `grad`: `[B, *]`; `radius`: a number or `[B]`; and computes in float32
(float64 for float64 tensors), row by row. See `drocc_ext.ops` for the meaning of the arguments.
"""

from __future__ import annotations

import torch
from torch import Tensor

from drocc_ext.reference.rows import per_row, row_dot, row_scale


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
    return _poison(h + step_size * direction, maximum.isnan(), row_scale(h)[1].isnan())


def _project(y: Tensor, radius: float | Tensor, gamma: float) -> Tensor:
    unit, norm, scale, maximum = _unit(y)
    inner = torch.as_tensor(radius, dtype=y.dtype, device=y.device).expand(y.shape[0])
    bad = maximum.isnan() | ~(inner > 0) | inner.isinf()
    inner = torch.where(bad, torch.ones_like(inner), inner)
    zero = maximum == 0
    near = zero | (norm < inner * scale)
    far = ~near & (norm > gamma * inner * scale)
    # gamma may be infinite (no row is far then); kept out of the product, it leaves no 0 * inf in
    # the gradient of the radius.
    ones = torch.ones_like(inner)
    target = inner * torch.where(far, torch.full_like(inner, gamma), ones)
    first = torch.zeros_like(y)  # in the layout of y, which the result then keeps
    if first.numel():
        first[(slice(None), *[0] * (y.dim() - 1))] = 1
    direction = torch.where(per_row(zero, y), first, unit)
    projected = torch.where(per_row(near | far, y), per_row(target, y) * direction, y)
    return _poison(projected, bad)


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
