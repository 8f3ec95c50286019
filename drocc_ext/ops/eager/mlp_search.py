"""The search in deep ReLU networks, in eager PyTorch: the ground truth of `drocc::_mlp_search`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from drocc_ext.ops.eager import l2_shell, mahalanobis_shell

__all__ = ["mlp_search"]


def mlp_search(
    h: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    negative_slopes: Sequence[float],
    output: Tensor,
    sigma: Tensor | None,
    step_size: float,
    num_steps: int,
    project_every: int,
    radius: float,
    radius_rows: Tensor | None,
    gamma: float,
    grid_points: int,
    project_last: bool = True,
) -> tuple[Tensor, Tensor]:
    """Run all ascent steps of Algorithm 1 on `f(x) = <output, act(W_L ... act(W_1 x + b_1))>`.

    Args:
        h: Where the search starts, `[B, D]`; in place, where it ends.
        x: Rows `[B, D]` to search around.
        weights: `[H_l, H_(l-1)]` of each hidden layer.
        biases: `[H_l]` or None for each.
        negative_slopes: Of each layer's LeakyReLU; 0 for ReLU.
        output: `[H_L]`, the weights of the logit.
        sigma: `[D]` or `[B, D]` for the Mahalanobis shell; None for the l2 shell.
        step_size: Length of a step.
        num_steps: Number of steps.
        project_every: Steps per projection.
        radius: Inner radius.
        radius_rows: `[B]`, instead of it.
        gamma: Outer radius divided by inner radius.
        grid_points: Of the solver with sigma; 0 for the exact one.
        project_last: Whether to project after the last step whatever its number.

    Returns:
        The first layer's pre-activations `[B, H_1]` at x and at `x + h`.
    """
    radii: float | Tensor = radius if radius_rows is None else radius_rows
    for step in range(1, num_steps + 1):
        grad = _gradient(x + h, weights, biases, negative_slopes, output)
        if step % project_every != 0 and not (project_last and step == num_steps):
            h.copy_(l2_shell.normalized_ascent(h, grad, step_size))
        elif sigma is None:
            h.copy_(l2_shell.l2_shell_step(h, grad, step_size, radii, gamma))
        else:
            h.copy_(
                mahalanobis_shell.mahalanobis_shell_step(
                    h, grad, sigma, step_size, radii, gamma, grid_points
                )
            )
    first = [F.linear(points, weights[0], biases[0]) for points in (x, x + h)]
    return first[0], first[1]


def _gradient(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    negative_slopes: Sequence[float],
    output: Tensor,
) -> Tensor:
    layers = []
    active = x
    for weight, bias, slope in zip(weights, biases, negative_slopes, strict=True):
        z = F.linear(active, weight, bias)
        # At 0 the slope is that of the negative side, as in torch.
        slopes = torch.where(z > 0, torch.ones_like(z), torch.full_like(z, slope))
        layers.append((weight, slopes))
        active = z * slopes
    grad = output.expand(len(x), -1)
    for weight, slopes in reversed(layers):
        grad = (grad * slopes) @ weight
    return grad
