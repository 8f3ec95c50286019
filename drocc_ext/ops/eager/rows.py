"""Norms over the rows of a `[B, *]` tensor that neither overflow nor underflow."""

from __future__ import annotations

import torch
from torch import Tensor


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """View `[B]` values so that they broadcast against `[B, *]`."""
    return values.reshape(values.shape[0], *[1] * (like.dim() - 1))


def row_scale(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return, per row, a power of two near 1 / max |x| and that maximum (NaN if not finite).

    Multiplying by a power of two is exact, so it changes neither values nor gradients; the scale
    of rows that are zero or not finite is 1.
    """
    with torch.no_grad():
        maximum = x.detach().flatten(1).abs().amax(1) if x.numel() else x.new_zeros(x.shape[0])
        maximum = torch.where(torch.isfinite(maximum), maximum, torch.nan)
        _, exponent = torch.frexp(maximum)
        limit = 1022 if x.dtype == torch.float64 else 126
        exponent = torch.where(maximum > 0, exponent, 0).clamp(-limit, limit)
        return torch.ldexp(torch.ones_like(maximum), -exponent), maximum


def row_dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum of products over each row, `[B]`."""
    return (a * b).flatten(1).sum(1)
