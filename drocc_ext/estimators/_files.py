"""What a saved estimator holds besides its network, and the checks of what others have written."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from drocc_ext.models.networks import MLP
from drocc_ext.search import SearchConfig
from drocc_ext.training.loss import METRICS, DROCCLoss

_LARGEST = 2**31 - 1


def check_parameters(saved: Any, constructor: Callable[..., Any]) -> dict[str, Any]:
    """Check the parameters of a saved estimator.

    Args:
        saved: What the file holds for them.
        constructor: The estimator's class.

    Returns:
        Arguments for the constructor; what an older file lacks is missing.

    Raises:
        ValueError: If one is unknown, of the wrong kind or out of range.
    """
    signature = inspect.signature(constructor).parameters
    if not isinstance(saved, dict):
        raise ValueError(f"parameters must be a dict, got {type(saved).__name__}")
    values = {name: parameter.default for name, parameter in signature.items()} | saved
    for name in saved:
        if name not in signature:
            raise ValueError(f"parameters must be the estimator's, got {name!r}")
    for name in ("hidden", "max_steps", "batch_size"):
        _integer(name, values[name], 1)
    _integer("num_steps", values["num_steps"], 0)
    for name in ("contamination", "step_size", "noise_scale", "mu", "learning_rate"):
        _number(name, values[name])
    for name in ("learning_rate", "weight_decay"):
        if not 0 <= _number(name, values[name]) < math.inf:
            raise ValueError(f"{name} must be >= 0 and finite, got {values[name]}")
    if not 0 < values["contamination"] <= 0.5:
        raise ValueError(f"contamination must be in (0, 0.5], got {values['contamination']}")
    if values["metric"] not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {values['metric']!r}")
    if not isinstance(values["device"], str):
        raise ValueError(f"device must be a string, got {values['device']!r}")
    if not isinstance(values["verbose"], bool | int):
        raise ValueError(f"verbose must be true or false, got {values['verbose']!r}")
    if values["random_state"] is not None:
        _integer("random_state", values["random_state"], 0, 2**32 - 1)
    radius = 1.0 if values["radius"] is None else _number("radius", values["radius"])
    try:
        search = SearchConfig.from_relative_step(
            radius,
            step_size=values["step_size"],
            num_steps=values["num_steps"],
            noise_scale=values["noise_scale"],
            gamma=_number("gamma", values["gamma"]),
        )
        DROCCLoss(search, mu=values["mu"])
    except TypeError as error:
        raise ValueError(str(error)) from error
    return dict(saved)


def check_fitted(saved: Mapping[str, Any], network: Any) -> dict[str, Any]:
    """Check what a saved estimator has learned.

    Args:
        saved: What the file holds.
        network: The network loaded with it.

    Returns:
        "network", "n_features_in" (int), "feature_names_in" (array or None), "radius" (float),
        "kept", "mean", "scale" and "training_logits" (arrays).

    Raises:
        ValueError: If something is missing, of the wrong kind or size, or not finite.
    """
    if not isinstance(network, MLP):
        raise ValueError(f"the network is a {type(network).__name__}")
    weights = list(network.state_dict().values())
    if any(part.dtype is not torch.float64 for part in weights):
        raise ValueError("the network must be in float64")
    if not all(bool(part.isfinite().all()) for part in weights):
        raise ValueError("the network must have finite weights")
    names = ("n_features_in", "feature_names_in", "radius", "kept", "mean", "scale")
    for name in (*names, "training_logits"):
        if name not in saved:
            raise ValueError(f"{name} is missing")
    columns = _integer("n_features_in", saved["n_features_in"], 1)
    features = network.layers[0].in_features
    kept = _array("kept", saved["kept"], features)
    whole = kept == np.floor(kept)
    if not (whole.all() and (np.diff(kept) > 0).all() and kept[0] >= 0 and kept[-1] < columns):
        raise ValueError(f"kept must be positions below {columns}, in rising order")
    scale = _array("scale", saved["scale"], features)
    if not (scale > 0).all():
        raise ValueError(f"scale must be > 0, got {scale.min()}")
    radius = _number("radius", saved["radius"])
    if not 0 < radius < math.inf:
        raise ValueError(f"radius must be > 0 and finite, got {radius}")
    return {
        "network": network,
        "n_features_in": columns,
        "feature_names_in": _names(saved["feature_names_in"], columns),
        "radius": radius,
        "kept": kept.astype(np.int64),
        "mean": _array("mean", saved["mean"], features),
        "scale": scale,
        "training_logits": _array("training_logits", saved["training_logits"], None),
    }


def _names(saved: Any, columns: int) -> npt.NDArray[np.object_] | None:
    if saved is None:
        return None
    if not isinstance(saved, list) or not all(isinstance(name, str) for name in saved):
        raise ValueError("feature_names_in must be null or a list of strings")
    if len(saved) != columns or len(set(saved)) != columns:
        raise ValueError(f"feature_names_in must be {columns} different names, got {len(saved)}")
    return np.asarray(saved, dtype=object)


def _array(name: str, saved: Any, size: int | None) -> npt.NDArray[np.float64]:
    if not isinstance(saved, list) or not set(map(type, saved)) <= {int, float}:
        raise ValueError(f"{name} must be a list of numbers")
    if not saved or (size is not None and len(saved) != size):
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
