"""Scores and selection criteria of a trainer, on held-out data."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from drocc_ext import metrics
from drocc_ext.models.modes import frozen
from drocc_ext.models.modules import as_logits, full_precision, keeping_gradients, unwrap
from drocc_ext.training.data import Batches
from drocc_ext.training.loss import DROCCLoss, as_normal_mask
from drocc_ext.training.ranks import OneProcess

_Array: TypeAlias = "np.ndarray[Any, Any]"
Monitor: TypeAlias = "Literal['loss', 'auc'] | Callable[[_Array, _Array], float]"
Autocast: TypeAlias = Callable[[], AbstractContextManager[Any]]

# One seed for every validation, so that its values differ by the weights only.
_VALIDATION_SEED = 0


def collect_scores(
    model: nn.Module, batches: Batches, autocast: Autocast
) -> tuple[Tensor, Tensor | None]:
    """Score all rows with the model in the `frozen` state, without gradients.

    Args:
        model: Maps `[B, *]` to logits `[B]` or `[B, 1]`.
        batches: The rows.
        autocast: Makes the context of the forward.

    Returns:
        Logits `[N]`, and labels `[N]` or `[N, 1]` where every batch has them; both on the CPU.
    """
    module = unwrap(model)
    scores: list[Tensor] = []
    labels: list[Tensor | None] = []
    with keeping_gradients(), torch.no_grad(), autocast():
        for x, y in batches:
            with frozen(module):  # not for longer: a thread that trains it waits
                scores.append(full_precision(as_logits(module(x), x.shape[0])))
            labels.append(y)
    if not scores:
        return torch.empty(0, device="cpu"), None
    given = [y for y in labels if y is not None]
    return torch.cat(scores).cpu(), torch.cat(given).cpu() if len(given) == len(labels) else None


def monitored_value(
    caller: str,
    monitor: Monitor,
    loss: DROCCLoss,
    model: nn.Module,
    batches: Batches,
    autocast: Autocast,
    ranks: OneProcess | None = None,
) -> float:
    """Evaluate the criterion that selects an epoch.

    Args:
        caller: Name to begin an error with.
        monitor: "loss", "auc" or a function of scores and labels, see `Trainer.fit`.
        loss: The objective, for "loss".
        model: The model.
        batches: Validation data.
        autocast: Makes the context of the forward.
        ranks: Who shares the rows; None: this process has them all.

    Returns:
        The value, the same on all ranks.

    Raises:
        ValueError: If the data has not the rows or labels that the criterion needs.
        TypeError: If a function gives no number.
        FloatingPointError: If the value is not finite.
    """
    if monitor == "loss":
        value = _held_out_loss(caller, loss, model, batches, autocast, ranks)
    else:
        scores, y = collect_scores(model, batches, autocast)
        if ranks is not None:
            scores, y = ranks.whole(batches, scores, y)
        is_normal = check_labels(caller, y, scores.shape[0], both_classes=monitor == "auc")
        metric = monitor if callable(monitor) else metrics.roc_auc
        found = metric(scores.numpy(), is_normal.numpy().astype(np.int64))
        try:
            value = float(found)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{caller}: monitor must give a number, got {found!r}") from error
    if ranks is not None:
        value = ranks.shared(value)
    if not math.isfinite(value):
        raise FloatingPointError(f"{caller}: the monitored value is {value}")
    return value


def check_labels(caller: str, y: Tensor | None, rows: int, *, both_classes: bool = False) -> Tensor:
    """Refuse labels that a metric cannot use.

    Args:
        caller: Name to begin an error with.
        y: Labels, `[N]` or `[N, 1]`: 1 = normal, 0 = anomaly.
        rows: Number of rows N.
        both_classes: Whether both must occur.

    Returns:
        Boolean tensor `[N]`, True = normal.

    Raises:
        ValueError: If there are none, or they are not as required.
    """
    if y is None:
        raise ValueError(f"{caller}: labels are needed, got data without labels")
    is_normal = as_normal_mask(caller, y, rows)
    if both_classes and bool(is_normal.all() | ~is_normal.any()):
        only = "no rows" if rows == 0 else f"only label {int(is_normal[0])}"
        raise ValueError(f"{caller}: labels of both classes are needed, got {only}")
    return is_normal


def _held_out_loss(
    caller: str,
    loss: DROCCLoss,
    model: nn.Module,
    batches: Batches,
    autocast: Autocast,
    ranks: OneProcess | None,
) -> float:
    module = unwrap(model)
    total, rows, generator = 0.0, 0.0, None
    # The loss too: in training mode it counts the rows that it sees for its next sigma.
    with torch.no_grad(), frozen(module), frozen(loss), autocast():
        for x, y in batches:
            if y is not None:
                x = x[as_normal_mask(caller, y, x.shape[0])]
            if generator is None:
                generator = torch.Generator(x.device).manual_seed(_VALIDATION_SEED)
            total += float(loss(module, x, generator=generator).total) * x.shape[0]
            rows += x.shape[0]
    if ranks is not None:
        total, rows = ranks.add([total, rows])
    if rows == 0:
        raise ValueError(f"{caller}: normal rows are needed, got none")
    return total / rows
