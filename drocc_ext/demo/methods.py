"""The methods compared with limited negatives (section 5.2), and one way to train them all."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from drocc_ext.search import SearchConfig
from drocc_ext.training.loss import DROCCLoss, Metric
from drocc_ext.training.trainer import Trainer


@dataclass(frozen=True)
class Method:
    """What tells one method from another.

    Attributes:
        search: Settings of the adversarial search; None leaves the adversarial term out (BCE).
        negatives: Whether the labelled negatives are trained on.
        metric: Geometry of the shell, as in `DROCCLoss`.
        influence: Where sigma comes from in the metric "mahalanobis".
        mu: Weight of the adversarial term.
    """

    search: SearchConfig | None
    negatives: bool = True
    metric: Metric = "l2"
    influence: Literal["epoch", "sample"] = "epoch"
    mu: float = 1.0


def train(
    network: nn.Module,
    method: Method,
    normal: Tensor,
    negatives: Tensor,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    autocast_dtype: torch.dtype | None = None,
) -> Trainer:
    """Train by Adam, its rate falling linearly to 0, and keep the last weights: no selection.

    Args:
        network: Maps `[B, *]` to logits `[B, 1]`; trained in place.
        method: How.
        normal: Rows `[N, *]`.
        negatives: Rows `[M, *]`, shuffled among the others where the method uses them.
        steps: Optimizer steps, the same number for every method.
        batch_size: Labelled rows per batch; adversarial points come on top.
        learning_rate: Rate of the first step.
        seed: Seed of shuffling and search noise.
        autocast_dtype: For mixed precision, as in `Trainer`.

    Returns:
        The network in its trainer.
    """
    rows = torch.cat([normal, negatives]) if method.negatives else normal
    labels = (torch.arange(len(rows)) < len(normal)).float()
    search = method.search or SearchConfig(radius=1.0, step_size=0.0, num_steps=0)
    return fit_with_linear_decay(
        network,
        DROCCLoss(search, method.mu, method.metric, method.influence),
        torch.optim.Adam(network.parameters(), lr=learning_rate),
        (rows, labels),
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        # An epoch has a step at least, so this many never end: no adversarial term at all.
        warmup_epochs=steps if method.search is None else 0,
        autocast_dtype=autocast_dtype,
        progress=sys.stderr.isatty(),
    )


def fit_with_linear_decay(
    network: nn.Module,
    loss: DROCCLoss,
    optimizer: torch.optim.Optimizer,
    data: Any,
    *,
    steps: int,
    batch_size: int,
    seed: int,
    warmup_epochs: int = 0,
    progress: bool = False,
    **settings: Any,
) -> Trainer:
    """Train for a number of steps, the learning rate falling linearly to 0; no selection.

    Args:
        network: Maps `[B, *]` to logits `[B, 1]`; trained in place.
        loss: The objective.
        optimizer: Of the network's parameters, with the rate of the first step.
        data: What `Trainer.fit` takes.
        steps: Optimizer steps.
        batch_size: Rows per batch.
        seed: Seed of shuffling and search noise.
        warmup_epochs: Epochs without the adversarial term.
        progress: Show a bar.
        settings: Others of `Trainer`.

    Returns:
        The network, with the last weights, in its trainer.
    """
    trainer = Trainer(
        network,
        loss,
        optimizer,
        scheduler=LambdaLR(optimizer, lambda step: 1 - step / steps),
        scheduler_interval="step",
        progress=progress,
        **settings,
    )
    with warnings.catch_warnings():
        # Settings here come from experiments, some of which favor the shortest paths.
        warnings.filterwarnings("ignore", "the adversarial search travels", UserWarning)
        trainer.fit(
            data, max_steps=steps, batch_size=batch_size, warmup_epochs=warmup_epochs, seed=seed
        )
    return trainer
