"""What a checkpoint must hold to be loaded: checked whole, before anything is changed."""

from __future__ import annotations

import copy
import io
import random
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)


def find_foreign(name: str, value: Any) -> tuple[str, str] | None:
    """Find a value that a checkpoint could hold but not give back.

    Args:
        name: What the value is called.
        value: Values in dicts, lists, tuples and sets, at any depth.

    Returns:
        Name and type of the first such value, None if there is none.
    """
    if type(value) in _PLAIN or isinstance(value, Tensor):
        return None
    if isinstance(value, dict):
        items = [(f"{name}[{key!r}]", item) for key, item in value.items()]
        items += [(f"a key of {name}", key) for key in value]
    elif type(value) in (list, tuple, set):
        items = [(f"{name}[{index}]", item) for index, item in enumerate(value)]
    else:
        return None if _can_be_read_back(value) else (name, _type_name(value))
    return next((found for part in items if (found := find_foreign(*part)) is not None), None)


def plain(value: Any) -> Any:
    """Turn numpy's numbers into Python's where these compute the same.

    Those of float32 do not: what a fit computes with them would be other numbers after a resume.

    Args:
        value: A value; dicts, lists, tuples and sets are looked through.

    Returns:
        The value itself where there are none.
    """
    if isinstance(value, np.float64 | np.integer | np.bool_):
        return value.item()
    if isinstance(value, dict):
        parts = {plain(key): plain(item) for key, item in value.items()}
        if all(a is b and parts[a] is value[b] for a, b in zip(parts, value, strict=True)):
            return value
        made = copy.copy(value)  # of its class, such as a scheduler's Counter
        made.clear()
        made.update(parts)
        return made
    if type(value) in (list, tuple, set):
        changed = [plain(item) for item in value]
        same = all(a is b for a, b in zip(changed, value, strict=True))
        return value if same else type(value)(changed)
    return value


def check_content(caller: str, content: dict[str, Any], fit_state: type) -> None:
    """Refuse a checkpoint in which something is missing or of the wrong kind.

    Args:
        caller: Name to begin an error with.
        content: What was read.
        fit_state: The dataclass of the progress.

    Raises:
        ValueError: If it is malformed.
    """
    schema: dict[str, Callable[[Any], bool]] = {
        "model": _is_state,
        "optimizer": _is_optimizer_state,
        "scheduler": lambda value: value is None or isinstance(value, dict),
        "scaler": lambda value: isinstance(value, dict),
        "generators": lambda value: isinstance(value, list) and all(map(is_rng_tensor, value)),
        "rng": is_rng_state,
        "fit": lambda value: _is_fit(value, fit_state),
    }
    for name, is_right in schema.items():
        if name not in content:
            raise ValueError(f"{caller}: the checkpoint is malformed, it has no {name!r}")
        if not is_right(content[name]):
            raise ValueError(f"{caller}: the checkpoint is malformed, its {name!r} is none")
    loss = content.get("loss")  # the first version had none
    if "loss" in content and not (
        isinstance(loss, dict)
        and {"metric", "influence", "state"} <= loss.keys()
        and _is_state(loss["state"])
    ):
        raise ValueError(f"{caller}: the checkpoint is malformed, its 'loss' is none")


def _can_be_read_back(value: Any) -> bool:
    try:
        torch.save(value, file := io.BytesIO())
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception:
        return False
    return True


def _type_name(value: Any) -> str:
    kind = type(value)
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )


def _is_state(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value)


def _is_optimizer_state(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("state"), dict)
        and all(isinstance(state, dict) for state in value["state"].values())
        and isinstance(value.get("param_groups"), list)
        and all(
            isinstance(group, dict)
            and isinstance(group.get("params"), list)
            and all(type(index) is int for index in group["params"])
            for group in value["param_groups"]
        )
    )


def is_rng_tensor(value: Any) -> bool:
    """Say whether a value looks like the state of a generator."""
    return isinstance(value, Tensor) and value.dtype is torch.uint8 and value.dim() == 1


def is_rng_state(value: Any) -> bool:
    """Say whether a value is the state of all global generators: tried on other generators."""
    if not (isinstance(value, dict) and isinstance(value.get("cuda"), list)):
        return False
    if not all(map(is_rng_tensor, [value.get("torch"), *value["cuda"]])):
        return False
    try:
        torch.Generator("cpu").set_state(value["torch"])
        random.Random().setstate(value["python"])
        np.random.RandomState().set_state(tensors_to_arrays(value["numpy"]))
    except Exception:
        return False
    return True


def tensors_to_arrays(value: Any) -> Any:
    """Turn the tensors in a dict into numpy arrays, at any depth.

    Args:
        value: A dict, a tensor or another value.

    Returns:
        The same with arrays.
    """
    if isinstance(value, dict):
        return {key: tensors_to_arrays(item) for key, item in value.items()}
    return value.numpy() if isinstance(value, Tensor) else value


def _is_fit(value: Any, fit_state: type) -> bool:
    names = {part.name for part in fields(fit_state)}
    required = {part.name for part in fields(fit_state) if part.default is MISSING}
    if not isinstance(value, dict) or not required <= value.keys() <= names:
        return False
    counts = (value.get(name, 0) for name in ("epoch", "step", "stale_epochs"))
    best_value, best_epoch = value.get("best_value"), value.get("best_epoch")
    records = value.get("records", [])
    return (
        isinstance(value["monitor"], str)
        and all(type(count) is int and count >= 0 for count in counts)
        and (best_value is None or type(best_value) in (int, float))
        and (best_epoch is None or (type(best_epoch) is int and best_epoch > 0))
        and (value.get("best_weights") is None or _is_state(value["best_weights"]))
        and isinstance(records, list)
        and all(
            isinstance(record, dict)
            and all(isinstance(k, str) and type(v) in (int, float) for k, v in record.items())
            for record in records
        )
    )
