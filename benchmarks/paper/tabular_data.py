"""The tabular data sets of Table 2 and their two splits."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from drocc_ext.estimators._core import Standardizer

Rows = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

NAMES = ("thyroid", "annthyroid", "arrhythmia", "abalone")
SPLITS = ("script", "DAGMM")
_NORMAL_RINGS = (8, 9, 10)
_ANOMALOUS_RINGS = (3, 21)


class Split(NamedTuple):
    """Normal rows to train on; normal rows and anomalies to test on.

    Attributes:
        raw_train: `[N, D]`, as they are in the file.
        raw_test: `[M, D]`.
        train: `[N, K]`, preprocessed as the estimator does it, which all methods get: columns with
            one value in 99 % of the training rows dropped, the others standardized and clipped.
        test: `[M, K]`, preprocessed by the statistics of the training rows.
        normal: `[M]`, True = normal.
    """

    raw_train: Rows
    raw_test: Rows
    train: Rows
    test: Rows
    normal: Mask


def load(directory: Path, name: str) -> tuple[Rows, Mask]:
    """Read a data set.

    Args:
        directory: Directory of the data files.
        name: One of `NAMES`. Of abalone the rows with 8, 9 or 10 rings (normal) and with 3 or 21
            (anomalous) are used, as in the paper.

    Returns:
        Rows `[N, D]`, and which of them are anomalies, `[N]`.

    Raises:
        ValueError: If the file is missing or does not hold such data.
    """
    path = directory / f"{name}.npz"
    labels = "rings" if name == "abalone" else "y"
    try:
        with np.load(path) as data:
            x, y = data["X"].astype(np.float64), data[labels]
    except FileNotFoundError:
        raise ValueError(f"load: {path} must be a data file, got no such file") from None
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"load: {path} must hold X and {labels}, got {error}") from error
    if x.ndim != 2 or y.shape != x.shape[:1] or not np.isfinite(x).all():
        raise ValueError(
            f"load: {path} must hold finite rows X [N, D] and {labels} [N], got shapes {x.shape} "
            f"and {y.shape}"
        )
    if name == "abalone":
        used = np.isin(y, _NORMAL_RINGS + _ANOMALOUS_RINGS)
        x, anomaly = x[used], np.isin(y[used], _ANOMALOUS_RINGS)
    else:
        anomaly = y == 1
    if anomaly.all() or not anomaly.any():
        raise ValueError(f"load: {path} must hold normal rows and anomalies, got one class")
    return x, anomaly


def split(x: Rows, anomaly: Mask, kind: str, seed: int) -> Split:
    """Draw the rows to train and to test on. All anomalies are tested on.

    Args:
        x: `[N, D]`.
        anomaly: `[N]`.
        kind: "script", that of the published script: as many normal rows as anomalies (at most half
            of them) are tested on, the rest trains. "DAGMM", that of DAGMM and GOAD: half of the
            normal rows trains.
        seed: Seed of the draw.

    Returns:
        The split.

    Raises:
        ValueError: If there is no such split.
    """
    if kind not in SPLITS:
        raise ValueError(f"split: kind must be one of {', '.join(SPLITS)}, got {kind!r}")
    order = np.random.default_rng(seed).permutation(np.flatnonzero(~anomaly))
    half = len(order) // 2
    count = min(int(anomaly.sum()), half) if kind == "script" else len(order) - half
    raw_train = x[order[count:]]
    raw_test = np.concatenate([x[order[:count]], x[anomaly]])
    scaler = Standardizer.fit("split", raw_train)
    return Split(
        raw_train,
        raw_test,
        scaler.transform(raw_train),
        scaler.transform(raw_test),
        np.arange(len(raw_test)) < count,
    )
