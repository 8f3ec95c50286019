"""Choosing the radius r of the shell, the parameter that matters most."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from drocc_ext._checks import as_float, as_int

# Rows beyond 2 to the power of this, or below its inverse, are scaled for their distances.
_LARGEST_EXPONENT = 50

__all__ = ["suggest_radius", "warn_if_short_travel"]


def suggest_radius(
    x: Any,
    method: str = "neighbours",
    *,
    quantile: float = 0.95,
    k: int = 5,
    max_rows: int = 4096,
    seed: int = 0,
) -> float:
    """Suggest a radius for training rows that are scaled as the network will see them.

    `"neighbours"`: the `quantile` over rows of the Euclidean distance to the k-th nearest other
    row, so that points of the shell lie farther out than the data's own spacing. `"sqrt_dim"`:
    sqrt(D) / 2, the paper's observation for D standardized features (section 5).

    Args:
        x: [N, *], training rows, array-like or tensor; trailing dimensions are flattened.
        method: "neighbours" or "sqrt_dim".
        quantile: quantile over rows, in [0, 1].
        k: which neighbour, >= 1; N must exceed it.
        max_rows: at most this many rows, drawn at random, look for their neighbours; they look
            among all N rows, so the estimate is noisier for it but not biased.
        seed: chooses those rows; not used where N <= max_rows.

    Returns:
        The radius, in the units of x.

    Raises:
        TypeError: for arguments of the wrong type.
        ValueError: for an unknown method, arguments out of range, x with fewer than two dimensions,
            without columns, with NaN or infinite values or with at most k rows, and where repeated
            rows make the radius 0.
    """
    rows = _as_rows(x)
    if method == "sqrt_dim":
        return math.sqrt(rows.shape[1]) / 2
    if method != "neighbours":
        raise ValueError(
            f'suggest_radius: method must be "neighbours" or "sqrt_dim", got {method!r}'
        )
    if not 0 <= as_float("suggest_radius", "quantile", quantile) <= 1:
        raise ValueError(f"suggest_radius: quantile must be between 0 and 1, got {quantile}")
    k = as_int("suggest_radius", "k", k, 1)
    max_rows = as_int("suggest_radius", "max_rows", max_rows, 1)
    seed = as_int("suggest_radius", "seed", seed, 0)
    if len(rows) <= k:
        raise ValueError(f"suggest_radius: x must have more than k = {k} rows, got {len(rows)}")
    radius = float(np.quantile(_neighbour_distance(rows, k, max_rows, seed), quantile))
    if radius == 0:
        raise ValueError(
            f"suggest_radius: at least a share {quantile:g} of the rows of x has {k} or more exact "
            "copies, which makes the radius 0; remove repeated rows or choose a radius yourself"
        )
    return radius


def warn_if_short_travel(num_steps: int, step_size: float, radius: float) -> None:
    """Warn when the search is too short to matter: `num_steps * step_size < 0.1 * radius`.

    The length of the path decides what the search adds to random sampling, not the number of steps.
    `num_steps = 0` (random sampling on purpose) never warns. The warning names the caller's caller.

    Args:
        num_steps: Number of ascent steps.
        step_size: Length of one step, in the units of the radius.
        radius: Inner radius of the shell.
    """
    if 0 < num_steps * step_size < 0.1 * radius:
        warnings.warn(
            f"the adversarial search travels {num_steps} * {step_size:g}, less than a tenth of the "
            f"radius {radius:g}: it will add little to random sampling",
            stacklevel=3,
        )


def _as_rows(x: Any) -> npt.NDArray[np.floating[Any]]:
    if isinstance(x, Tensor):
        x = x.detach().resolve_neg()
        x = x.to("cpu", torch.float32 if x.dtype == torch.float32 else torch.float64)
    array = np.asarray(x)
    if array.dtype != np.float32:
        try:
            array = array.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"suggest_radius: x must hold numbers, got {array.dtype}: {error}"
            ) from error
    if array.ndim >= 2 and len(array) == 0:
        raise ValueError("suggest_radius: x must have at least one row, got none")
    if array.ndim < 2 or math.prod(array.shape[1:]) == 0:
        raise ValueError(
            f"suggest_radius: x must have shape [N, *] with at least one column, got {array.shape}"
        )
    if not np.isfinite(array).all():
        raise ValueError("suggest_radius: x must be finite, got NaN or infinite values")
    return array.reshape(len(array), -1)


def _neighbour_distance(
    rows: npt.NDArray[np.floating[Any]], k: int, max_rows: int, seed: int
) -> npt.NDArray[np.float64]:
    # By a power of two, which rounds nothing: squares of 1e200 leave the range of float64.
    exponent = math.frexp(float(np.abs(rows).max()))[1]
    if abs(exponent) > _LARGEST_EXPONENT:
        rows = np.ldexp(rows.astype(np.float64), -exponent)
    else:
        exponent = 0
    # Around their middle: the squares of what all rows share would swallow their differences.
    rows = rows - rows.mean(axis=0, dtype=np.float64)
    queries = rows
    if len(rows) > max_rows:
        chosen = np.random.default_rng(seed).choice(len(rows), max_rows, replace=False)
        queries = rows[chosen]
    # A row is its own nearest neighbour, hence k + 1. The distances are computed again from the
    # differences: for wide rows the search uses |a|^2 - 2ab + |b|^2, which leaves exact copies at a
    # small distance instead of 0.
    search = NearestNeighbors(n_neighbors=k + 1).fit(rows)
    neighbours = search.kneighbors(queries, return_distance=False)
    distances = [
        np.linalg.norm(np.subtract(queries, rows[column], dtype=np.float64), axis=1)
        for column in neighbours.T
    ]
    result: npt.NDArray[np.float64] = np.ldexp(np.max(distances, axis=0), exponent)
    return result
