"""Which inputs speak for an anomaly, and a plot of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_STEPS = 300
_STEP = 0.05
_LEAST_STEP = 1e-5
_PIECES = 40  # of a straight line


def contributions(
    network: nn.Module, rows: Tensor, usual: float, radius: float, normal: Tensor | None = None
) -> Tensor:
    """Share out the fall of the score on the way back to normal rows.

    Each row goes up the gradient of its logit, a twentieth of the radius at a time, until its logit
    is the usual one or nothing leads up any more, 300 steps at the most. Where a step does not lead
    up, the row stands before a ridge: it goes on along the shortest vector between the gradients of
    both sides, by half the step. What has not arrived goes straight on to the nearest normal row,
    if there are any.

    The trapezoidal rule integrates the gradient along the way; what it misses at a kink is shared
    out by the size of the step's contributions, so that they sum up to the gain in logit.

    Args:
        network: Maps `[B, *]` to logits.
        rows: Scaled rows `[N, *]`, in the type of the network.
        usual: Logit of a usual normal row.
        radius: Inner radius of the shell.
        normal: Rows `[M, *]` of at least that logit, or None.

    Returns:
        `[N, *]`, positive where an input speaks for an anomaly.
    """
    way = _Way(network, rows)
    with torch.enable_grad():
        way.climb(usual, radius)
        if normal is not None and len(normal) > 0:
            way.go_straight(usual, normal.flatten(1))
    return way.total.reshape(rows.shape)


class _Way:
    """Where rows are, and what their inputs have contributed up to there."""

    def __init__(self, network: nn.Module, rows: Tensor) -> None:
        self.network = network
        self.shape = rows.shape[1:]
        self.point = rows.detach().flatten(1).clone()
        self.total = torch.zeros_like(self.point)
        self.logits = self.point.new_full((len(rows),), -torch.inf)

    def ascent(self, at: Tensor) -> tuple[Tensor, Tensor]:
        leaf = at.reshape(-1, *self.shape).detach().requires_grad_()
        logits = self.network(leaf).reshape(len(leaf))
        (gradient,) = torch.autograd.grad(logits.sum(), leaf)
        return logits.detach(), gradient.flatten(1)

    def climb(self, usual: float, radius: float) -> None:
        """Go up the gradient."""
        under_way = torch.arange(len(self.point), device=self.point.device)
        point = self.point.clone()
        logits, gradient = self.ascent(point)
        self.logits = logits.clone()
        direction = gradient
        step = torch.full_like(logits, _STEP * radius)
        for _ in range(_STEPS):
            norm = direction.norm(dim=1)
            going = (logits < usual) & (norm > 0) & (step > _LEAST_STEP * radius)
            if not bool(going.any()):
                break
            # Rows that have arrived stay where they are.
            under_way, norm, step = under_way[going], norm[going, None], step[going]
            point, gradient, logits = point[going], gradient[going], logits[going]
            direction = direction[going] / norm.clamp(min=1e-12)
            # No further than where a straight line would reach the usual logit.
            slope = (direction * gradient).sum(1).clamp(min=1e-12)
            move = torch.minimum((usual - logits) / slope, step)[:, None] * direction
            reached, following = self.ascent(point + move)
            up = (reached > logits)[:, None]
            part = _shared_out(move, gradient, following, reached - logits)
            share = _up_to(usual, logits, reached)
            self.total[under_way] += torch.where(up, share * part, 0.0)
            point = torch.where(up, point + move, point)
            logits = torch.where(up[:, 0], reached, logits)
            self.point[under_way], self.logits[under_way] = point, logits
            between = _shortest_between(direction * norm, following)
            direction = torch.where(up, following, between)
            gradient = torch.where(up, following, gradient)
            step = torch.where(up[:, 0], 2 * step, step / 2).clamp(max=_STEP * radius)

    def go_straight(self, usual: float, normal: Tensor) -> None:
        """Go to the nearest of the normal rows, as far as the usual logit."""
        under_way = torch.nonzero(self.logits < usual - 1e-9 * abs(usual))[:, 0]
        if len(under_way) == 0:
            return
        point, logits = self.point[under_way], self.logits[under_way]
        nearest = torch.cdist(point, normal).argmin(1)
        move = (normal[nearest] - point) / _PIECES
        _, gradient = self.ascent(point)
        for _ in range(_PIECES):
            reached, following = self.ascent(point + move)
            part = _shared_out(move, gradient, following, reached - logits)
            self.total[under_way] += _up_to(usual, logits, reached) * part
            going = reached < usual
            under_way, move = under_way[going], move[going]
            if len(under_way) == 0:
                return
            point, logits, gradient = (point[going] + move), reached[going], following[going]


def _up_to(usual: float, before: Tensor, after: Tensor) -> Tensor:
    """Share `[N, 1]` of the moves that counts: what leads beyond the usual logit does not."""
    return torch.where(after > usual, (usual - before) / (after - before), 1.0)[:, None]


def _shared_out(move: Tensor, before: Tensor, after: Tensor, gain: Tensor) -> Tensor:
    """Contributions `[N, D]` of a move by the gradients at its ends; they sum up to the gain."""
    part = move * (before + after) / 2
    size = part.abs()
    missed = gain - part.sum(1)
    return part + size * (missed / size.sum(1).clamp(min=1e-300))[:, None]


def _shortest_between(a: Tensor, b: Tensor) -> Tensor:
    """The shortest of the vectors from a to b, `[N, D]` each: where a kink leads up most."""
    apart = b - a
    share = -(a * apart).sum(1) / apart.square().sum(1).clamp(min=1e-300)
    return a + share.clamp(0, 1)[:, None] * apart


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
