"""Influence of each coordinate on the output (section 4 of the paper) in eager PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from drocc_ext.ops.eager.rows import per_row, row_scale


def influence(grad: Tensor) -> Tensor:
    """|grad| / mean |grad| per row; a zero row gives ones, a row with NaN or infinity NaN."""
    wide = grad if grad.dtype == torch.float64 else grad.float()
    scale, maximum = row_scale(wide)
    magnitude = (wide * per_row(scale, wide)).abs()
    zero = per_row(maximum == 0, wide)
    safe = torch.where(zero, torch.ones_like(wide), magnitude)
    sigma = safe / per_row(safe.flatten(1).mean(1), wide)
    return torch.where(per_row(maximum.isnan(), wide), torch.nan, sigma).to(grad.dtype)


def influence_backward(grad_out: Tensor, grad: Tensor) -> Tensor:
    """sign(g_k) / mean |g| * (G_k - mean(G sigma)) for an upstream gradient G; 0 for a zero row."""
    wide = grad if grad.dtype == torch.float64 else grad.float()
    upstream = grad_out.to(wide.dtype)
    scale, maximum = row_scale(wide)
    zero = per_row(maximum == 0, wide)
    magnitude = torch.where(zero, torch.ones_like(wide), (wide * per_row(scale, wide)).abs())
    mean = magnitude.flatten(1).mean(1)
    shift = (upstream * magnitude).flatten(1).mean(1) / mean
    slope = wide.sign() / per_row(mean, wide) * per_row(scale, wide)
    result = slope * (upstream - per_row(shift, wide))
    return torch.where(per_row(maximum.isnan(), wide), torch.nan, result).to(grad.dtype)
