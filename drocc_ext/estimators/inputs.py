"""Checks of what users pass to an estimator."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import date, time, timedelta
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.utils.validation import validate_data
from torch import Tensor, nn

from drocc_ext._checks import as_float
from drocc_ext.estimators.columns import CONSTANT_SHARE, Scaler, Standardizer
from drocc_ext.estimators.recipes import Recipe, recipe_of
from drocc_ext.estimators.usual_values import DOUBLE, HALF, SINGLE, differs
from drocc_ext.training.loss import METRICS

Floats = npt.NDArray[np.float64]

_TIMES = (date, time, timedelta, np.datetime64, np.timedelta64)
_INTEGERS = ("max_steps", "batch_size")
_LARGEST = float(torch.finfo(torch.float32).max)
_LARGEST_RATE = 1e37
_SMALLEST = float(torch.finfo(torch.float32).tiny)
_NUMBERS = ("step_size", "noise_scale", "learning_rate", "weight_decay", "validation_fraction")


def check_rows(estimator: Any, X: Any, **checks: Any) -> Floats:
    """Bring X to float64 `[N, *]`; with `reset` also learn the number and names of columns.

    Args:
        estimator: Whose rows they are.
        X: Array-like, DataFrame or tensor.
        checks: For scikit-learn's `validate_data`.

    Returns:
        The rows.

    Raises:
        TypeError: If X is sparse.
        ValueError: If X is no finite table of the estimator's columns; the sentence names the first
            column of a DataFrame that holds categories, or a value that is missing.
    """
    if isinstance(X, Tensor):
        X = X.detach().cpu()
        X = (X.double() if X.is_floating_point() else X).numpy()
    if isinstance(X, np.ma.MaskedArray) and X.dtype.kind in "biuf":
        X = np.ma.filled(X.astype(np.float64), np.nan)  # else what is masked would count
    X = _as_frame(X)
    name = type(estimator).__name__
    _refuse_categories(name, X)
    arrays = isinstance(estimator.network, nn.Module)
    try:
        rows: Floats = validate_data(estimator, X, dtype=np.float64, allow_nd=arrays, **checks)
    except (TypeError, ValueError) as error:
        said = str(error).splitlines()[0]
        column = _missing_column(X) if "NaN" in said or "NA" in said else None
        if column is None:
            raise
        said = said if "NaN" in said else "Input X contains missing values."
        raise ValueError(
            f"{said} Column {column} has missing values; fill them in before, for example "
            f"make_pipeline(SimpleImputer(), {name}())"
        ) from error
    return rows


def digits_of(X: Any) -> npt.NDArray[np.float64]:
    """Find the types that columns are in: what a fraction is depends on them.

    Args:
        X: Array-like, DataFrame or tensor.

    Returns:
        Binary digits, 11 for float16, 24 for float32, else 53: `[D]` of a DataFrame, of other
        tables one number.
    """
    if isinstance(X, Tensor):
        return np.asarray({torch.float16: HALF, torch.float32: SINGLE}.get(X.dtype, DOUBLE))
    found = getattr(_as_frame(X), "dtypes", None)
    if found is None:
        return np.asarray(_digits(getattr(X, "dtype", None)))
    return np.asarray([_digits(kind) for kind in found])


def _digits(kind: Any) -> float:
    kind = getattr(kind, "numpy_dtype", getattr(kind, "subtype", kind))  # pandas' own types
    if getattr(kind, "kind", "O") != "f":
        return DOUBLE
    return {2: HALF, 4: SINGLE}.get(kind.itemsize, DOUBLE)


def check_negatives(estimator: Any, X_negative: Any) -> Floats:
    """Bring known anomalies to float64 `[M, *]`; columns are those of the training rows.

    Args:
        estimator: Whose rows they are; it knows the columns.
        X_negative: Array-like, DataFrame or tensor.

    Returns:
        The rows.

    Raises:
        TypeError: If X_negative is sparse.
        ValueError: If it has no rows or does not fit the training rows.
    """
    name = f"{type(estimator).__name__}.fit: X_negative"
    try:
        rows = check_rows(estimator, X_negative, reset=False, ensure_min_samples=0)
    except (TypeError, ValueError) as error:
        # scikit-learn's sentences speak of X.
        reason = str(error).splitlines()[0].removesuffix(" instead:")
        raise type(error)(f"{name}: {reason}") from error
    if len(rows) == 0:
        raise ValueError(
            f"{name} must hold at least one row, got shape {rows.shape}; leave it out where no "
            "anomalies are known"
        )
    return rows


def warn_of_dropped(name: str, scaler: Scaler, x: Floats, negatives: Floats) -> None:
    """Warn where known anomalies differ in columns that `Standardizer` drops.

    Args:
        name: Of the estimator.
        scaler: What it scales columns with.
        x: Training rows `[N, D]`.
        negatives: Known anomalies `[M, D]`.
    """
    if not isinstance(scaler, Standardizer):
        return
    dropped = np.setdiff1d(np.arange(x.shape[1]), scaler.kept)
    share = np.mean(differs(negatives[:, dropped], np.median(x[:, dropped], axis=0)), axis=0)
    columns = dropped[share > 1 - CONSTANT_SHARE]
    if len(columns) > 0:
        warnings.warn(
            f"{name}.fit: X_negative differs from X in columns that are dropped because "
            f"{CONSTANT_SHARE:.0%} of the rows of X share one value there (from 0): "
            f"{', '.join(map(str, columns[:8]))}",
            stacklevel=4,
        )


def warn_of_columns(estimator: Any, scaler: Scaler, x: Floats) -> None:
    """Warn where rows are anomalous by columns that training says little of.

    Args:
        estimator: Whose rows they are.
        scaler: What it scales columns with.
        x: Rows to score, `[N, D]`.
    """
    for columns, what in (
        (
            scaler.deviating(x),
            "rows deviate in columns that were constant in training, which raises their scores",
        ),
        (
            scaler.blurred(x),
            "rows seem to have been in float32, whose steps are wide for what these columns vary "
            "in training, so that scores mean little; pass float64",
        ),
    ):
        if columns:
            names = getattr(estimator, "feature_names_in_", None)
            shown = [str(c) if names is None else repr(str(names[c])) for c in columns[:8]]
            warnings.warn(
                f"{type(estimator).__name__}: {what} (from 0): {', '.join(shown)}", stacklevel=5
            )


def _as_frame(X: Any) -> Any:
    """Read an Arrow table as a DataFrame: as an array it would lose the types of its columns."""
    if type(X).__module__.partition(".")[0] != "pyarrow" or not hasattr(X, "to_pandas"):
        return X
    with suppress(ImportError):  # pandas is no requirement
        return X.to_pandas()  # an index that pandas has written is none of the columns
    return X


def _refuse_categories(name: str, X: Any) -> None:
    """Refuse columns of a DataFrame, or of an array of objects, that hold no numbers."""
    if isinstance(X, np.ndarray):
        if X.dtype.names is not None:
            raise ValueError(
                f"{name}: X must be a table of one type, got a structured array; "
                "pandas.DataFrame(X) makes columns of its fields"
            )
        if X.dtype.kind in "mM":
            raise ValueError(f"{name}: X must hold numbers, got {X.dtype}")
        if X.dtype.kind == "O" and X.ndim == 2:
            for column in range(X.shape[1]):
                if _kind_of(X[:, column]) == "times":  # numpy makes numbers of text, or says so
                    _refuse(name, str(column), "times")
        return
    dtypes = getattr(X, "dtypes", None)
    if dtypes is None or not hasattr(dtypes, "items"):
        return
    names = list(dtypes.keys())
    if len(set(names)) < len(names):
        twice = next(column for column in names if names.count(column) > 1)
        raise ValueError(f"{name}: columns must have names of their own, got {twice!r} twice")
    for column, dtype in dtypes.items():
        kind = getattr(dtype, "kind", "O")
        if str(dtype) == "category" or str(dtype).startswith(("string", "str", "large_string")):
            found = "text"
        elif kind in "mM":
            found = "times"
        else:
            found = "" if kind in "biuf" else _kind_of(X[column])
        _refuse(name, repr(column), found)


def _kind_of(values: Any) -> str:
    """Say what objects are that are no numbers: "text", "times" or a type; "" for none."""
    for value in values:
        if isinstance(value, Real | Decimal | np.bool_) or value is None:
            continue
        kind = type(value).__name__
        if kind == "NAType":
            continue
        if isinstance(value, str | bytes):
            return "text"
        return "times" if isinstance(value, _TIMES) or kind == "Period" else kind
    return ""


def _refuse(name: str, column: str, found: str) -> None:
    if found == "times":
        raise ValueError(
            f"{name}: column {column} must hold numbers, got dates or times; make numbers of "
            "them that tell rows apart, such as the hour or the days since a day"
        )
    if found == "text":
        raise ValueError(
            f"{name}: column {column} must hold numbers, got categories or text; encode it "
            "before, for example make_pipeline(make_column_transformer((OneHotEncoder("
            f"handle_unknown='ignore', sparse_output=False), [{column}]), "
            f"remainder='passthrough'), {name}())"
        )
    if found:
        raise ValueError(f"{name}: column {column} must hold numbers, got objects of type {found}")


def _missing_column(X: Any) -> str | None:
    names = getattr(X, "columns", None) if hasattr(X, "dtypes") else None
    if hasattr(X, "isna"):
        missing = np.flatnonzero(np.asarray(X.isna()).any(axis=0))
    else:
        values = np.asarray(X)
        if values.dtype.kind == "O":
            try:
                values = values.astype(np.float64)
            except (TypeError, ValueError):
                return None
        if values.ndim != 2 or values.dtype.kind != "f":
            return None
        missing = np.flatnonzero(np.isnan(values).any(axis=0))
    if missing.size == 0:
        return None
    return str(missing[0]) if names is None else repr(names[missing[0]])


def check_parameters(estimator: Any, *, device: bool = True) -> Recipe:
    """Check an estimator's parameters and fill in what they leave open.

    Args:
        estimator: The estimator.
        device: Whether its device must be here.

    Returns:
        Its recipe.

    Raises:
        TypeError: If a parameter has the wrong type.
        ValueError: If one is out of range.
    """
    name = type(estimator).__name__
    parameters = parameters_of(estimator)
    if parameters["metric"] not in METRICS:
        raise ValueError(
            f"{name}: metric must be one of {', '.join(METRICS)}, got {parameters['metric']!r}"
        )
    if parameters["network"] is not None and parameters["hidden"] is not None:
        raise ValueError(
            f"{name}: hidden asks for the paper's network and must be None beside network, got "
            f"{parameters['hidden']!r}"
        )
    if parameters["hidden"] is not None:
        _check_integer(name, "hidden", parameters["hidden"])
    recipe = recipe_of(parameters)
    values = {**parameters, **vars(recipe)}
    for parameter in _INTEGERS:
        _check_integer(name, parameter, values[parameter])
    # numpy's small integers would overflow.
    steps, size = (int(values[parameter]) for parameter in _INTEGERS)
    recipe = replace(recipe, max_steps=steps, batch_size=size)
    if parameters["patience"] is not None:
        _check_integer(name, "patience", parameters["patience"])
    check_contamination(name, parameters["contamination"])
    for parameter in _NUMBERS:
        _check_number(name, parameter, values[parameter])
        if not 0 <= float(values[parameter]) < math.inf:
            raise ValueError(
                f"{name}: {parameter} must be >= 0 and finite, got {values[parameter]}"
            )
        if float(values[parameter]) > _LARGEST:
            raise ValueError(f"{name}: {parameter} must fit float32, got {values[parameter]}")
    if float(values["learning_rate"]) > _LARGEST_RATE:
        raise ValueError(
            f"{name}: learning_rate must be at most {_LARGEST_RATE:g}, for Adam's first steps "
            f"multiply it by ten, got {values['learning_rate']}"
        )
    if parameters["radius"] is not None:
        _check_radius(name, "radius", parameters["radius"])
    if recipe.radius_range is not None:
        _check_radius_range(name, recipe.radius_range, parameters["radius"])
    _check_number(name, "mu", recipe.mu)
    if _LARGEST < float(recipe.mu) < math.inf:
        raise ValueError(f"{name}: mu must fit float32, got {recipe.mu}")
    if not values["validation_fraction"] < 1:
        raise ValueError(
            f"{name}: validation_fraction must be < 1, got {values['validation_fraction']}"
        )
    if not isinstance(recipe.nearest, bool | np.bool_):
        raise TypeError(f"{name}: nearest must be True or False, got {recipe.nearest!r}")
    if not isinstance(recipe.calibration, str):
        _check_number(name, "calibration", recipe.calibration)
        if not 0 < recipe.calibration < 1:
            raise ValueError(f"{name}: calibration must be in (0, 1), got {recipe.calibration}")
    elif recipe.calibration not in ("auto", "training"):
        raise ValueError(
            f"{name}: calibration must be 'auto', 'training' or a share, got {recipe.calibration!r}"
        )
    if device:
        _check_device(name, estimator.device)
    return replace(recipe, network=_widths(name, parameters["network"], recipe.network))


def parameters_of(estimator: Any) -> dict[str, Any]:
    """List the parameters; a subclass may have an `__init__` with fewer.

    Args:
        estimator: The estimator.

    Returns:
        Their names and values.
    """
    own = next(c for c in reversed(type(estimator).__mro__) if hasattr(c, "_parameter_names"))
    return {name: getattr(estimator, name) for name in own._parameter_names}


def check_no_table(caller: str, y: Any) -> None:
    """Refuse rows where labels may stand, which are not used: they were meant as anomalies.

    Args:
        caller: To begin an error with.
        y: What was given.

    Raises:
        ValueError: If it is a table of two columns or more.
    """
    if isinstance(y, list | tuple) and len(y) > 0 and isinstance(y[0], list | tuple | np.ndarray):
        shape: tuple[int, ...] = (len(y), len(y[0]))
    else:
        shape = tuple(getattr(y, "shape", ()))
    if len(shape) == 2 and shape[1] > 1:
        raise ValueError(
            f"{caller}: y is not used and must not be a table, got shape {shape}; known anomalies "
            "go by name, fit(X, X_negative=...)"
        )


def as_threshold(name: str, attribute: str, value: Any) -> float:
    """Check a threshold that is set by hand.

    Args:
        name: The estimator's, for the message.
        attribute: What is set.
        value: Its value.

    Returns:
        The number.

    Raises:
        TypeError: If it is none.
        ValueError: If it is NaN, which no score is above.
    """
    number = as_float(name, attribute, value)
    if math.isnan(number):
        raise ValueError(f"{name}: {attribute} must be a number, got nan")
    return number


def check_contamination(name: str, contamination: Any) -> None:
    """Check the share of normal rows that may be flagged.

    Args:
        name: The estimator's, for the message.
        contamination: The share, in (0, 0.5], or "auto".

    Raises:
        TypeError: If it is neither "auto" nor a number.
        ValueError: If it is out of range.
    """
    if isinstance(contamination, str) and contamination == "auto":
        return
    _check_number(name, "contamination", contamination)
    if not 0 < contamination <= 0.5:
        raise ValueError(f"{name}: contamination must be in (0, 0.5], got {contamination}")


def _check_radius(name: str, parameter: str, radius: Any) -> None:
    _check_number(name, parameter, radius)
    if not 0 < float(radius) < math.inf:
        raise ValueError(f"{name}: {parameter} must be > 0 and finite, got {radius}")
    if not _SMALLEST <= float(radius) <= _LARGEST:
        raise ValueError(
            f"{name}: {parameter} must be from {_SMALLEST:.3g} to {_LARGEST:.3g} for float32, got "
            f"{radius}"
        )


def _check_radius_range(name: str, ends: Any, radius: Any) -> None:
    if not isinstance(ends, tuple | list) or len(ends) != 2:
        raise TypeError(f"{name}: radius_range must be two numbers or None, got {ends!r}")
    for end in ends:
        _check_radius(name, "radius_range", end)
    if ends[0] > ends[1]:
        raise ValueError(f"{name}: radius_range must have first <= second, got {ends}")
    if radius is not None:
        for end in ends:
            _check_radius(name, "radius times radius_range", float(radius) * float(end))


def _check_device(name: str, device: Any) -> None:
    try:
        kind = torch.device(device).type
        torch.empty(0, device=device)
    except TypeError as error:
        raise TypeError(f"{name}: device must be a device or its name, got {device!r}") from error
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{name}: cannot use device {device!r}: {reason}") from error
    if kind == "meta":
        raise ValueError(f"{name}: cannot use device 'meta': it computes nothing")


def _widths(name: str, network: Any, default: tuple[int, ...]) -> tuple[int, ...]:
    if network is None or isinstance(network, nn.Module):
        return default
    widths = [network] if isinstance(network, Integral) else network
    if not isinstance(widths, Sequence) or isinstance(widths, str) or len(widths) == 0:
        raise TypeError(
            f"{name}: network must be a module or the units of hidden layers, got {network!r}"
        )
    for width in widths:
        _check_integer(name, "network", width)
    return tuple(int(width) for width in widths)


def _check_integer(name: str, parameter: str, value: Any) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name}: {parameter} must be an integer, got {value!r}")
    if int(value) < 1:
        raise ValueError(f"{name}: {parameter} must be >= 1, got {value}")


def _check_number(name: str, parameter: str, value: Any) -> None:
    as_float(name, parameter, value)
