"""A multilayer perceptron's losses on the CPU: search, joint forward, and gradients in one pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from drocc_ext.search.config import SearchConfig
from drocc_ext.search.mlp.eager_loss import by_autograd, needs_autograd
from drocc_ext.search.mlp.match import MLPLayers
from drocc_ext.search.mlp.search import search_units

__all__ = ["MLPLosses", "has_losses", "mlp_losses"]


class MLPLosses(torch.autograd.Function):
    """Mean cross-entropies of clean and adversarial rows; gradients for all layers.

    Takes the layers besides their parameters, which come last and in order: weight and bias of
    each hidden layer, then of the output.
    """

    @staticmethod
    def forward(
        ctx: Any,
        layers: MLPLayers,
        x: Tensor,
        x_adv: Tensor,
        is_normal: Tensor | None,
        targets: Tensor | None,
        clean_units: Tensor | None,
        adv_units: Tensor | None,
        *parameters: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Compute the two means."""
        clean_loss, adv_loss, state = torch.ops.drocc._mlp_loss(
            x,
            x_adv,
            layers.weights,
            layers.biases,
            layers.negative_slopes,
            layers.output,
            parameters[-1],
            is_normal,
            targets,
            clean_units,
            adv_units,
        )
        ctx.negative_slopes = layers.negative_slopes
        # They count changes with the parameters: one before the backward is noticed.
        ctx.save_for_backward(x, x_adv, state, is_normal, targets, *parameters)
        return clean_loss, adv_loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_adv: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the parameters' gradients from those of the two means."""
        # The forward, which runs without autocast only, decides what is computed in which type.
        device = grad.device.type
        autocast = torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False) if autocast else nullcontext():
            grads: tuple[Tensor | None, ...] = _backward(ctx, grad, grad_adv)
        return grads


def _backward(ctx: Any, grad: Tensor, grad_adv: Tensor) -> tuple[Tensor | None, ...]:
    x, x_adv, state, is_normal, targets, *parameters = ctx.saved_tensors
    needs = ctx.needs_input_grad[-len(parameters) :]
    if needs_autograd(grad, grad_adv):
        slopes, weights = ctx.negative_slopes, (grad, grad_adv)
        of = by_autograd(parameters, needs, slopes, x, x_adv, is_normal, targets, weights)
        return (*[None] * 7, *of)
    found = torch.ops.drocc._mlp_loss_backward(
        x,
        x_adv,
        parameters[:-2:2],
        ctx.negative_slopes,
        parameters[-2].reshape(-1),
        state,
        grad,
        grad_adv,
        sum(1 << i for i, need in enumerate(needs) if need),
    )
    grads = [
        gradient.view_as(parameter) if need else None
        for gradient, parameter, need in zip(found, parameters, needs, strict=True)
    ]
    return (*[None] * 7, *grads)


def has_losses(layers: MLPLayers, x: Tensor) -> bool:
    """Say whether the operators serve a network and rows.

    Args:
        layers: The network.
        x: Rows, any tensor.

    Returns:
        Whether x is `[B, D]` on the CPU in the network's type, weights are those of the layers
        themselves, and no activation turns a sign.
    """
    weight = layers.weights[0]
    return (
        layers.is_exact
        and min(layers.negative_slopes) >= 0
        and weight.is_cpu
        and x.is_cpu
        and x.dtype is weight.dtype
        and x.dim() == 2
        and x.shape[1] == weight.shape[1]
    )


def mlp_losses(
    layers: MLPLayers,
    x: Tensor,
    is_normal: Tensor | None,
    h: Tensor,
    config: SearchConfig,
    targets: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Search around the normal rows, and compute the losses of all rows and of what was found.

    Args:
        layers: The network, on the CPU, with slopes >= 0, its weights those of its layers.
        x: Rows `[B, D]`, dtype of the layers, without gradients.
        is_normal: Mask `[B]` of the rows to search around; None: all.
        h: Where the search starts, `[M, D]` for M such rows, contiguous; used up.
        config: How to search, in the l2 metric, a radius tensor `[M]`.
        targets: Gives for what was found, `[M, D]`, the probabilities `[M]` of being normal, of
            the same dtype; None: 0.

    Returns:
        The mean cross-entropies of all rows at their labels and of what was found at its target,
        0-dimensional, with gradients for the network's parameters, of any order.
    """
    with torch.no_grad():
        around = x if is_normal is None else x[is_normal]
        clean_units, adv_units = search_units(layers, around, h, None, config)
        x_adv = h.add_(around)
        probabilities = None if targets is None else targets(x_adv)
    # Views, which keep what the forward saw where a parameter is given other data afterwards.
    parameters = [
        None if tensor is None else tensor.view_as(tensor)
        for layer in layers.linears
        for tensor in (layer.weight, layer.bias)
    ]
    losses: tuple[Tensor, Tensor] = MLPLosses.apply(  # type: ignore[no-untyped-call]
        layers,
        x,
        x_adv,
        is_normal,
        probabilities,
        clean_units if is_normal is None else None,
        adv_units,
        *parameters,
    )
    return losses
