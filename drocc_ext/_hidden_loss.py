"""The two losses of a training step behind a layer whose units are known, and their gradients."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from drocc_ext._products import linear

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
        normal: Tensor | None,
        clean: Tensor,
        found: Tensor,
        h: Tensor,
        scale: Tensor | None,
        coefficients: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        output = output_weight.reshape(-1).contiguous()
        form = torch.ops.drocc._hidden_loss if x.is_cpu else losses
        clean_loss, adv_loss, slopes = form(clean, found, output, output_bias, normal)
        saved = (weight, output_weight, x, normal, clean, found, slopes, h, scale, coefficients)
        ctx.save_for_backward(*saved)
        return clean_loss, adv_loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_adv: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            # Gradients with a graph: they depend on the parameters even where `grad` does not.
            grad = grad.detach().requires_grad_()
        # The forward, which runs without autocast only, decides what is computed in which type.
        device = grad.device.type
        autocast = torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False) if autocast else nullcontext():
            grads: tuple[Tensor | None, ...] = _backward(ctx, grad, grad_adv)
        return grads


@once_differentiable
def _backward(ctx: Any, grad: Tensor, grad_adv: Tensor) -> tuple[Tensor | None, ...]:
    weight, output_weight, x, normal, active, found, slopes, h, scale, p = ctx.saved_tensors
    form = torch.ops.drocc._hidden_loss_backward if x.is_cpu else gradients
    output = output_weight.reshape(-1).contiguous()
    units, units_adv, *rest = form(active, found, output, slopes, grad, grad_adv)
    of_bias, of_output, of_output_bias = rest
    needs = ctx.needs_input_grad
    of_weight = None
    if needs[0]:
        if scale is not None and normal is None:
            units.add_(units_adv)
        elif scale is not None:
            units[normal] += units_adv
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


def losses(
    clean: Tensor, found: Tensor, output: Tensor, bias: Tensor | None, normal: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Do in torch's operators, on any device, what `_hidden_loss` (csrc/hidden_loss.cpp) does.

    Args:
        clean: Units `[B, H]`; afterwards what ReLU leaves of them.
        found: Units `[M, H]`, likewise.
        output: `[H]`.
        bias: `[1]`, or None.
        normal: Mask `[B]`, or None.

    Returns:
        The mean cross-entropies of the clean rows and of the found ones, 0-dimensional, and their
        derivatives with respect to the logits, `[B + M]`.
    """
    logits = torch.cat([torch.mv(clean.relu_(), output), torch.mv(found.relu_(), output)])
    logits = logits if bias is None else logits.add_(bias)
    target = torch.zeros_like(logits)
    target[: clean.shape[0]] = 1.0 if normal is None else normal.to(logits.dtype)
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    slopes = logits.sigmoid().sub_(target)
    slopes[: clean.shape[0]] /= clean.shape[0]
    slopes[clean.shape[0] :] /= found.shape[0]
    return each[: clean.shape[0]].mean(), each[clean.shape[0] :].mean(), slopes


def gradients(
    clean: Tensor,
    found: Tensor,
    output: Tensor,
    slopes: Tensor,
    clean_weight: Tensor,
    found_weight: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Do in torch's operators what `_hidden_loss_backward` does.

    Args:
        clean: What ReLU left, `[B, H]`.
        found: Likewise, `[M, H]`.
        output: `[H]`.
        slopes: `[B + M]`, from `losses`.
        clean_weight: Derivative with respect to the first mean, 0-dimensional.
        found_weight: With respect to the second.

    Returns:
        Gradients of the units, `[B, H]` and `[M, H]`, of their bias `[H]`, of output `[H]` and of
        the logits' bias `[1]`.
    """
    grad = slopes[: clean.shape[0]] * clean_weight
    grad_adv = slopes[clean.shape[0] :] * found_weight
    # The sign is 1 where a unit is on; NaN stays.
    units = clean.sign().mul_(output).mul_(grad[:, None])
    units_adv = found.sign().mul_(output).mul_(grad_adv[:, None])
    of_output = torch.mv(clean.T, grad).addmv_(found.T, grad_adv)
    of_bias = units.sum(0).add_(units_adv.sum(0))
    return units, units_adv, of_bias, of_output, (grad.sum() + grad_adv.sum())[None]
