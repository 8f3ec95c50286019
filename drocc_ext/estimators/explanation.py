"""Which inputs speak for an anomaly, and a plot of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_STEPS = 200
_STEP = 0.05


def contributions(network: nn.Module, rows: Tensor, usual: float, radius: float) -> Tensor:
    """Share out the fall of the score on the way back to normal rows.

    Each row goes up the gradient of its logit, a twentieth of the radius at a time, until its logit
    is the usual one, 200 steps at the most. The trapezoidal rule integrates the gradient along the
    way, so that the contributions sum up to the gain in logit, to the square of a step.

    Args:
        network: Maps `[B, *]` to logits.
        rows: Scaled rows `[N, *]`, in the type of the network.
        usual: Logit of a usual normal row.
        radius: Inner radius of the shell.

    Returns:
        `[N, *]`, positive where an input speaks for an anomaly.
    """
    point = rows.detach().clone()
    total = torch.zeros_like(point)
    under_way = torch.arange(len(point), device=point.device)
    shape = (-1, *[1] * (rows.dim() - 1))

    def ascent(at: Tensor) -> tuple[Tensor, Tensor]:
        leaf = at.detach().requires_grad_()
        logits = network(leaf).reshape(len(leaf))
        (gradient,) = torch.autograd.grad(logits.sum(), leaf)
        return logits.detach(), gradient

    with torch.enable_grad():
        logits, gradient = ascent(point)
        for _ in range(_STEPS):
            norm = gradient.flatten(1).norm(dim=1)
            going = (logits < usual) & (norm > 0)
            if not bool(going.any()):
                break
            # Rows that have arrived stay where they are.
            under_way, norm = under_way[going], norm[going].clamp(min=1e-12)
            point, gradient, logits = point[going], gradient[going], logits[going]
            # No further than where a straight line would reach the usual logit.
            length = torch.minimum((usual - logits) / norm, norm.new_tensor(_STEP * radius))
            move = (length / norm).view(shape) * gradient
            moved = point + move
            logits, following = ascent(moved)
            total[under_way] += move * (gradient + following) / 2
            point, gradient = moved, following
    return total


def plot_explanation(
    contributions: ArrayLike, names: Sequence[str] | None = None, *, most: int = 10, ax: Any = None
) -> Any:
    """Draw what `explain` says of one row: a bar for each of its largest contributions.

    Args:
        contributions: `[D]`, one row of `explain`.
        names: Names of the columns; None for their numbers.
        most: Bars at the most.
        ax: matplotlib axes to draw on; None for new ones.

    Returns:
        The axes.

    Raises:
        ValueError: If contributions is not one row, or names are not as many.
    """
    values = np.asarray(contributions, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"plot_explanation: contributions must be one row, got {values.shape}")
    if names is None:
        names = [f"column {i}" for i in range(len(values))]
    if len(names) != len(values):
        raise ValueError(
            f"plot_explanation: names must be {len(values)}, one for each column, got {len(names)}"
        )
    if ax is None:
        import matplotlib.pyplot as plt

        ax = plt.subplots(layout="constrained")[1]
    order = np.argsort(-np.abs(values), kind="stable")[:most][::-1]
    colors = ["tab:red" if values[i] > 0 else "tab:blue" for i in order]
    ax.barh([names[i] for i in order], values[order], color=colors)
    ax.axvline(0.0, color="black", linewidth=0.8)
    ax.set_xlabel("contribution to the score")
    return ax
