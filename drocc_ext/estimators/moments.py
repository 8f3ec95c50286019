"""Means and deviations of columns, whatever a few rows hold."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

CLIP = 10.0
_MOST_ROUNDS = 60
# In units of the range of the middle 80 % of a column: what is further away than this is no value.
# Few rows show no tails so long that the first could be one.
_GROSS_AMONG_FEW, _GROSS, _FEW = 100.0, 1e5, 400
# Gaps behind which numbers stand for no value, in distances from the median to the last value, and
# how often each number there has to be; the share of rows that may lie there; and how many rows
# have to differ from a usual value to tell what is far from it.
_GAPS = ((10.0, 2), (3.0, 10))
_MOST_SENTINELS, _LEAST_OTHERS = 0.2, 5


def robust_moments(x: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation of values clipped to +-10 of it: a fixed point, from above.

    Args:
        x: Rows, `[N, D]`.

    Returns:
        Means and deviations, `[D]` each.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        mean, scale = x.mean(axis=0), x.std(axis=0)
        settled = _without_gross_values(x, mean, scale)
        for column, kept in _without_sentinels(x):
            # What is left may hold others, on the other side or by themselves.
            values = robust_moments(x[kept][:, [column]])
            _settle(x, column, float(values[0][0]), float(values[1][0]), mean, scale)
            settled[column] = True
        for _ in range(_MOST_ROUNDS):
            outside = np.abs(x - mean) > CLIP * scale
            columns = np.flatnonzero(outside.any(axis=0) & np.isfinite(scale) & ~settled)
            if columns.size == 0:
                break
            low, high = (
                mean[columns] - CLIP * scale[columns],
                mean[columns] + CLIP * scale[columns],
            )
            clipped = np.clip(x[:, columns], low, high)
            before = scale[columns]
            mean[columns], scale[columns] = clipped.mean(axis=0), clipped.std(axis=0)
            if (scale[columns] > 0.999 * before).all():
                break
    return mean, scale


def _without_gross_values(x: Floats, mean: Floats, scale: Floats) -> npt.NDArray[np.bool_]:
    """Set the moments of columns with gross values, and say which ones these are.

    Among few rows no value is 10 deviations away, whatever it is, and a value of 1e38 takes more
    rounds than there are.
    """
    settled = np.zeros(x.shape[1], dtype=bool)
    few = len(x) <= _FEW
    usual = np.isfinite(scale) & (np.abs(x - mean) <= CLIP * scale).all(axis=0)
    suspected = np.flatnonzero(few | ~usual)
    if suspected.size == 0:
        return settled
    columns = x[:, suspected]
    # Values themselves: between two of them lies a share of the gross one.
    low = np.percentile(columns, 10, axis=0, method="higher")
    high = np.percentile(columns, 90, axis=0, method="lower")
    middle = np.percentile(columns, 50, axis=0, method="lower")
    most = _GROSS_AMONG_FEW if few else _GROSS
    span = high - low
    for at in np.flatnonzero(span == 0):  # a usual value; the others tell how far is far
        span[at] = _typical_distance(columns[:, at], middle[at])
    usual = np.abs(columns - middle) <= most * span
    for at in np.flatnonzero((span > 0) & ~usual.all(axis=0)):
        values = x[usual[:, at], suspected[at]]
        _settle(x, suspected[at], float(values.mean()), float(values.std()), mean, scale)
        settled[suspected[at]] = True
    return settled


def _settle(
    x: Floats, column: int, middle: float, deviation: float, mean: Floats, scale: Floats
) -> None:
    """Set the moments of a column whose values, but for a few, have such moments."""
    most = CLIP * deviation
    values = np.clip(x[:, column], middle - most, middle + most)
    mean[column], scale[column] = values.mean(), values.std()


def _without_sentinels(x: Floats) -> Iterator[tuple[int, npt.NDArray[np.bool_]]]:
    """Find columns with numbers that stand for none, such as 99999 in one row of twenty.

    They come again and again, and far from all that is measured. A share of 2 % is not ten
    deviations away, for it makes the deviation.

    Yields:
        A column, and which rows have values there, `[N]`.
    """
    low, middle, high = np.percentile(x, [25, 50, 75], axis=0, method="lower")
    with np.errstate(over="ignore", invalid="ignore"):
        wide = np.maximum(x.max(axis=0) - high, low - x.min(axis=0))
        suspected = np.flatnonzero(wide > _GAPS[-1][0] * (high - low))
    for column in suspected:
        spread = high[column] - low[column]
        if spread == 0:
            spread = _typical_distance(x[:, column], middle[column])
        if spread == 0:
            continue
        kept = np.ones(len(x), dtype=bool)
        for sign in (1.0, -1.0):
            values = sign * (x[:, column] - middle[column])
            kept &= values <= _last_measured(values, spread)
        if not kept.all():
            yield int(column), kept


def _typical_distance(values: Floats, usual: float) -> float:
    """How far from a usual value the others are, by the median of them; 0 where they are few."""
    others = np.abs(values[values != usual] - usual)
    return float(np.median(others)) if len(others) >= _LEAST_OTHERS else 0.0


def _last_measured(values: Floats, spread: float) -> float:
    """Find the largest value before a gap behind which few rows repeat few numbers; else inf."""
    distinct, counts = np.unique(values[values >= 0], return_counts=True)
    behind = np.cumsum(counts[::-1])[::-1]  # rows from each value on
    rows, different = behind[1:], np.arange(len(distinct) - 1, 0, -1)
    # Of what is not at the usual value itself at most half.
    few = (rows <= _MOST_SENTINELS * len(values)) & (2 * rows <= max(np.sum(values != 0), 1))
    found = np.zeros(len(rows), dtype=bool)
    with np.errstate(over="ignore"):
        # One value of few is never ten deviations away, however far it is.
        alone = ((_GAPS[0][0], 1),) if len(values) <= CLIP**2 + 1 else ()
        for gap, times in (*_GAPS, *alone):
            wide = np.diff(distinct) > gap * np.maximum(distinct[:-1], spread)
            found |= wide & few & (rows >= times * different)
    return float(distinct[:-1][found][0]) if found.any() else np.inf
