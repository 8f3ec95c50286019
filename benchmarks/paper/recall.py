"""Recall at a false positive rate, where close negatives are tested on and never trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from drocc_ext.metrics import GroupScores, evaluate_limited_negatives


def judged(validation: GroupScores, test: GroupScores, fprs: Sequence[float]) -> dict[str, Any]:
    """Choose thresholds on validation scores and judge test scores.

    Args:
        validation: Scores for the thresholds.
        test: Scores to judge.
        fprs: False positive rates.

    Returns:
        What `evaluate_limited_negatives` says, as JSON can hold it: a threshold of infinity, which
        accepts nothing, is None.
    """
    result = evaluate_limited_negatives(validation, test, fprs)
    at_fpr = [
        {**at._asdict(), "threshold": at.threshold if at.threshold < math.inf else None}
        for at in result.at_fpr
    ]
    return {**result._asdict(), "at_fpr": at_fpr}
