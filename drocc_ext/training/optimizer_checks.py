"""Whether a saved state is one of this optimizer and this scheduler."""

from __future__ import annotations

import copy
import inspect
import math
from collections import defaultdict
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

# Tensors that optimizers keep in the shape of their parameter.
_LIKE_PARAMETER = {
    "acc_delta", "ax", "exp_avg", "exp_avg_sq", "exp_inf", "grad_avg", "max_exp_avg_sq",
    "momentum_buffer", "prev", "square_avg", "step_size", "sum",
}  # fmt: skip


def needs_closure(optimizer: Optimizer) -> bool:
    """Say whether an optimizer cannot step without a closure, as LBFGS.

    Args:
        optimizer: The optimizer.

    Returns:
        Whether its `step` has a closure without a default.
    """
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def check_optimizer(caller: str, optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Refuse the state of another optimizer, or of one over other parameters.

    Args:
        caller: Name to begin an error with.
        optimizer: The optimizer that is to go on.
        saved: A well-formed state dict.

    Raises:
        ValueError: If it does not fit.
    """
    name = type(optimizer).__name__
    groups = optimizer.param_groups
    sizes = [len(group["params"]) for group in groups]
    saved_sizes = [len(group["params"]) for group in saved["param_groups"]]
    if sizes != saved_sizes:
        raise ValueError(
            f"{caller}: a resumed fit must be as before, but the optimizer's groups had "
            f"{saved_sizes} parameters and have {sizes}"
        )
    for group, saved_group in zip(groups, saved["param_groups"], strict=True):
        # "initial_lr" is a scheduler's; a key of a later torch than the file's is set by default.
        for key in saved_group.keys() - group.keys() - {"initial_lr"}:
            raise ValueError(
                f"{caller}: a resumed fit must be as before, but the optimizer had {key!r}, which "
                f"{name} has not"
            )
        for key in group.keys() - saved_group.keys() - {"initial_lr"}:
            # Switches came with later versions of torch, numbers were always there.
            if isinstance(group[key], tuple | Tensor) or type(group[key]) in (int, float):
                raise ValueError(f"{caller}: the optimizer must have {key!r}, which the file lacks")
        for key, value in saved_group.items():
            if key != "params" and key in group and not _same_kind(value, group[key]):
                raise ValueError(
                    f"{caller}: the optimizer's {key!r} must be as {group[key]!r}, got "
                    f"{type(value).__name__}"
                )
            if key in group and not _is_setting(key, value, group[key]):
                raise ValueError(
                    f"{caller}: the optimizer's {key!r} must be a setting that this {name} could "
                    f"have, as {group[key]!r}, got {value!r}"
                )
    parameters = [parameter for group in groups for parameter in group["params"]]
    expected = _state_after_a_step(optimizer)
    for index, state in saved["state"].items():
        if type(index) is not int or index not in range(len(parameters)):
            raise ValueError(f"{caller}: the optimizer's state is of parameters that it has not")
        wanted = None if expected is None else expected.get(parameters[index])
        if wanted is not None and state.keys() != wanted.keys():
            raise ValueError(
                f"{caller}: {name} must keep {', '.join(map(str, wanted))} of parameter {index}"
            )
        for key, value in state.items():
            shape = None
            if wanted is not None and isinstance(wanted[key], Tensor):
                shape = wanted[key].shape
            elif wanted is None and key in _LIKE_PARAMETER:
                shape = parameters[index].shape
            if not _is_state_value(key, value, shape):
                raise ValueError(
                    f"{caller}: the optimizer's {key!r} of parameter {index} is none, it must be "
                    f"{'finite' if shape is None else f'a tensor of shape {tuple(shape)}'}"
                )


def check_scheduler(caller: str, scheduler: LRScheduler, saved: dict[str, Any]) -> None:
    """Refuse the state of another scheduler.

    Args:
        caller: Name to begin an error with.
        scheduler: The scheduler that is to go on.
        saved: Its state dict.

    Raises:
        ValueError: If it does not fit.
    """
    name = type(scheduler).__name__
    own = scheduler.state_dict()
    for key in saved.keys() ^ own.keys():
        had = "had" if key in saved else "had not"
        has = "has" if key in own else "has not"
        raise ValueError(
            f"{caller}: a resumed fit must be as before, but the scheduler {had} {key!r}, which "
            f"{name} {has}"
        )
    for key, value in saved.items():
        if not _same_kind(value, own[key]):
            raise ValueError(
                f"{caller}: the scheduler's {key!r} must be as {own[key]!r}, got "
                f"{type(value).__name__}"
            )


def _state_after_a_step(optimizer: Optimizer) -> dict[Any, dict[str, Any]] | None:
    """Find out what an optimizer keeps of each parameter, by a step that costs no memory.

    None where it cannot step on the meta device.
    """
    other = copy.copy(optimizer)
    other.state = defaultdict(dict)
    other.param_groups = []
    stand_ins: dict[Any, Any] = {}
    for group in optimizer.param_groups:
        parameters = []
        for parameter in group["params"]:
            stand_in = nn.Parameter(torch.empty_like(parameter, device="meta"))
            stand_in.grad = torch.empty_like(stand_in)
            stand_ins[stand_in] = parameter
            parameters.append(stand_in)
        plain: dict[str, Any] = {
            key: False for key in ("foreach", "fused", "capturable") if key in group
        }
        other.param_groups.append({**group, **plain, "params": parameters})
    try:
        type(optimizer).step(other)
    except Exception:
        return None
    return {stand_ins[stand_in]: state for stand_in, state in other.state.items()}


def _is_state_value(name: Any, value: Any, shape: torch.Size | None) -> bool:
    """Check one entry of a parameter's state: a tensor of a shape, or a finite number."""
    least = 0 if name == "step" else -math.inf
    if isinstance(value, Tensor):
        if value.is_complex() or value.layout is not torch.strided:
            return False
        if value.numel() == 1 and shape in (None, torch.Size([])):
            return least <= float(value) < math.inf
        return shape is None or value.shape == shape
    if shape is not None and (len(shape) > 0 or value is None):
        return False
    return value is None or (type(value) in (int, float) and least <= value < math.inf)


def _is_setting(key: str, value: Any, own: Any) -> bool:
    """Check a setting: switches decide what state there is, numbers are finite and not negative.

    Unless the optimizer's own is: that of Adafactor's decay is negative, and groups may have more.
    """
    if isinstance(own, bool):
        return key in ("foreach", "fused") or value == own
    if isinstance(own, Real):
        number = float(value)
        return number == float(own) or (-math.inf if own < 0 else 0) <= number < math.inf
    if isinstance(own, tuple | list) and key != "params":
        return value is not None and all(
            _is_setting(key, *pair) for pair in zip(value, own, strict=True)
        )
    return True


def _same_kind(value: Any, own: Any) -> bool:
    """Compare kinds as far as they are certain: None stands where another value may come."""
    if own is None:
        return True
    if value is None:  # a number does not become None
        return isinstance(own, bool) or not isinstance(own, Real)
    if isinstance(own, bool) or isinstance(value, bool):
        return isinstance(own, bool | int) and isinstance(value, bool | int)
    if isinstance(own, Real | Tensor):
        return isinstance(value, Real) or (isinstance(value, Tensor) and value.numel() == 1)
    if isinstance(own, list | tuple):
        return (
            isinstance(value, list | tuple)
            and len(value) == len(own)
            and all(map(_same_kind, value, own))
        )
    return isinstance(value, type(own)) or isinstance(own, type(value))
