"""From scores of rows that a network has not seen to thresholds and p-values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drocc_ext.estimators.usual_values import are_continuous

Floats = npt.NDArray[np.float64]

_FENCE = 1.5
# Of the rows wanted, the share from which on all that are there will do; and the least number.
_NEARLY, _LEAST = 0.8, 20
_SAMPLE = 2048  # rows that tell whether values are continuous


@dataclass(frozen=True)
class Calibration:
    """Scores of normal rows to compare with, higher = more anomalous.

    Attributes:
        scores: Of the rows, `[n]`, sorted.
        unseen: Whether the network has not been trained on them. Quantiles of scores of training
            rows promise nothing for others.
    """

    scores: Floats
    unseen: bool

    def threshold(self, contamination: float | str) -> float:
        """Choose a threshold.

        Args:
            contamination: Share of rows like these that may lie above it; "auto" for Tukey's fence,
                1.5 interquartile ranges above the upper quartile.

        Returns:
            The threshold. For unseen rows the conformal one: a fresh row from the same source lies
            above it with probability contamination at most, and short of it by 1 / (n + 1) at
            most; where there are too few rows for that, the highest score.
        """
        if contamination == "auto":
            low, high = np.quantile(self.scores, [0.25, 0.75])
            return float(high + _FENCE * (high - low))
        share = float(contamination)
        if not self.unseen:
            return float(np.quantile(self.scores, 1 - share))
        count = len(self.scores)
        rank = math.ceil((count + 1) * (1 - share) - 1e-9)
        return float(self.scores[min(rank, count) - 1])

    def p_value(self, scores: Floats) -> Floats:
        """Conformal p-values: how often a normal row has a score as high.

        Args:
            scores: `[m]`.

        Returns:
            `[m]`, `(1 + #{calibration scores >= score}) / (n + 1)`.
        """
        count = len(self.scores)
        above = count - np.searchsorted(self.scores, scores, side="left")
        result: Floats = (1 + above) / (count + 1)
        return result


def held_out_rows(
    count: int,
    calibration: str | float,
    rng: np.random.RandomState,
    unlearned: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.int64]:
    """Choose rows that calibrate.

    Args:
        count: Rows in all.
        calibration: "auto", "training", or the share to hold out.
        rng: Draws the rows.
        unlearned: Where the network that goes on has not been trained on a row, `[N]`. None: on
            none of them.

    Returns:
        Their positions, in rising order. For "auto" a tenth, but at least 100 or a fifth, and at
        least 20 or a third; none for "training", and of fewer than four rows. Where too few rows
        are unlearned, half of these, so that there are new ones to learn; where that would be fewer
        than 20, learned ones too.
    """
    if calibration == "training" or count < 4:
        return np.zeros(0, dtype=np.int64)
    if calibration == "auto":
        size = max(count // 10, min(count // 5, 100), min(count // 3, 20))
    else:
        size = min(max(1, round(float(calibration) * count)), count - 2)
    order = rng.permutation(count)
    if unlearned is not None:
        new, old = order[unlearned[order]], order[~unlearned[order]]
        order = np.concatenate([new, old])
        if len(new) >= _NEARLY * size:
            size = min(size, len(new))
        elif len(new) // 2 >= _LEAST:
            size = len(new) // 2
        else:
            order = np.concatenate([new[: len(new) // 2], old, new[len(new) // 2 :]])
    return np.sort(order[:size])


def marks_of(x: Floats) -> npt.NDArray[np.uint32]:
    """Mark rows, to know them again in a table of float64 or float32.

    Args:
        x: Rows, `[N, *]`.

    Returns:
        `[N]`; rows that differ have one mark with a chance of 2**-32. None, `[0]`, where values are
        few in all columns, or rows few, so that some are equal by chance.
    """
    with np.errstate(over="ignore"):
        flat = np.ascontiguousarray(x.reshape(len(x), -1), dtype=np.float32) + np.float32(0)
    some = flat[:_SAMPLE]
    if not are_continuous(np.unique(some, axis=0), len(some)):
        return np.zeros(0, dtype=np.uint32)
    bits = flat.view(np.uint32)
    draw = np.random.RandomState(0)
    factors = np.asarray(draw.randint(1, 2**63, bits.shape[1], dtype=np.uint64)) | np.uint64(1)
    marks = np.zeros(len(x), dtype=np.uint64)
    for column in range(bits.shape[1]):  # modulo 2**64
        marks += bits[:, column] * factors[column]
    return (marks >> np.uint64(32)).astype(np.uint32)
