"""Influence of each coordinate on the output (section 4 of the paper) in eager PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from drocc_ext.reference.rows import per_row, row_scale


def influence(grad: Tensor) -> Tensor:
    """|grad| / mean |grad| per row; a zero row gives ones, a row with NaN or infinity NaN."""
    wide = grad if grad.dtype == torch.float64 else grad.float()
    scale, maximum = row_scale(wide)
    magnitude = (wide * per_row(scale, wide)).abs()
    zero = per_row(maximum == 0, wide)
    safe = torch.where(zero, torch.ones_like(wide), magnitude)
    sigma = safe / per_row(safe.flatten(1).mean(1), wide)
    return torch.where(per_row(maximum.isnan(), wide), torch.nan, sigma).to(grad.dtype)
