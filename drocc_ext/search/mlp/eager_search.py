"""The l2 search in the space of a first linear layer, in eager PyTorch.

csrc/math/hidden_search.h says how the recurrences come about; here what follows the layer may be
any network.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from drocc_ext.ops import l2_shell_step_, normalized_ascent_
from drocc_ext.search.config import SearchConfig

# What the recurrences carry along is computed anew after so many steps.
_REFRESH = 32
# Steps that lead inwards make C grow and `h + p W` small, so that the error of their product grows:
# such a row starts anew from where it is.
_MOST_SCALE = 4.0
# Least share of <v, G v> in the sizes of its terms: what is lost by cancellation is its inverse.
_LEAST_SHARE = {torch.float32: 0.02, torch.float64: 1e-4}
# Smaller sums of squares have lost terms to underflow.
_LEAST_SQUARE = {torch.float32: 1e-28, torch.float64: 1e-270}


class HiddenRows:
    """Where each row of a search is, as `C (h + p W)` with the image u = W h of that point.

    Args:
        weight: W, `[H, D]`.
        h: The start, `[B, D]`; brought up to date at times.
    """

    def __init__(self, weight: Tensor, h: Tensor) -> None:
        """Begin at h."""
        self.weight = weight
        self.gram: Tensor = weight @ weight.T
        self.h = h
        self.u: Tensor = h.new_empty(len(h), len(weight))
        self.p: Tensor = torch.empty_like(self.u)
        self.scale: Tensor = h.new_empty(len(h))
        self.square: Tensor = h.new_empty(len(h))
        self._begin(torch.ones_like(self.scale, dtype=torch.bool))

    def point(self) -> Tensor:
        """Compute where the rows are, `[B, D]`."""
        return torch.addmm(self.h, self.p, self.weight) * self.scale[:, None]

    def refresh(self) -> None:
        """Make h that point."""
        self.h.copy_(self.point())
        self._begin(torch.ones_like(self.scale, dtype=torch.bool))

    def step(
        self, v: Tensor, step_size: float, radius: Tensor, gamma: float, project: bool
    ) -> None:
        """Take one step along W^T v, v `[B, H]`; a row whose v is 0 does not ascend."""
        size = v.abs().amax(1, keepdim=True)
        v = torch.where(
            size > 0, v / size, v
        )  # the direction is the same, and no square underflows
        still = size == 0
        image = torch.where(still, 0.0, v @ self.gram)  # a product of weights may be infinite
        terms = v * image
        grad_square = terms.sum(1)
        still = still[:, 0]
        ascent = torch.where(still, 0.0, step_size * grad_square.rsqrt())
        apart = self.square + step_size**2
        square = apart + 2 * ascent * (self.u * v).sum(1)
        square = torch.where(still, self.square, square)
        norm = square.sqrt()
        target = norm.clamp(radius, gamma * radius) if project else norm
        factor = torch.where(target == norm, 1.0, target / norm)
        # Sums that have cancelled, and what is not finite, go the long way.
        least = _LEAST_SHARE[v.dtype] * terms.abs().sum(1)
        kept = (grad_square > least) & (grad_square > _LEAST_SQUARE[v.dtype])
        kept &= grad_square.isfinite()
        sound = still | (kept & (square >= 0.01 * apart))
        sound &= (square > 0) & square.isfinite() & factor.isfinite()
        sound &= (self.scale > 1e-12) & (self.scale < _MOST_SCALE)
        long_way = ~sound
        here = self._rows_in_full(long_way, v, step_size, radius, gamma, project)
        self.p += (ascent / self.scale)[:, None] * v
        self.u = factor[:, None] * (self.u + ascent[:, None] * image)
        self.scale = self.scale * factor
        self.square = factor * factor * square
        if here is not None:
            self.h[long_way] = here
            self._begin(long_way)

    def _rows_in_full(
        self,
        rows: Tensor,
        v: Tensor,
        step_size: float,
        radius: Tensor,
        gamma: float,
        project: bool,
    ) -> Tensor | None:
        if not bool(rows.any()):
            return None
        here = torch.addmm(self.h[rows], self.p[rows], self.weight) * self.scale[rows, None]
        grad = v[rows] @ self.weight
        if project:
            return l2_shell_step_(here, grad, step_size, radius[rows], gamma)
        return normalized_ascent_(here, grad, step_size)

    def _begin(self, rows: Tensor) -> None:
        """Start anew from h in these rows, `[B]`."""
        h = self.h[rows]
        self.u[rows] = h @ self.weight.T
        self.p[rows] = 0.0
        self.scale[rows] = 1.0
        self.square[rows] = (h * h).sum(1)


def hidden_search(
    weight: Tensor,
    bias: Tensor | None,
    gradient: Callable[[Tensor], Tensor],
    x: Tensor,
    h: Tensor,
    config: SearchConfig,
) -> Tensor:
    """Run all ascent steps of Algorithm 1 from a given start.

    Args:
        weight: `[H, D]` of the first layer.
        bias: `[H]` of the first layer, or None.
        gradient: Maps hidden values z `[B, H]` to the gradient of the sum of logits there.
        x: Rows `[B, D]`.
        h: The start, `[B, D]`, contiguous; used up.
        config: Settings of the search.

    Returns:
        `x + h` where the search ended, `[B, D]`.
    """
    clean = F.linear(x, weight, bias)
    rows = HiddenRows(weight, h)
    radii = torch.as_tensor(config.radius, dtype=x.dtype, device=x.device).expand(len(x))
    for step in range(1, config.num_steps + 1):
        if step % _REFRESH == 0:
            rows.refresh()
        last = step == config.num_steps and config.project_last
        project = step % config.project_every == 0 or last
        rows.step(gradient(clean + rows.u), config.step_size, radii, config.gamma, project)
    return rows.point() + x
