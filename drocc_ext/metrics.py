"""Scores of one-class classifiers.

Every function takes `scores`, where HIGHER MEANS MORE NORMAL (as the network's logit), and
`labels`, 1 = normal and 0 = anomaly: array-likes or tensors of shape [N] or [N, 1] on any device.
Every function raises `ValueError` for lengths that differ, scores that are not finite, labels
other than 0 and 1, and labels of one class only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import f1_score, roc_auc_score

__all__ = ["f1_published", "f1_top_n", "recall_at_fpr", "roc_auc", "threshold_at_fpr"]

_Floats = npt.NDArray[np.float64]
_Bools = npt.NDArray[np.bool_]


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
    elif np.isnan(threshold):
        raise ValueError("recall_at_fpr: threshold must be a number, got nan")
    return float(np.mean(values[normal] >= threshold))


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
    elif not 1 <= n <= values.size:
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


def _threshold(values: _Floats, normal: _Bools, fpr: float, function: str) -> float:
    if not 0 <= fpr <= 1:
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
    if not np.isfinite(values).all():
        row = int(np.argmin(np.isfinite(values)))
        raise ValueError(f"{function}: scores must be finite, got {values[row]} in row {row}")
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


def _column(function: str, name: str, values: Any) -> _Floats:
    if isinstance(values, torch.Tensor):
        values = values.detach().to("cpu", torch.float64).numpy()
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(f"{function}: {name} must have shape [N] or [N, 1], got {array.shape}")
    return array
