"""Scores of one-class classifiers.

Every function takes `scores`, where HIGHER MEANS MORE NORMAL (as the network's logit), and
`labels`, 1 = normal and 0 = anomaly: array-likes or tensors of shape [N] or [N, 1] on any device.
Every function raises `TypeError` for what is no number, and `ValueError` for lengths that differ,
scores that are not finite, labels other than 0 and 1, and labels of one class only.
`evaluate_limited_negatives` takes its rows by group instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import f1_score, roc_auc_score

from drocc_ext._checks import as_float, as_int

__all__ = [
    "GroupScores",
    "LimitedNegativesResult",
    "RecallAtFPR",
    "evaluate_limited_negatives",
    "f1_published",
    "f1_top_n",
    "recall_at_fpr",
    "roc_auc",
    "threshold_at_fpr",
]

_Floats = npt.NDArray[np.float64]
_Bools = npt.NDArray[np.bool_]


class GroupScores(NamedTuple):
    """Scores of one part of the data of an experiment with limited negatives, by kind of row.

    Attributes:
        normal: `[N]` or `[N, 1]`, higher = more normal, as for the other functions here.
        far: The same of negatives like those of training.
        close: The same of negatives near the normal rows, unlike any of training.
    """

    normal: Any
    far: Any
    close: Any


class RecallAtFPR(NamedTuple):
    """What one bound on the false positive rate lets through.

    Attributes:
        fpr_bound: Largest false positive rate, asked for.
        threshold: Accept `score >= threshold`; chosen on validation data. `inf` where no normal
            row of these can be accepted within the bound.
        recall: Share of the normal test rows accepted.
        fpr: Share of all negative test rows accepted. Can exceed the bound, as the threshold was
            chosen on other rows.
        fpr_far: Share of the far ones.
        fpr_close: Share of the close ones.
        recall_test_threshold: Recall with the threshold chosen on the test rows themselves.
    """

    fpr_bound: float
    threshold: float
    recall: float
    fpr: float
    fpr_far: float
    fpr_close: float
    recall_test_threshold: float


class LimitedNegativesResult(NamedTuple):
    """Result of `evaluate_limited_negatives`, all on test rows.

    Attributes:
        auc: Area under the ROC curve, normal rows against all negatives.
        auc_far: The same against the far ones.
        auc_close: The same against the close ones.
        at_fpr: One entry for each bound, in the order asked for.
    """

    auc: float
    auc_far: float
    auc_close: float
    at_fpr: tuple[RecallAtFPR, ...]


def roc_auc(scores: Any, labels: Any) -> float:
    """Area under the ROC curve: how often a normal row outranks an anomaly (a tie counts one half).

    Args:
        scores: [N], higher = more normal.
        labels: [N], 1 = normal, 0 = anomaly.

    Returns:
        The area, in [0, 1].
    """
    values, normal = _check("roc_auc", scores, labels)
    return float(roc_auc_score(normal, values))


def threshold_at_fpr(scores: Any, labels: Any, fpr: float) -> float:
    """Find the threshold of largest recall at a false positive rate of at most `fpr`.

    A row is accepted (called normal) where `score >= threshold`. The threshold is the score of a
    normal row, so it means the same in any floating type; tied rows stay on one side of it.

    Args:
        scores: [N], higher = more normal.
        labels: [N], 1 = normal, 0 = anomaly.
        fpr: largest false positive rate, in [0, 1]: the share of anomalies that may be called
            normal.

    Returns:
        The threshold, or `inf` where no normal row can be accepted within `fpr`.

    Raises:
        ValueError: also for `fpr` outside [0, 1].
    """
    return _threshold(*_check("threshold_at_fpr", scores, labels), fpr, "threshold_at_fpr")


def recall_at_fpr(
    scores: Any, labels: Any, fpr: float = 0.03, threshold: float | None = None
) -> float:
    """Share of the normal rows accepted at a false positive rate of at most `fpr`.

    The measure of the paper's experiments with limited negatives (section 5.2).

    Args:
        scores: [N], higher = more normal.
        labels: [N], 1 = normal, 0 = anomaly.
        fpr: largest false positive rate, in [0, 1]. Not used where `threshold` is given.
        threshold: accept `score >= threshold`; chosen on other data with
            `threshold_at_fpr`. The default chooses it on these rows.

    Returns:
        The recall, in [0, 1].

    Raises:
        ValueError: also for `fpr` outside [0, 1] and a NaN threshold.
    """
    values, normal = _check("recall_at_fpr", scores, labels)
    if threshold is None:
        threshold = _threshold(values, normal, fpr, "recall_at_fpr")
    elif np.isnan(as_float("recall_at_fpr", "threshold", threshold)):
        raise ValueError("recall_at_fpr: threshold must be a number, got nan")
    return float(np.mean(values[normal] >= threshold))


def evaluate_limited_negatives(
    validation: GroupScores, test: GroupScores, fprs: Sequence[float] = (0.03, 0.05)
) -> LimitedNegativesResult:
    """Judge a classifier by the protocol of section 4.1: recall at a bounded false positive rate.

    Far and close negatives count together, each row once, and normal rows are accepted where
    `score >= threshold`. The threshold is chosen on validation rows, as a deployment would have to.
    The published script chooses it on the test negatives: `recall_test_threshold`, for comparison.

    Args:
        validation: Scores of rows held out of training; what their close negatives are made of
            decides which close negatives the threshold is meant for.
        test: Scores of other rows.
        fprs: Bounds on the false positive rate, each in [0, 1].

    Returns:
        Recalls, attained false positive rates and areas.

    Raises:
        TypeError: If validation or test is no GroupScores, or fprs no sequence.
        ValueError: If a group is empty, has another shape or holds scores that are not finite, or
            if `fprs` is empty or holds a value outside [0, 1].
    """
    caller = "evaluate_limited_negatives"
    if not isinstance(fprs, Sequence) or isinstance(fprs, str):
        raise TypeError(f"{caller}: fprs must be a sequence of rates, got {fprs!r}")
    if len(fprs) == 0:
        raise ValueError(f"{caller}: fprs must hold at least one rate, got none")
    for fpr in fprs:
        if not 0 <= as_float(caller, "fprs", fpr) <= 1:
            raise ValueError(f"{caller}: fprs must be between 0 and 1, got {fpr}")
    held_out = _groups(caller, "validation", validation)
    normal, far, close = _groups(caller, "test", test)
    rows = _labelled(normal, far, close)
    at_fpr = []
    for fpr in fprs:
        threshold = threshold_at_fpr(*_labelled(*held_out), fpr)
        at_fpr.append(
            RecallAtFPR(
                fpr_bound=float(fpr),
                threshold=threshold,
                recall=recall_at_fpr(*rows, threshold=threshold),
                fpr=float(np.mean(np.concatenate([far, close]) >= threshold)),
                fpr_far=float(np.mean(far >= threshold)),
                fpr_close=float(np.mean(close >= threshold)),
                recall_test_threshold=recall_at_fpr(*rows, fpr),
            )
        )
    return LimitedNegativesResult(
        auc=roc_auc(*rows),
        auc_far=roc_auc(*_labelled(normal, far)),
        auc_close=roc_auc(*_labelled(normal, close)),
        at_fpr=tuple(at_fpr),
    )


def f1_top_n(scores: Any, labels: Any, n: int | None = None) -> float:
    """F1 of the anomalies, the positive class, if the `n` lowest scores are called anomalous.

    This is the protocol of the tabular tables in the literature: with the default `n` precision,
    recall and F1 are one number. Where the n-th row is tied with others, the result is the mean
    over all orders of the tied rows, so it does not depend on the order of the input.

    Args:
        scores: [N], higher = more normal.
        labels: [N], 1 = normal, 0 = anomaly.
        n: number of rows to call anomalous, 1 to N; by default the number of anomalies.

    Returns:
        The F1 score, in [0, 1].

    Raises:
        ValueError: also for `n` outside 1 to N.
    """
    values, normal = _check("f1_top_n", scores, labels)
    anomalies = int(np.count_nonzero(~normal))
    if n is None:
        n = anomalies
    elif not 1 <= as_int("f1_top_n", "n", n, -(2**63)) <= values.size:
        raise ValueError(f"f1_top_n: n must be between 1 and {values.size} (the rows), got {n}")
    last = np.partition(values, n - 1)[n - 1]
    below, tied = values < last, values == last
    share_of_tied = (n - np.count_nonzero(below)) / np.count_nonzero(tied)
    hits = np.count_nonzero(below & ~normal) + share_of_tied * np.count_nonzero(tied & ~normal)
    return float(2 * hits / (n + anomalies))


def f1_published(scores: Any, labels: Any) -> float:
    """F1 as the published tabular script computes it; for comparison with its output only.

    The normal class is the positive one, and rows below the 20th percentile of all scores are
    called anomalous, whatever the share of anomalies. On a balanced test set (as many anomalies as
    normal rows) a perfect ranking therefore gets 0.769, the ceiling, and random scores get 0.62.
    Use :func:`f1_top_n` to judge a detector.

    Args:
        scores: [N], higher = more normal.
        labels: [N], 1 = normal, 0 = anomaly.

    Returns:
        The F1 score, in [0, 1].
    """
    values, normal = _check("f1_published", scores, labels)
    return float(f1_score(normal, values >= np.percentile(values, 20)))


def _groups(caller: str, part: str, groups: GroupScores) -> tuple[_Floats, _Floats, _Floats]:
    """Return the scores of each group as float64 [N], N >= 1."""
    if not isinstance(groups, tuple) or len(groups) != len(GroupScores._fields):
        raise TypeError(
            f"{caller}: {part} must be GroupScores, scores of normal, far and close rows, got "
            f"{type(groups).__name__}"
        )
    checked = []
    for group, given in zip(GroupScores._fields, groups, strict=True):
        name = f"{part}.{group}"
        values = _column(caller, name, given)
        if values.size == 0:
            raise ValueError(f"{caller}: {name} must hold at least one score, got none")
        checked.append(_finite(caller, name, values))
    return checked[0], checked[1], checked[2]


def _labelled(normal: _Floats, *negatives: _Floats) -> tuple[_Floats, _Bools]:
    values = np.concatenate([normal, *negatives])
    return values, np.arange(values.size) < normal.size


def _threshold(values: _Floats, normal: _Bools, fpr: float, function: str) -> float:
    if not 0 <= as_float(function, "fpr", fpr) <= 1:
        raise ValueError(f"{function}: fpr must be between 0 and 1, got {fpr}")
    anomalies = np.sort(values[~normal])[::-1]
    # Divided, not multiplied: 0.29 * 100 is below 29, but 29 / 100 is the float 0.29.
    allowed = np.count_nonzero(np.arange(1, anomalies.size + 1) / anomalies.size <= fpr)
    accepted = values[normal]
    if allowed < anomalies.size:
        accepted = accepted[accepted > anomalies[allowed]]
    return float(accepted.min(initial=np.inf))


def _check(function: str, scores: Any, labels: Any) -> tuple[_Floats, _Bools]:
    """Return the scores as float64 [N] and a mask [N] of the normal rows."""
    values, marks = _column(function, "scores", scores), _column(function, "labels", labels)
    if values.size != marks.size:
        raise ValueError(
            f"{function}: scores and labels must have the same length, "
            f"got {values.size} and {marks.size}"
        )
    _finite(function, "scores", values)
    if not np.isin(marks, (0, 1)).all():
        value = marks[~np.isin(marks, (0, 1))][0]
        raise ValueError(f"{function}: labels must be 1 (normal) or 0 (anomaly), got {value:g}")
    normal = marks == 1
    if normal.all() or not normal.any():
        count = int(np.count_nonzero(normal))
        raise ValueError(
            f"{function}: labels must hold both classes, got {count} normal rows "
            f"and {normal.size - count} anomalies"
        )
    return values, normal


def _finite(function: str, name: str, values: _Floats) -> _Floats:
    if not np.isfinite(values).all():
        row = int(np.argmin(np.isfinite(values)))
        raise ValueError(f"{function}: {name} must be finite, got {values[row]} in row {row}")
    return values


def _column(function: str, name: str, values: Any) -> _Floats:
    if isinstance(values, torch.Tensor):
        values = values.detach().to("cpu", torch.float64).numpy()
    array = np.asarray(values)
    if array.dtype.kind not in "biufO":
        raise TypeError(f"{function}: {name} must be real numbers, got {array.dtype}")
    try:
        array = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{function}: {name} must be real numbers, got {error}") from error
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(f"{function}: {name} must have shape [N] or [N, 1], got {array.shape}")
    return array
