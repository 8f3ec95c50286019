"""Rules that need no label, for the question whether one puts DROCC ahead of kNN on every set.

A rule trains on standardized normal rows and scores others; higher = more anomalous.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from drocc_ext import Callback, DROCCLoss, SearchConfig, Trainer, suggest_radius
from drocc_ext.metrics import roc_auc
from drocc_ext.models.networks import MLP

Scores = npt.NDArray[np.float64]

_NEIGHBOUR = 5
_BATCH = 256
_HELD_OUT = 0.2
_QUICK_STEPS = 10


@dataclass(frozen=True)
class Settings:
    """Of one training; the defaults are the estimator's.

    Attributes:
        quantile: Of the distance to the fifth neighbour, for the radius; None for sqrt(D) / 2.
        multiple: Of that radius.
        num_steps: Ascent steps.
        max_steps: Optimizer steps.
    """

    quantile: float | None = 0.95
    multiple: float = 1.0
    num_steps: int = 5
    max_steps: int = 300

    def radius(self, rows: Tensor) -> float:
        """Return the radius for training rows `[N, D]`."""
        if self.quantile is None:
            return self.multiple * suggest_radius(rows, "sqrt_dim")
        k = min(_NEIGHBOUR, len(rows) - 1)
        return self.multiple * suggest_radius(rows, quantile=self.quantile, k=k)


def train(rows: Tensor, seed: int, settings: Settings, quick: bool, **fit: Any) -> Trainer:
    """Train as the estimator does, with these settings.

    Args:
        rows: `[N, D]`, standardized.
        seed: Seed of weights, order and noise.
        settings: The settings.
        quick: A few steps only.
        fit: "callbacks", and other arguments of `Trainer.fit`.

    Returns:
        The trainer.
    """
    steps = _QUICK_STEPS if quick else settings.max_steps
    radius = settings.radius(rows)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = MLP(rows.shape[1])
    search = SearchConfig.from_relative_step(radius, num_steps=settings.num_steps)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    trainer = Trainer(
        network,
        DROCCLoss(search, mu=2.0),
        optimizer,
        scheduler=LambdaLR(optimizer, lambda step: 1 - step / steps),
        scheduler_interval="step",
        callbacks=fit.pop("callbacks", ()),
        progress=False,
    )
    trainer.fit(rows, max_steps=steps, batch_size=_BATCH, seed=seed, **fit)
    return trainer


@dataclass(frozen=True)
class Rule:
    """A rule and what the table says of it.

    Attributes:
        text: What it does, for the page.
        scores: Training rows, test rows, seed, whether quick -> scores of the test rows.
    """

    text: str
    scores: Callable[[Tensor, Tensor, int, bool], Scores]


def _single(settings: Settings) -> Callable[[Tensor, Tensor, int, bool], Scores]:
    def scores(rows: Tensor, test: Tensor, seed: int, quick: bool) -> Scores:
        return _logits(train(rows, seed, settings, quick), test) * -1

    return scores


def _logits(trainer: Trainer, rows: Tensor) -> Scores:
    return np.asarray(trainer.score(rows).double().numpy())


def _mean(
    settings: tuple[Settings, ...], members: int = 1
) -> Callable[[Tensor, Tensor, int, bool], Scores]:
    """Average scores, each standardized by those of its training rows."""

    def scores(rows: Tensor, test: Tensor, seed: int, quick: bool) -> Scores:
        total = np.zeros(len(test))
        for member in range(members):
            for each in settings:
                trainer = train(rows, 1000 * member + seed, each, quick)
                total -= _standardized(_logits(trainer, test), _logits(trainer, rows))
        return total

    return scores


def _standardized(values: Scores, reference: Scores) -> Scores:
    return np.asarray((values - reference.mean()) / (reference.std() or 1.0))


def rotated(rows: Tensor, test: Tensor, kept: float | None, shrinkage: float = 0.1) -> list[Tensor]:
    """Turn rows to their principal axes; fitted on the training rows.

    Args:
        rows: `[N, D]`, to fit on.
        test: `[M, D]`.
        kept: Share of the variance to keep axes for, which stay as long as they are; None for all
            axes, each divided by its deviation.
        shrinkage: Added to the variances that are divided by.

    Returns:
        Both, turned.
    """
    mean = rows.double().mean(0)
    variance, axes = torch.linalg.eigh(torch.cov((rows.double() - mean).T))
    if kept is None:
        axes = axes / (variance.clamp_min(0) + shrinkage).sqrt()
    else:
        share = variance.flip(0).cumsum(0) / variance.sum()
        axes = axes.flip(1)[:, : int((share < kept).sum()) + 1]
    return [((x.double() - mean) @ axes).float() for x in (rows, test)]


def _turned(
    rule: Callable[[Tensor, Tensor, int, bool], Scores], kept: float | None = None
) -> Callable[[Tensor, Tensor, int, bool], Scores]:
    def scores(rows: Tensor, test: Tensor, seed: int, quick: bool) -> Scores:
        return rule(*rotated(rows, test, kept), seed, quick)

    return scores


def _parts(rows: Tensor, seed: int, share: float) -> tuple[Tensor, Tensor]:
    """Split training rows at random: (1 - share, share)."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    count = round(share * len(rows))
    return rows[order[count:]], rows[order[:count]]


def _held_out_loss(settings: Settings) -> Callable[[Tensor, Tensor, int, bool], Scores]:
    """Keep the epoch of the smallest loss on held-out normal rows and points sought around them."""

    def scores(rows: Tensor, test: Tensor, seed: int, quick: bool) -> Scores:
        used, held_out = _parts(rows, seed, _HELD_OUT)
        return -_logits(train(used, seed, settings, quick, validation=held_out), test)

    return scores


class _Watch(Callback):
    """Keep weights, and logits of some rows, after each epoch."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self.logits: list[Scores] = []
        self.weights: list[dict[str, Any]] = []

    def on_epoch_end(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """Look."""
        self.logits.append(_logits(trainer, self.rows))
        self.weights.append(copy.deepcopy(trainer.model.state_dict()))


def _agreement(settings: Settings) -> Callable[[Tensor, Tensor, int, bool], Scores]:
    """Train on two halves; keep the epoch in which they rank all rows most alike, and average."""

    def scores(rows: Tensor, test: Tensor, seed: int, quick: bool) -> Scores:
        watches, trainers = [], []
        for member, half in enumerate(_parts(rows, seed, 0.5)):
            watch = _Watch(rows)
            # Networks that begin alike would agree most before they have learned anything.
            own = 1000 * member + seed
            trainers.append(train(half, own, settings, quick, callbacks=[watch]))
            watches.append(watch)
        agreement = [
            spearmanr(a, b).statistic
            for a, b in zip(watches[0].logits, watches[1].logits, strict=False)
        ]
        best = int(np.nanargmax(agreement))
        total = np.zeros(len(test))
        for trainer, watch in zip(trainers, watches, strict=True):
            trainer.model.load_state_dict(watch.weights[best])
            total -= _standardized(_logits(trainer, test), watch.logits[best])
        return total

    return scores


def _chosen(
    candidates: tuple[Settings, ...],
    others: Callable[[Tensor, Tensor, int], Tensor],
    members: int = 1,
) -> Callable[[Tensor, Tensor, int, bool], Scores]:
    """Keep the candidate that tells held-out normal rows from made ones best, by AUC.

    With members, that for as many seeds, and the mean of the scores, each standardized.
    """

    def chosen(rows: Tensor, seed: int, quick: bool) -> Trainer:
        used, held_out = _parts(rows, seed, _HELD_OUT)
        made = others(rows, held_out, seed)
        labels = np.arange(len(held_out) + len(made)) < len(held_out)
        trainers = [train(used, seed, each, quick) for each in candidates]
        aucs = [roc_auc(_logits(t, torch.cat([held_out, made])), labels) for t in trainers]
        best = candidates[int(np.argmax(aucs))]
        return train(rows, seed, best, quick)

    def scores(rows: Tensor, test: Tensor, seed: int, quick: bool) -> Scores:
        if members == 1:
            return -_logits(chosen(rows, seed, quick), test)
        trainers = [chosen(rows, 1000 * member + seed, quick) for member in range(members)]
        parts = [_standardized(_logits(t, test), _logits(t, rows)) for t in trainers]
        return np.asarray(-np.sum(parts, axis=0))

    return scores


def in_the_box(rows: Tensor, held_out: Tensor, seed: int) -> Tensor:
    """Draw rows uniformly between the training rows' smallest and largest values."""
    generator = torch.Generator().manual_seed(seed)
    low, high = rows.min(0).values, rows.max(0).values
    return low + (high - low) * torch.rand(1000, rows.shape[1], generator=generator)


def away_from_the_mean(rows: Tensor, held_out: Tensor, seed: int) -> Tensor:
    """Move held-out rows to 1.5 times their distance from the training rows' mean."""
    mean = rows.mean(0)
    return mean + 1.5 * (held_out - mean)


_DEFAULT = Settings()
_RANDOM = Settings(num_steps=0)
_FAR = Settings(multiple=4.0)
_WIDE = tuple(Settings(multiple=multiple) for multiple in (0.5, 1.0, 2.0, 4.0))
_LONG = Settings(max_steps=600)
RULES: dict[str, Rule] = {
    "default": Rule("the estimator's", _single(_DEFAULT)),
    "random": Rule("no ascent", _single(_RANDOM)),
    "20 steps": Rule("of ascent, a way of 2 radii", _single(Settings(num_steps=20))),
    "quantile 50 %": Rule("for the radius", _single(Settings(quantile=0.5))),
    "quantile 80 %": Rule("for the radius", _single(Settings(quantile=0.8))),
    "quantile 99 %": Rule("for the radius", _single(Settings(quantile=0.99))),
    "sqrt(D)/2": Rule("the paper's rule for the radius", _single(Settings(quantile=None))),
    "half": Rule("the default's radius", _single(Settings(multiple=0.5))),
    "double": Rule("the default's radius", _single(Settings(multiple=2.0))),
    "fourfold": Rule("the default's radius", _single(_FAR)),
    "100": Rule("optimizer steps", _single(Settings(max_steps=100))),
    "600": Rule("optimizer steps", _single(_LONG)),
    "held-out loss": Rule(
        "of 600 steps, the epoch of the smallest loss on a fifth of the rows and points sought "
        "around them",
        _held_out_loss(_LONG),
    ),
    "halves agree": Rule(
        "of 300 steps on each half of the rows, the epoch in which both rank all rows most alike",
        _agreement(_DEFAULT),
    ),
    "chosen by box": Rule(
        "ascent or random, by AUC of held-out rows against rows uniform in the rows' box",
        _chosen((_DEFAULT, _RANDOM), in_the_box),
    ),
    "chosen by stretch": Rule(
        "ascent, random or fourfold, by AUC of held-out rows against the same 1.5 times as far "
        "from the mean",
        _chosen((_DEFAULT, _RANDOM, _FAR), away_from_the_mean),
    ),
    "stretch, 3 seeds": Rule(
        "mean of the candidates so chosen for three seeds",
        _chosen((_DEFAULT, _RANDOM, _FAR), away_from_the_mean, members=3),
    ),
    "whitened": Rule("the principal axes as input, each divided", _turned(_single(_DEFAULT))),
    "PCA": Rule("the axes of 95 % of the variance as input", _turned(_single(_DEFAULT), kept=0.95)),
    "3 seeds": Rule("mean of three networks", _mean((_DEFAULT,), members=3)),
    "4 radii": Rule("mean of networks of half to fourfold radius", _mean(_WIDE)),
    "ascent and random": Rule("mean of two networks", _mean((_DEFAULT, _RANDOM))),
}
