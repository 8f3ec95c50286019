"""From the columns of a table to the inputs of a network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from drocc_ext.estimators.moments import CLIP, robust_moments
from drocc_ext.estimators.usual_values import DOUBLE, blurred, differs, modes_of

Floats = npt.NDArray[np.float64]

CONSTANT_SHARE = 0.99
# Squares of smaller deviations lose digits to underflow.
_LEAST_SCALE = 1e-150
# How far beyond the values that training rows had a value has to be, in their range.
_BEYOND = 1e-3


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
        _, share = modes_of(x)
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
    training rows deviating in column j. A value beyond all that the column had in training is one
    that no row had: its surprise `log(N + 2)` is added to the score. That a row has any such value
    has the surprise `log((N + 2) / R)` among R rare columns; it counts in the units of the scores,
    in which the highest of those that calibrate has the surprise that it is the highest. Sums of
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
        low: Least value that training rows have there, `[R]`.
        high: Largest value that training rows have there, `[R]`.
        never: Surprise at a value beyond those, in nats.
        most: The sum of other surprises from which on it counts.
        spread: What the excess is divided by.
        digits: Binary digits of each column's type in the training table, `[D]`.
        unit: What a nat is in the scores, at least 1.
    """

    varying: npt.NDArray[np.int64]
    mean: Floats
    scale: Floats
    weight: Floats
    rare: npt.NDArray[np.int64]
    mode: Floats
    share: Floats
    surprise: Floats
    low: Floats
    high: Floats
    never: float
    most: float
    spread: float
    digits: Floats
    unit: float = 1.0

    @classmethod
    def fit(cls, caller: str, x: Floats, digits: npt.ArrayLike = DOUBLE) -> ColumnScaler:
        """Learn from training rows.

        Args:
            caller: Name to begin an error with.
            x: Rows, `[N, D]`, finite.
            digits: Binary digits of the table's type, before it was float64, or of each column's.

        Returns:
            The scaler.

        Raises:
            ValueError: If no column is left, or a column's deviation overflows or underflows.
        """
        modes, share = modes_of(x)
        varying, rare = (
            np.flatnonzero(chosen) for chosen in (share < CONSTANT_SHARE, share >= CONSTANT_SHARE)
        )
        _check_varying(caller, x, varying)
        mean, scale = robust_moments(x[:, varying])
        _check_scale(caller, varying, scale)
        weight = np.ptp(_clipped(x[:, varying], mean, scale), axis=0) ** -0.5
        seldom = x[:, rare]
        digits = np.broadcast_to(np.asarray(digits, dtype=np.float64), x.shape[1]).copy()
        deviating = differs(seldom, modes[rare], digits[rare])
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
            seldom.min(axis=0),
            seldom.max(axis=0),
            float(np.log(len(x) + 2)),
            max(float(total.mean() + 3 * total.std()), float(np.log(len(x) + 2))),
            max(1.0, float(total.std())),
            digits,
        )

    def in_units_of(self, scores: Floats) -> ColumnScaler:
        """Bring the surprise at what no row had to the units of the network's scores.

        Args:
            scores: Of rows that calibrate, without what rare columns add, `[n]`.

        Returns:
            The scaler.
        """
        spread = float(np.ptp(scores)) / float(np.log(len(scores) + 1))
        return replace(self, unit=max(1.0, spread))

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
        changed = self._deviations(x)[0][:, constant].any(0)
        return [int(column) for column in self.rare[constant][changed]]

    def blurred(self, x: Floats) -> list[int]:
        """List columns that vary less than rows in float32 can show."""
        found = blurred(self.varying, self.mean, self.scale, x)
        return [column for column in found if self.digits[column] == DOUBLE]

    def state(self) -> dict[str, Any]:
        """Describe for a JSON file."""
        return {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in vars(self).items()
        }

    @property
    def reach(self) -> Floats:
        """From where to where a value is one that training rows had, `[2, R]`."""
        margin = _BEYOND * (self.high - self.low)
        return np.stack([self.low - margin, self.high + margin])

    @property
    def once(self) -> float:
        """What a row gets besides that has any value that no row had."""
        rare = float(np.log(max(1, len(self.rare))))
        return (self.unit - 1) * max(0.0, self.never - rare)

    def _deviations(self, x: Floats) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Where rows deviate, and where they do so beyond training, `[N, R]` each."""
        values = x[:, self.rare]
        deviates = differs(values, self.mode, self.digits[self.rare])
        least, most = self.reach
        return deviates, deviates & ((values < least) | (values > most))

    def _penalties(self, x: Floats) -> Floats:
        """The penalty by columns, `[N, R]`."""
        deviates, beyond = self._deviations(x)
        seen = (deviates & ~beyond) * self.surprise
        total = seen.sum(axis=1, keepdims=True)
        excess = np.maximum(total - self.most, 0.0) / self.spread
        part = np.divide(excess, total, out=np.zeros_like(total), where=total > 0)
        count = np.maximum(beyond.sum(axis=1, keepdims=True), 1)
        result: Floats = np.where(beyond, self.never + self.once / count, seen * part)
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


def _check_varying(caller: str, x: Floats, columns: npt.NDArray[np.int64]) -> None:
    if columns.size == 0:
        raise ValueError(
            f"{caller}: a column must vary to be used, got {x.shape[1]} columns that each have one "
            f"value in at least {CONSTANT_SHARE:.0%} of the rows"
        )


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
