"""Estimators on disk, and the checks of what others have written there."""

from __future__ import annotations

import base64
import inspect
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from drocc_ext.estimators.calibration import Calibration
from drocc_ext.estimators.columns import SCALERS, ArrayScaler, ColumnScaler, Scaler, Standardizer
from drocc_ext.estimators.inputs import check_parameters, parameters_of
from drocc_ext.estimators.usual_values import DOUBLE, HALF, SINGLE
from drocc_ext.models.modules import copied
from drocc_ext.models.networks import MLP, MLPEnsemble, NearestMLP
from drocc_ext.models.persistence import load_model, save_model
from drocc_ext.models.states import check_state_fits, plain_module
from drocc_ext.search import SearchConfig
from drocc_ext.training.checkpoint import History
from drocc_ext.training.loss import DROCCLoss

_LARGEST = 2**31 - 1
_OF_RARE = ("mode", "share", "surprise", "low", "high")
_POSITIONS = ("kept", "varying", "rare")


def save(estimator: Any, directory: str | os.PathLike[str]) -> None:
    """Save a fitted estimator, see `DROCC.save`.

    Args:
        estimator: The estimator.
        directory: Where to.
    """
    parameters = parameters_of(estimator)
    module = parameters["network"] if isinstance(parameters["network"], nn.Module) else None
    seed = parameters["random_state"]
    parameters["random_state"] = int(seed) if isinstance(seed, Integral) else None
    if module is not None:
        parameters["network"] = None
    parameters["device"] = str(parameters["device"])
    for switch in ("verbose", "warm_start"):
        parameters[switch] = bool(parameters[switch])
    parameters = {key: _as_json(value) for key, value in parameters.items()}
    names = getattr(estimator, "feature_names_in_", None)
    scaler, calibration = estimator._scaler, estimator._calibration
    learned = getattr(estimator, "_learned", np.zeros(0, np.uint32))
    config = {
        "parameters": parameters,
        "subclass_parameters": _subclass_parameters(estimator, parameters),
        "own_network": module is not None,
        "n_features_in": estimator.n_features_in_,
        "feature_names_in": None if names is None else list(names),
        "radius": estimator.radius_,
        "scaler": type(scaler).__name__,
        **scaler.state(),
        "training_logits": estimator._training_logits.tolist(),
        "calibration_scores": calibration.scores.tolist() if calibration.unseen else None,
        "learned": base64.b64encode(learned.astype("<u4").tobytes()).decode(),
        "threshold": estimator._chosen_threshold,
        "history": estimator.history_,
    }
    _check_loads(estimator, config, module)
    save_model(directory, estimator.network_, {"estimator": config})


def _subclass_parameters(estimator: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    """Find what a subclass's constructor takes besides."""
    found = {}
    for name, value in estimator.get_params(deep=False).items():
        if name in known:
            continue
        found[name] = _as_json(value)
        try:
            json.dumps(found[name])
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{type(estimator).__name__}.save: {name}, a parameter of the subclass, must be of "
                f"numbers, strings, lists and dicts to be saved, got a {type(value).__name__}"
            ) from error
    return found


def _as_json(value: Any) -> Any:
    """Numbers and sequences of any library as those of JSON; the rest as it is."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, Sequence | np.ndarray):
        return [_as_json(part) for part in value]
    if isinstance(value, Mapping):
        return {key: _as_json(part) for key, part in value.items()}
    return value


def _check_loads(estimator: Any, config: dict[str, Any], module: nn.Module | None) -> None:
    """Refuse to write what could not be read back: parameters may have changed since the fit."""
    name = type(estimator).__name__
    if module is not None and any(map(nn.parameter.is_lazy, module.parameters())):
        raise ValueError(
            f"{name}.save: network must have the sizes that it was trained with, got a lazy module "
            "that was not called; give fit one that was"
        )
    try:
        if module is not None:
            state = plain_module(estimator.network_).state_dict()
            check_state_fits("network", plain_module(module), state)
        made = _with_parameters(type(estimator), config, module)
        _set_fitted(made, config, estimator.network_, module is not None)
    except ValueError as error:
        raise ValueError(
            f"{name}.save: parameters must be those of the fit, or fit again: {error}"
        ) from error


def load(cls: Any, directory: str | os.PathLike[str], network: nn.Module | None) -> Any:
    """Load an estimator, see `DROCC.load`.

    Args:
        cls: Class of the estimator.
        directory: Where it was saved.
        network: Module for the weights, where the estimator was given one; or None.

    Returns:
        The estimator.

    Raises:
        ValueError: If there is none, or a value is not what `save` writes.
    """
    # A copy: the parameter stays what it is, for fits and other estimators.
    # In the type that a fit trains and saves, whatever the module was given in.
    template = None if network is None else copied(network).float()
    module, config = load_model(directory, template)
    try:
        saved = config.get("estimator")
        if not isinstance(saved, dict):
            raise ValueError("it has no 'estimator'")
        own = bool(saved.get("own_network", False))
        if own and network is None:
            raise ValueError("it was given a module as network; pass one of that form")
        estimator = _with_parameters(cls, saved, network if own else None)
        _set_fitted(estimator, saved, module, own)
    except ValueError as error:
        raise ValueError(
            f"{cls.__name__}.load: {os.fspath(directory)} holds no saved estimator: {error}"
        ) from error
    return estimator


def _with_parameters(cls: Any, saved: Mapping[str, Any], network: nn.Module | None) -> Any:
    """Make an estimator with saved parameters; what an older file lacks has its default."""
    parameters = _dict("parameters", saved.get("parameters"))
    further = _dict("subclass_parameters", saved.get("subclass_parameters", {}))
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in parameters.items()}
    if network is not None:
        values["network"] = network
    taken = inspect.signature(cls).parameters
    given = {**further, **values}
    try:
        estimator = cls(**{name: value for name, value in given.items() if name in taken})
    except TypeError as error:  # a subclass asks for what the file lacks
        raise ValueError(str(error)) from error
    known = parameters_of(estimator)
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"parameters must be the estimator's, got {name!r}")
        setattr(estimator, name, value)  # a subclass may take fewer
    if not isinstance(estimator.device, str):
        raise ValueError(f"device must be a string, got {estimator.device!r}")
    if not isinstance(estimator.verbose, bool | int):
        raise ValueError(f"verbose must be true or false, got {estimator.verbose!r}")
    if not isinstance(estimator.warm_start, bool):
        raise ValueError(f"warm_start must be true or false, got {estimator.warm_start!r}")
    if estimator.random_state is not None:
        _integer("random_state", estimator.random_state, 0, 2**32 - 1)
    for name in ("max_steps", "batch_size", "hidden"):
        if getattr(estimator, name) is not None:
            _integer(name, getattr(estimator, name), 1)
    radius = 1.0 if estimator.radius is None else _number("radius", estimator.radius)
    try:
        recipe = check_parameters(estimator, device=False)
        _integer("num_steps", recipe.num_steps, 0)
        search = SearchConfig.from_relative_step(
            radius,
            step_size=recipe.step_size,
            num_steps=recipe.num_steps,
            noise_scale=estimator.noise_scale,
            gamma=_number("gamma", recipe.gamma),
            radius_range=recipe.radius_range,
        )
        DROCCLoss(search, mu=_number("mu", recipe.mu))
    except TypeError as error:
        raise ValueError(str(error)) from error
    return estimator


def _dict(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be a dict, got {type(value).__name__}")
    return value


def _set_fitted(estimator: Any, saved: Mapping[str, Any], module: nn.Module, own: bool) -> None:
    """Check and set what a saved estimator has learned."""
    if not own:
        if not isinstance(module, MLP | MLPEnsemble | NearestMLP):
            raise ValueError(f"the network is a {type(module).__name__}")
        kind = estimator._score_type()
        if any(part.dtype is not kind for part in module.state_dict().values()):
            raise ValueError(f"the network must be in {str(kind).removeprefix('torch.')}")
    if not all(bool(part.isfinite().all()) for part in module.state_dict().values()):
        raise ValueError("the network must have finite weights")
    if isinstance(module, NearestMLP) and not bool((module.units[1::2] > 0).all()):
        raise ValueError(f"the network must have units > 0, got {module.units.tolist()}")
    for name in ("n_features_in", "feature_names_in", "radius", "training_logits"):
        if name not in saved:
            raise ValueError(f"{name} is missing")
    columns = _integer("n_features_in", saved["n_features_in"], 1)
    radius = _number("radius", saved["radius"])
    if not 0 < radius < math.inf:
        raise ValueError(f"radius must be > 0 and finite, got {radius}")
    scaler = _scaler(saved, columns)
    if not own and not isinstance(scaler, ArrayScaler):
        wanted = module.config["in_features"]  # type: ignore[index]
        if scaler.width != wanted:
            raise ValueError(f"the network must have {scaler.width} inputs, got {wanted}")
    estimator.n_features_in_ = columns
    names = _names(saved["feature_names_in"], columns)
    if names is not None:
        estimator.feature_names_in_ = names
    estimator.radius_ = radius
    estimator._scaler = scaler
    estimator.network_ = module
    estimator.history_ = _history(saved.get("history", []))
    logits = _array("training_logits", saved["training_logits"], None)
    estimator._training_logits = logits
    unseen = saved.get("calibration_scores")
    estimator._calibration = (
        Calibration(np.sort(-logits), unseen=False)
        if unseen is None
        else Calibration(np.sort(_array("calibration_scores", unseen, None)), unseen=True)
    )
    estimator._learned = _marks(saved.get("learned", ""))
    chosen = saved.get("threshold")
    estimator._chosen_threshold = None if chosen is None else _number("threshold", chosen)


def _marks(saved: Any) -> npt.NDArray[np.uint32]:
    try:
        data = base64.b64decode(saved, validate=True)
        return np.frombuffer(data, "<u4").astype(np.uint32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"learned must be marks of rows in base64: {error}") from error


def _history(saved: Any) -> Any:
    """Records of one network, or a list of them for several; best epochs are found again."""
    if not isinstance(saved, list):
        raise ValueError(f"history must be a list, got {type(saved).__name__}")
    if saved and all(isinstance(part, list) for part in saved):
        return [_history(part) for part in saved]
    for record in saved:
        if not isinstance(record, dict) or not set(map(type, record.values())) <= {int, float}:
            raise ValueError("history must hold records of numbers")
    history = History(saved)
    best = min((record for record in saved if "monitor" in record), key=_monitored, default=None)
    if best is not None:
        if "epoch" not in best or not math.isfinite(best["epoch"]):
            raise ValueError("history must hold records with epochs")
        history.best_epoch, history.best_value = int(best["epoch"]), best["monitor"]
    return history


def _monitored(record: Mapping[str, float]) -> float:
    return record["monitor"]


def _scaler(saved: Mapping[str, Any], columns: int) -> Scaler:
    """Make the scaler again; files of the first version have the one kind of that time."""
    kind = SCALERS.get(str(saved.get("scaler", "Standardizer")))
    if kind is None:
        raise ValueError(f"scaler must be one of {', '.join(SCALERS)}, got {saved['scaler']!r}")
    values: dict[str, Any] = {}
    for field in fields(kind):
        if field.name not in saved and not _is_new(saved, field.name):
            raise ValueError(f"{field.name} is missing")
        value = saved[field.name] if field.name in saved else _former(saved, field.name)
        if field.name == "digits" and not isinstance(value, list):  # once that of the whole table
            value = [value] * columns
        if isinstance(value, list) == (str(field.type) == "float"):
            wanted = "a number" if isinstance(value, list) else "a list of numbers"
            raise ValueError(f"{field.name} must be {wanted}, got {type(value).__name__}")
        if isinstance(value, list):
            value = _array(field.name, value, None, empty=kind is ColumnScaler)
            if field.name in _POSITIONS:
                value = _positions(field.name, value, columns)
        else:
            value = _number(field.name, value)
        values[field.name] = value
    if not (np.asarray(values["scale"]) > 0).all():
        raise ValueError(f"scale must be > 0, got {np.min(values['scale'])}")
    groups: dict[type, list[tuple[str, ...]]] = {
        Standardizer: [("kept", "mean", "scale")],
        ColumnScaler: [("varying", "mean", "scale"), ("rare", *_OF_RARE)],
        ArrayScaler: [],
    }
    for first, *others in groups[kind]:
        for name in others:
            if np.shape(values[name]) != np.shape(values[first]):
                raise ValueError(
                    f"{name} must hold {len(values[first])} numbers, got {np.size(values[name])}"
                )
    for name, least in (("most", 0.0), ("spread", 1.0), ("unit", 1.0), ("never", 0.0)):
        if name in values and not least <= values[name] < math.inf:
            raise ValueError(f"{name} must be >= {least:g} and finite, got {values[name]}")
    digits = values.get("digits", np.full(columns, DOUBLE))
    if len(digits) != columns or not np.isin(digits, (HALF, SINGLE, DOUBLE)).all():
        raise ValueError(f"digits must be {HALF:g}, {SINGLE:g} or {DOUBLE:g}, of each column")
    scaler: Scaler = kind(**values)
    if isinstance(scaler, ColumnScaler) and len(scaler.weight) != scaler.width:
        raise ValueError(f"weight must hold {scaler.width} numbers, got {len(scaler.weight)}")
    if isinstance(scaler, ColumnScaler) and not (scaler.low <= scaler.high).all():
        raise ValueError("low must be <= high")
    return scaler


def _is_new(saved: Mapping[str, Any], name: str) -> bool:
    """Say whether a file is of a version that did not know what rare columns had seen."""
    return name in ("low", "high", "never", "digits", "unit") and "low" not in saved


def _former(saved: Mapping[str, Any], name: str) -> Any:
    """Give what makes a scaler of a former version what it was."""
    values = {"digits": DOUBLE, "unit": 1.0, "never": max(saved["surprise"], default=0.0)}
    if name in values:
        return values[name]
    most = float(np.finfo(np.float64).max) / 4 * (1 if name == "high" else -1)
    pairs = zip(saved["mode"], saved["share"], strict=True)
    return [most if share > 0 else mode for mode, share in pairs]


def _positions(name: str, values: npt.NDArray[np.float64], columns: int) -> npt.NDArray[np.int64]:
    rising = (np.diff(values) > 0).all() and (values == np.floor(values)).all()
    if len(values) and not (rising and values[0] >= 0 and values[-1] < columns):
        raise ValueError(f"{name} must be positions below {columns}, in rising order")
    return values.astype(np.int64)


def _names(saved: Any, columns: int) -> npt.NDArray[np.object_] | None:
    if saved is None:
        return None
    if not isinstance(saved, list) or not all(isinstance(name, str) for name in saved):
        raise ValueError("feature_names_in must be null or a list of strings")
    if len(saved) != columns or len(set(saved)) != columns:
        raise ValueError(f"feature_names_in must be {columns} different names, got {len(saved)}")
    return np.asarray(saved, dtype=object)


def _array(
    name: str, saved: Any, size: int | None, *, empty: bool = False
) -> npt.NDArray[np.float64]:
    if not isinstance(saved, list) or not set(map(type, saved)) <= {int, float}:
        raise ValueError(f"{name} must be a list of numbers")
    if not (saved or empty) or (size is not None and len(saved) != size):
        wanted = "at least one number" if size is None else f"{size} numbers"
        raise ValueError(f"{name} must hold {wanted}, got {len(saved)}")
    try:
        values = np.asarray(saved, dtype=np.float64)
    except OverflowError:
        raise ValueError(f"{name} must fit float64") from None
    if not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite")
    return values


def _integer(name: str, value: Any, least: int, most: int = _LARGEST) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} must be an integer from {least} to {most}, got {_short(value)}")
    return value


def _number(name: str, value: Any) -> float:
    if type(value) not in (int, float):
        raise ValueError(f"{name} must be a number, got {_short(value)}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} must fit float64") from None


def _short(value: Any) -> str:
    if type(value) is int and abs(value) > _LARGEST:
        return "one beyond it" if value > 0 else "one below it"
    return repr(value)[:40]
