"""Usual values of columns, and what differs from them whatever type a table had."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# What is no further from a usual value, in parts of it, is that value: means and sums of one number
# differ by so much.
ROUNDING = 64 * float(np.finfo(np.float64).eps)
# Deviation in steps of float32, below which its numbers tell little of a column.
_LEAST_STEPS = 4.0
# Share of distinct rows that differ in a column of continuous values; share of rows that differ.
_CONTINUOUS, _LEAST_DISTINCT = 0.9, 0.2
# Binary digits of float16, float32 and float64.
HALF, SINGLE, DOUBLE = 11.0, 24.0, 53.0


def modes_of(x: Floats) -> tuple[Floats, Floats]:
    """Find usual values: medians, for a value of more than half the rows is it.

    Args:
        x: Rows, `[N, D]`.

    Returns:
        The medians `[D]`, and the share of rows that have them, `[D]`.
    """
    medians = np.partition(x, len(x) // 2, axis=0)[len(x) // 2]
    return medians, np.mean(is_as(x, medians), axis=0)


def is_as(x: Floats, values: Floats) -> npt.NDArray[np.bool_]:
    """Say where rows have given values, to the rounding of a few sums.

    Args:
        x: `[N, R]`.
        values: `[R]`.

    Returns:
        `[N, R]`.
    """
    with np.errstate(over="ignore"):
        same: npt.NDArray[np.bool_] = np.abs(x - values) <= ROUNDING * np.abs(values)
    return same


def usual_forms(mode: Floats) -> Floats:
    """List the numbers that a usual value has when it passes through a table of another type.

    Args:
        mode: Usual values, `[R]`.

    Returns:
        `[3, R]`, as it is, in float32 and in float16.
    """
    with np.errstate(over="ignore", under="ignore"):
        half = mode.astype(np.float16).astype(np.float64)
        half = np.where((half == 0) | ~np.isfinite(half), mode, half)  # half has few exponents
        return np.stack([mode, mode.astype(np.float32).astype(np.float64), half])


def rounding_types(mode: Floats, digits: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Say in which short types a number that rounds to a usual value is that value.

    A fraction may come from float32 always; a large integer, or a fraction in float16, only where
    their column was of that type: identifiers differ by one.

    Args:
        mode: Usual values, `[R]`.
        digits: Of the columns they come from, `[R]` or one number.

    Returns:
        `[2, R]`: in float32, and in float16.
    """
    digits = np.asarray(digits)
    is_fraction = mode != np.rint(mode)
    single = is_fraction | ((digits <= SINGLE) & (np.abs(mode) >= 2**SINGLE))
    half = (digits <= HALF) & (is_fraction | (np.abs(mode) >= 2**HALF))
    return np.stack([single, half])


def differs(x: Floats, mode: Floats, digits: npt.ArrayLike = DOUBLE) -> npt.NDArray[np.bool_]:
    """Compare rows with usual values, whose type may have been another.

    Args:
        x: `[N, R]`.
        mode: `[R]`.
        digits: Of the columns that the usual values come from, `[R]` or one number.

    Returns:
        Where they differ, `[N, R]`.
    """
    other = np.ones(x.shape, dtype=bool)
    for form in usual_forms(mode):
        other &= ~is_as(x, form)
    with np.errstate(over="ignore", under="ignore"):
        in_single, in_half = rounding_types(mode, digits)
        for kind, rounds in ((np.float32, in_single), (np.float16, in_half)):
            if rounds.any():
                other &= (x.astype(kind).astype(np.float64) != mode) | ~rounds
    return other


def are_continuous(distinct: npt.NDArray[Any], count: int) -> bool:
    """Say whether rows are of continuous values, so that none has a copy by chance.

    Args:
        distinct: The rows that differ, `[n, D]`.
        count: Of all rows: a table that was doubled, or drawn from with replacement, has more
            distinct rows than a fifth.

    Returns:
        Whether in some column nearly all of them differ.
    """
    most = max(len(np.unique(column)) for column in distinct.T)
    return most >= _CONTINUOUS * len(distinct) and len(distinct) >= _LEAST_DISTINCT * count


def blurred(columns: npt.NDArray[np.int64], mean: Floats, scale: Floats, x: Floats) -> list[int]:
    """List columns that float32 cannot hold well enough, where rows hold numbers of float32.

    Args:
        columns: Positions of standardized columns, `[V]`.
        mean: Their means, `[V]`.
        scale: Their deviations, `[V]`.
        x: Rows `[N, D]`.

    Returns:
        Those whose values vary by few of float32's steps or less.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        steps = np.spacing(np.abs(mean).astype(np.float32)).astype(np.float64)
        narrow = scale < _LEAST_STEPS * steps
        if not narrow.any() or len(x) < 2:  # one row may be a number of float32 by chance
            return []
        values = x[:, columns[narrow]]
        rounded = (values.astype(np.float32) == values).all(axis=0)
        moved = (np.abs(values - mean[narrow]) > scale[narrow]).any(axis=0)
    return [int(column) for column in columns[narrow][rounded & moved]]
