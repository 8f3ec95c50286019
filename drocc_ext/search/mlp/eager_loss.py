"""The losses behind a hidden layer and their gradients, in torch's operators on any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["by_autograd", "gradients", "losses", "needs_autograd"]


def losses(
    clean: Tensor, found: Tensor, output: Tensor, bias: Tensor | None, is_normal: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the losses from the units of a layer, which ReLU and a linear output follow.

    Args:
        clean: Units `[B, H]`; afterwards what ReLU leaves of them.
        found: Units `[M, H]`, likewise.
        output: `[H]`.
        bias: `[1]`, or None.
        is_normal: Mask `[B]`, or None.

    Returns:
        The mean cross-entropies of the clean rows and of the found ones, 0-dimensional, and their
        derivatives with respect to the logits, `[B + M]`.
    """
    logits = torch.cat([torch.mv(clean.relu_(), output), torch.mv(found.relu_(), output)])
    logits = logits if bias is None else logits.add_(bias)
    target = torch.zeros_like(logits)
    target[: clean.shape[0]] = 1.0 if is_normal is None else is_normal.to(logits.dtype)
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
    """Compute the gradients of the weighted sum of both losses.

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


def needs_autograd(*grads: Tensor) -> bool:
    """Say whether a backward pass is to have gradients itself, or is run for many at once."""
    return (
        torch.is_grad_enabled()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or any(map(torch._C._functorch.is_legacy_batchedtensor, grads))
    )


def by_autograd(
    parameters: Sequence[Tensor | None],
    needs: Sequence[bool],
    negative_slopes: Sequence[float],
    x: Tensor,
    found: Tensor,
    is_normal: Tensor | None,
    targets: Tensor | None,
    weights: Sequence[Tensor],
) -> list[Tensor | None]:
    """Compute the gradients of the weighted sum of both losses, of any order.

    Args:
        parameters: Weight and bias of each layer in order, the output's last.
        needs: Which of them get a gradient.
        negative_slopes: Of each activation.
        x: Clean rows, `[B, D]`.
        found: Adversarial rows, `[M, D]`.
        is_normal: Mask `[B]`, or None.
        targets: Probabilities `[M]` of being normal, or None: 0.
        weights: Derivatives with respect to the two means.

    Returns:
        A gradient for each parameter that needs one, with a graph where gradients are enabled.
    """
    with_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        rows = torch.cat([x, found])
        for weight, bias, slope in zip(
            parameters[:-2:2], parameters[1:-2:2], negative_slopes, strict=True
        ):
            assert weight is not None
            units = F.linear(rows, weight, bias)
            rows = F.relu(units) if slope == 0 else F.leaky_relu(units, slope)
        output = parameters[-2]
        assert output is not None
        logits = F.linear(rows, output, parameters[-1])[:, 0]
        clean, against = torch.split(logits, [len(x), len(found)])
        labels = torch.ones_like(clean) if is_normal is None else is_normal.to(clean.dtype)
        means = [
            F.binary_cross_entropy_with_logits(clean, labels),
            F.binary_cross_entropy_with_logits(
                against, torch.zeros_like(against) if targets is None else targets
            ),
        ]
        wanted = [p for p, need in zip(parameters, needs, strict=True) if p is not None and need]
        grads = iter(torch.autograd.grad(means, wanted, weights, create_graph=with_graph))
    return [
        next(grads) if p is not None and need else None
        for p, need in zip(parameters, needs, strict=True)
    ]
