"""The two losses of a training step behind a layer whose units are known: on a GPU."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from drocc_ext.search.mlp.eager_loss import by_autograd, gradients, losses, needs_autograd
from drocc_ext.search.mlp.matmul import linear

__all__ = ["HiddenLosses"]

# Up to so many, products are faster the other way round (measured).
_FEW_COLUMNS = 32


class HiddenLosses(torch.autograd.Function):
    """Mean cross-entropies of clean and adversarial rows; gradients for both layers.

    The adversarial rows are `h`, or, where there are factors, `x + scale * (h + coefficients W)`:
    the gradient of W, a sum of products of rows, then needs no such row. `clean` and `found` hold
    the units of the clean and of the adversarial rows, and afterwards what ReLU leaves of them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        bias: Tensor | None,
        output_weight: Tensor,
        output_bias: Tensor | None,
        x: Tensor,
        is_normal: Tensor | None,
        clean: Tensor,
        found: Tensor,
        h: Tensor,
        scale: Tensor | None,
        coefficients: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Compute both losses."""
        output = output_weight.reshape(-1).contiguous()
        clean_loss, adv_loss, slopes = losses(clean, found, output, output_bias, is_normal)
        saved = (weight, bias, output_weight, output_bias, x, is_normal)
        ctx.save_for_backward(*saved, clean, found, slopes, h, scale, coefficients)
        return clean_loss, adv_loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_adv: Tensor) -> tuple[Tensor | None, ...]:
        """Differentiate them."""
        # The forward, which runs without autocast only, decides what is computed in which type.
        device = grad.device.type
        autocast = torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False) if autocast else nullcontext():
            grads: tuple[Tensor | None, ...] = _backward(ctx, grad, grad_adv)
        return grads


def _backward(ctx: Any, grad: Tensor, grad_adv: Tensor) -> tuple[Tensor | None, ...]:
    *parameters, x, is_normal, active, found, slopes, h, scale, p = ctx.saved_tensors
    weight, _, output_weight, _ = parameters
    if needs_autograd(grad, grad_adv):
        if scale is not None:
            around = x if is_normal is None else x[is_normal]
            h = torch.addcmul(around, h + p @ weight.detach(), scale[:, None])
        needs, weights = ctx.needs_input_grad[:4], (grad, grad_adv)
        of = by_autograd(parameters, needs, (0.0,), x, h, is_normal, None, weights)
        return (*of, *[None] * 7)
    output = output_weight.reshape(-1).contiguous()
    units, units_adv, *rest = gradients(active, found, output, slopes, grad, grad_adv)
    of_bias, of_output, of_output_bias = rest
    needs = ctx.needs_input_grad
    of_weight = None
    if needs[0]:
        if scale is not None and is_normal is None:
            units.add_(units_adv)
        elif scale is not None:
            units[is_normal] += units_adv
        if scale is not None:
            units_adv.mul_(scale[:, None])
        if x.shape[1] <= _FEW_COLUMNS:
            of_weight = torch.mm(x.T, units).addmm_(h.T, units_adv).T.contiguous()
        else:
            of_weight = linear(units.T, x.T).add_(linear(units_adv.T, h.T))
        if scale is not None:
            of_weight.add_(linear(linear(units_adv.T, p.T), weight.T))
    return (
        of_weight,
        of_bias if needs[1] else None,
        of_output[None] if needs[2] else None,
        of_output_bias if needs[3] else None,
        *[None] * 7,
    )
