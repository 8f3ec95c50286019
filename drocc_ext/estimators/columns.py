"""From the columns of a table to the inputs of a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

CONSTANT_SHARE = 0.99
CLIP = 10.0
# What is no further from a usual value, in parts of it, is that value: means and sums of one number
# differ by so much.
ROUNDING = 64 * float(np.finfo(np.float64).eps)
_MOST_ROUNDS = 60
# Squares of smaller deviations lose digits to underflow.
_LEAST_SCALE = 1e-150
# Deviation in steps of float32: in a table of float32 a column that varies has more.
_LEAST_STEPS = 0.05
# In units of the range of the middle 80 % of a column: what is further away than this is no value.
# Few rows show no tails so long that the first could be one.
_GROSS_AMONG_FEW, _GROSS, _FEW = 100.0, 1e5, 400


@dataclass(frozen=True)
class Standardizer:
    """Drops columns of one value but for rounding, standardizes the others, clips them to +-10.

    Attributes:
        kept: Positions of the kept columns, `[K]`.
        mean: Their means, `[K]`.
        scale: Their standard deviations, `[K]`.
    """

    kept: npt.NDArray[np.int64]
    mean: Floats
    scale: Floats

    @classmethod
    def fit(cls, caller: str, x: Floats) -> Standardizer:
        """Learn from training rows.

        Args:
            caller: Name to begin an error with.
            x: Rows, `[N, D]`, finite.

        Returns:
            The standardizer.

        Raises:
            ValueError: If no column is left, or a column's deviation overflows or underflows.
        """
        _, share = _modes(x)
        kept = np.flatnonzero(share < CONSTANT_SHARE)
        _check_varying(caller, x, kept)
        x = x[:, kept]
        with np.errstate(over="ignore", invalid="ignore"):
            mean, scale = x.mean(axis=0), x.std(axis=0)
        _check_scale(caller, kept, scale)
        return cls(kept, mean, scale)

    @property
    def width(self) -> int:
        """Inputs of the network."""
        return len(self.kept)

    def transform(self, x: Floats) -> Floats:
        """Apply to rows `[N, D]`, giving `[N, K]`."""
        return _clipped(x[:, self.kept], self.mean, self.scale)

    def penalty(self, x: Floats) -> Floats:
        """Give `[N]` zeros: dropped columns do not count."""
        return np.zeros(len(x))

    def to_columns(self, contributions: Floats, x: Floats, surplus: Floats) -> Floats:
        """Sort contributions of the inputs `[N, K]` by the columns they come from, `[N, D]`."""
        out = np.zeros_like(x)
        out[:, self.kept] = contributions
        return out

    def deviating(self, x: Floats) -> list[int]:
        """List columns whose change counts though training could not show one: none."""
        return []

    def blurred(self, x: Floats) -> list[int]:
        """List columns that vary less than rows in float32 can show."""
        return blurred(self.kept, self.mean, self.scale, x)

    def state(self) -> dict[str, Any]:
        """Describe for a JSON file."""
        return {name: getattr(self, name).tolist() for name in ("kept", "mean", "scale")}


@dataclass(frozen=True)
class ColumnScaler:
    """Scales columns so that none rules the distances; what rarely varies has a part of its own.

    A varying column is standardized, by mean and deviation of values clipped to +-10 deviations, so
    that one sentinel of -999999 does not ruin it, then clipped to +-10. Columns with long tails
    then count less: each is divided by the square root of its range, all by one factor that keeps
    the mean square of these weights at 1.

    A column with one value in 99 % of the rows, to the rounding of a few sums, has too little to
    train on and is no input. That a row deviates there still counts (in the numbers of float32 or
    float16 it is the same value), by its surprise `-log((n_j + 1) / (N + 2))`, n_j of the N
    training rows deviating in column j. Where n_j = 0 the surprise is added to the score. Sums of
    the others count where they are beyond what training rows have: in excess of their mean and
    three standard deviations, and of a single deviation never seen, in standard deviations (at
    least 1).

    Attributes:
        varying: Positions of standardized columns, `[V]`.
        mean: Their means, `[V]`.
        scale: Their deviations, `[V]`.
        weight: What they are multiplied by then, `[V]`.
        rare: Positions of all other columns, `[R]`.
        mode: Their usual values, `[R]`.
        share: Share of training rows that deviate there, `[R]`; 0 where constant.
        surprise: Of each rare column, `[R]`, in nats.
        most: The sum from which on it counts.
        spread: What the excess is divided by.
    """

    varying: npt.NDArray[np.int64]
    mean: Floats
    scale: Floats
    weight: Floats
    rare: npt.NDArray[np.int64]
    mode: Floats
    share: Floats
    surprise: Floats
    most: float
    spread: float

    @classmethod
    def fit(cls, caller: str, x: Floats) -> ColumnScaler:
        """Learn from training rows.

        Args:
            caller: Name to begin an error with.
            x: Rows, `[N, D]`, finite.

        Returns:
            The scaler.

        Raises:
            ValueError: If no column is left, or a column's deviation overflows or underflows.
        """
        modes, share = _modes(x)
        varying, rare = (
            np.flatnonzero(chosen) for chosen in (share < CONSTANT_SHARE, share >= CONSTANT_SHARE)
        )
        _check_varying(caller, x, varying)
        mean, scale = _robust_moments(x[:, varying])
        _check_scale(caller, varying, scale)
        weight = np.ptp(_clipped(x[:, varying], mean, scale), axis=0) ** -0.5
        deviating = differs(x[:, rare], modes[rare])
        surprise = -np.log((deviating.sum(axis=0) + 1) / (len(x) + 2))
        total = deviating @ surprise
        return cls(
            varying,
            mean,
            scale,
            weight / np.sqrt(np.mean(weight**2)),
            rare,
            modes[rare],
            deviating.mean(axis=0),
            surprise,
            max(float(total.mean() + 3 * total.std()), float(np.log(len(x) + 2))),
            max(1.0, float(total.std())),
        )

    @property
    def width(self) -> int:
        """Inputs of the network."""
        return len(self.varying)

    def transform(self, x: Floats) -> Floats:
        """Turn rows `[N, D]` into inputs `[N, V]`."""
        scaled = _clipped(x[:, self.varying], self.mean, self.scale)
        scaled *= self.weight
        return scaled

    def penalty(self, x: Floats) -> Floats:
        """What rare deviations add to the scores of rows `[N, D]`, `[N]`, >= 0."""
        added: Floats = self._penalties(x).sum(axis=1)
        return added

    def to_columns(self, contributions: Floats, x: Floats, surplus: Floats) -> Floats:
        """Sort contributions of the inputs `[N, K]`, and the penalty, by columns, `[N, D]`.

        Of the penalty counts what is left of it after the surplus `[N]`: by how much the network
        takes the rows for more normal than usual.
        """
        out = np.zeros_like(x)
        out[:, self.varying] = contributions
        penalties = self._penalties(x)
        total = penalties.sum(axis=1)
        left = np.maximum(total - surplus, 0.0)
        share = np.divide(left, total, out=np.zeros_like(total), where=total > 0)
        out[:, self.rare] = penalties * share[:, None]
        return out

    def deviating(self, x: Floats) -> list[int]:
        """List the constant columns in which some row deviates."""
        constant = self.share == 0
        changed = (self._deviations(x)[:, constant]).any(0)
        return [int(column) for column in self.rare[constant][changed]]

    def blurred(self, x: Floats) -> list[int]:
        """List columns that vary less than rows in float32 can show."""
        return blurred(self.varying, self.mean, self.scale, x)

    def state(self) -> dict[str, Any]:
        """Describe for a JSON file."""
        return {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in vars(self).items()
        }

    def _deviations(self, x: Floats) -> npt.NDArray[np.bool_]:
        return differs(x[:, self.rare], self.mode)

    def _penalties(self, x: Floats) -> Floats:
        """The penalty by columns, `[N, R]`."""
        surprises = self._deviations(x) * self.surprise
        seen = surprises * (self.share > 0)
        total = seen.sum(axis=1, keepdims=True)
        excess = np.maximum(total - self.most, 0.0) / self.spread
        part = np.divide(excess, total, out=np.zeros_like(total), where=total > 0)
        result: Floats = np.where(self.share > 0, seen * part, surprises)
        return result


@dataclass(frozen=True)
class ArrayScaler:
    """Standardizes arrays `[N, *]`, images or series, by one mean and one deviation.

    Attributes:
        mean: Mean of all elements.
        scale: Their standard deviation.
    """

    mean: float
    scale: float

    @classmethod
    def fit(cls, caller: str, x: Floats) -> ArrayScaler:
        """Learn from training arrays; ValueError where all elements are one value."""
        with np.errstate(over="ignore", invalid="ignore"):
            mean, scale = float(x.mean()), float(x.std())
        if not (scale >= _LEAST_SCALE and np.isfinite(scale)):
            raise ValueError(
                f"{caller}: elements of X must vary and be of moderate size to be used"
            )
        return cls(mean, scale)

    def transform(self, x: Floats) -> Floats:
        """Apply to `[N, *]`."""
        return _clipped(x, self.mean, self.scale)

    def penalty(self, x: Floats) -> Floats:
        """Give `[N]` zeros."""
        return np.zeros(len(x))

    def to_columns(self, contributions: Floats, x: Floats, surplus: Floats) -> Floats:
        """Return the contributions as they are: each element is an input."""
        return contributions

    def deviating(self, x: Floats) -> list[int]:
        """List nothing: elements have no history of their own."""
        return []

    def blurred(self, x: Floats) -> list[int]:
        """List nothing, as `deviating`."""
        return []

    def state(self) -> dict[str, Any]:
        """Describe for a JSON file."""
        return dict(vars(self))


Scaler = Standardizer | ColumnScaler | ArrayScaler
SCALERS = {kind.__name__: kind for kind in (Standardizer, ColumnScaler, ArrayScaler)}


def _modes(x: Floats) -> tuple[Floats, Floats]:
    """Medians, and the share of rows that have it: a value of more than half the rows is it."""
    medians = np.partition(x, len(x) // 2, axis=0)[len(x) // 2]
    return medians, np.mean(_is_as(x, medians), axis=0)


def _is_as(x: Floats, values: Floats) -> npt.NDArray[np.bool_]:
    """Say where rows `[N, R]` have given values `[R]`, to the rounding of a few sums."""
    with np.errstate(over="ignore"):
        same: npt.NDArray[np.bool_] = np.abs(x - values) <= ROUNDING * np.abs(values)
    return same


def usual_forms(mode: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """List the numbers that a usual value has when it passes through a table of another type.

    Args:
        mode: Usual values, `[R]`.

    Returns:
        `[3, R]`, as it is, in float32 and in float16; and whether it is a fraction, `[R]`: that of
        a table in float32 is also what a number rounds to.
    """
    with np.errstate(over="ignore", under="ignore"):
        half = mode.astype(np.float16).astype(np.float64)
        half = np.where((half == 0) | ~np.isfinite(half), mode, half)  # half has few exponents
        forms = np.stack([mode, mode.astype(np.float32).astype(np.float64), half])
    return forms, mode != np.rint(mode)


def differs(x: Floats, mode: Floats) -> npt.NDArray[np.bool_]:
    """Compare rows with usual values, whose type may have been another.

    Args:
        x: `[N, R]`.
        mode: `[R]`.

    Returns:
        Where they differ, `[N, R]`.
    """
    forms, is_fraction = usual_forms(mode)
    with np.errstate(over="ignore", under="ignore"):
        rounded = x.astype(np.float32).astype(np.float64)
    other: npt.NDArray[np.bool_] = (rounded != mode) | ~is_fraction
    for form in forms:
        other &= ~_is_as(x, form)
    return other


def blurred(columns: npt.NDArray[np.int64], mean: Floats, scale: Floats, x: Floats) -> list[int]:
    """List columns that float32 cannot hold well enough, where rows hold numbers of float32.

    Args:
        columns: Positions of standardized columns, `[V]`.
        mean: Their means, `[V]`.
        scale: Their deviations, `[V]`.
        x: Rows `[N, D]`.

    Returns:
        Those whose values vary much less than float32's steps, and deviate here.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        steps = np.spacing(np.abs(mean).astype(np.float32)).astype(np.float64)
        narrow = scale < _LEAST_STEPS * steps
        if not narrow.any():
            return []
        values = x[:, columns[narrow]]
        rounded = (values.astype(np.float32) == values).all(axis=0)
        far = (np.abs(values - mean[narrow]) > CLIP * scale[narrow]).any(axis=0)
    return [int(column) for column in columns[narrow][rounded & far]]


def _check_varying(caller: str, x: Floats, columns: npt.NDArray[np.int64]) -> None:
    if columns.size == 0:
        raise ValueError(
            f"{caller}: a column must vary to be used, got {x.shape[1]} columns that each have one "
            f"value in at least {CONSTANT_SHARE:.0%} of the rows"
        )


def _robust_moments(x: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation of values clipped to +-10 of it: a fixed point, from above."""
    with np.errstate(over="ignore", invalid="ignore"):
        mean, scale = x.mean(axis=0), x.std(axis=0)
        settled = _without_gross_values(x, mean, scale)
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
    usual = np.abs(columns - middle) <= most * (high - low)
    for at in np.flatnonzero((high > low) & ~usual.all(axis=0)):
        column = suspected[at]
        values = x[usual[:, at], column]
        middle_of, most = values.mean(), CLIP * values.std()
        values = np.clip(x[:, column], middle_of - most, middle_of + most)
        mean[column], scale[column], settled[column] = values.mean(), values.std(), True
    return settled


def _check_scale(caller: str, columns: npt.NDArray[np.int64], scale: Floats) -> None:
    bad = columns[~((scale >= _LEAST_SCALE) & np.isfinite(scale))]
    if bad.size:
        raise ValueError(
            f"{caller}: values of column {bad[0]} are too large or too close to standardize in "
            "float64"
        )


def _clipped(x: Floats, mean: Floats | float, scale: Floats | float) -> Floats:
    with np.errstate(over="ignore"):
        scaled: Floats = (x - mean) / scale
    return np.clip(scaled, -CLIP, CLIP, out=scaled)
