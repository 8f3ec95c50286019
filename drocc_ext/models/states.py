"""The state dict of a module: without the names of wrappers, and whether it fits another module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from drocc_ext._checks import describe
from drocc_ext.models.modules import unwrap


def plain_module(model: nn.Module) -> nn.Module:
    """Return the module inside wrappers, compiled or for several devices.

    Args:
        model: A module, wrapped or not.

    Returns:
        The module itself.
    """
    while True:
        inner: nn.Module = unwrap(getattr(model, "_orig_mod", model))  # _orig_mod: torch.compile
        if inner is model:
            return model
        model = inner


def bare_names(model: nn.Module) -> dict[str, str]:
    """Name a model's state without its wrappers, compiled or for several devices, at any depth.

    Args:
        model: The model.

    Returns:
        From each name in its state dict to the name that it has in the bare model.
    """
    dropped = set()
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        if isinstance(module, DistributedDataParallel | DataParallel):
            dropped.add(f"{prefix}module")
        if "_orig_mod" in module._modules:  # torch.compile
            dropped.add(f"{prefix}_orig_mod")
    names = {}
    for name in model.state_dict():
        parts = name.split(".")
        paths = (".".join(parts[: depth + 1]) for depth in range(len(parts)))
        kept = [part for part, path in zip(parts, paths, strict=True) if path not in dropped]
        names[name] = ".".join(kept)
    return names


def for_model(model: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """Give a state dict of bare names the names of a model that may be wrapped.

    Args:
        model: The model.
        state: The state dict; names with the prefixes of wrappers, as former versions kept them,
            are understood too.

    Returns:
        The state dict for the model; names that it does not know stay.
    """
    own = {bare: name for name, bare in bare_names(model).items()}
    if set(state) != set(own):
        state = {
            ".".join(part for part in name.split(".") if part != "_orig_mod"): value
            for name, value in state.items()
        }
        if not any(name.startswith("module.") for name in own):
            state = {name.removeprefix("module."): value for name, value in state.items()}
    return {own.get(name, name): value for name, value in state.items()}


def check_state_fits(caller: str, model: nn.Module, state: Mapping[str, Any]) -> None:
    """Refuse a state dict whose names, shapes or kinds of number are not the model's.

    Args:
        caller: Name to begin an error with.
        model: The module it is meant for.
        state: The state dict, of which nothing is copied.

    Raises:
        ValueError: If it does not fit.
    """
    own = model.state_dict()
    problems = [f"{name} is missing" for name in own if name not in state]
    problems += [f"{name} is unknown" for name in state if name not in own]
    problems += [
        f"{name} is a {describe(value)}, not a {describe(own[name])}"
        for name, value in state.items()
        if name in own and _kind(value) != _kind(own[name])
    ]
    problems += [
        f"{name} has shape {tuple(value.shape)}, not {tuple(own[name].shape)}"
        for name, value in state.items()
        if isinstance(value, Tensor)
        and isinstance(own.get(name), Tensor)
        and value.shape != own[name].shape
    ]
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(
            f"{caller}: the weights do not fit {type(model).__name__}: "
            f"{', '.join(problems[:3])}{more}"
        )


def _kind(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    if value.dtype is torch.bool:
        return "bool"
    if value.is_complex():
        return "complex"
    return "float" if value.is_floating_point() else "integer"
