"""Optimizers and schedulers whose steps an operator can take as they would."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import CodeType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim import optimizer as _optimizer_globals
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    PolynomialLR,
    StepLR,
)

__all__ = [
    "OptimizerRule",
    "is_plain_optimizer",
    "is_plain_scheduler",
    "optimizer_states",
    "rule_of",
    "scheduled",
    "steps_taken",
]

# Schedulers whose next rate depends on nothing but their own count.
_SCHEDULERS = (
    *(LambdaLR, LinearLR, ConstantLR, StepLR, MultiStepLR, ExponentialLR, CosineAnnealingLR),
    PolynomialLR,
)


class OptimizerRule(NamedTuple):
    """What one step does, as in `torch.optim`; a rate comes with each step.

    Attributes:
        is_adam: Adam or AdamW, else SGD.
        beta1: Of Adam.
        beta2: Of Adam.
        eps: Of Adam.
        momentum: Of SGD.
        dampening: Of SGD.
        nesterov: Of SGD.
        weight_decay: Of all.
        decoupled: Whether the decay is AdamW's.
    """

    is_adam: bool
    beta1: float
    beta2: float
    eps: float
    momentum: float
    dampening: float
    nesterov: bool
    weight_decay: float
    decoupled: bool


def rule_of(optimizer: Optimizer) -> OptimizerRule:
    """Read the rule of a plain optimizer."""
    group = optimizer.param_groups[0]
    beta1, beta2 = group.get("betas", (0.0, 0.0))
    return OptimizerRule(
        "betas" in group,
        beta1,
        beta2,
        group.get("eps", 0.0),
        group.get("momentum", 0.0),
        group.get("dampening", 0.0),
        group.get("nesterov", False),
        group["weight_decay"],
        group.get("decoupled_weight_decay", False),
    )


def is_plain_optimizer(optimizer: Optimizer) -> bool:
    """Say whether an optimizer is Adam, AdamW or SGD in one of their usual forms."""
    if type(optimizer) not in (Adam, AdamW, SGD) or len(optimizer.param_groups) != 1:
        return False
    group = optimizer.param_groups[0]
    step = vars(optimizer).get("step")
    odd = ("amsgrad", "maximize", "capturable", "differentiable")
    numbers = [group["lr"], *group.get("betas", ())]
    return (
        not any(group.get(name) for name in odd)
        and all(type(number) in (int, float, np.float64) for number in numbers)
        and (step is None or _is_scheduler_s(step))
        and not ({"zero_grad", "add_param_group"} & vars(optimizer).keys())
        and not optimizer._optimizer_step_pre_hooks
        and not optimizer._optimizer_step_post_hooks
        and not _optimizer_globals._global_optimizer_pre_hooks
        and not _optimizer_globals._global_optimizer_post_hooks
    )


def _is_scheduler_s(step: object) -> bool:
    """Say whether a step is one that a scheduler has wrapped: others may copy its mark."""
    code = getattr(step, "__code__", None)
    return hasattr(step, "_wrapped_by_lr_sched") and code in _WRAPPERS


def _codes_in(constants: tuple[object, ...]) -> Iterator[CodeType]:
    for constant in constants:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes_in(constant.co_consts)


# What a scheduler's constructor puts around an optimizer's step.
_WRAPPERS = tuple(_codes_in(LRScheduler.__init__.__code__.co_consts))


def is_plain_scheduler(scheduler: LRScheduler, optimizer: Optimizer) -> bool:
    """Say whether the rates of an optimizer's next steps are known before they are taken."""
    return type(scheduler) in _SCHEDULERS and scheduler.optimizer is optimizer


def steps_taken(optimizer: Optimizer, parameter: Tensor) -> float:
    """Count the steps that an optimizer remembers."""
    state = optimizer.state.get(parameter, {})
    if isinstance(optimizer, SGD):
        # Whether there is a velocity is all that SGD remembers.
        return 1.0 if state.get("momentum_buffer") is not None else 0.0
    return float(state["step"]) if state else 0.0


def optimizer_states(
    optimizer: Optimizer, parameters: Sequence[Tensor | None]
) -> tuple[list[Tensor], list[Tensor], int]:
    """Give an optimizer's states in the order of the parameters, made where there are none."""
    group = optimizer.param_groups[0]
    first, second = [], []
    steps_done = 0
    for parameter in parameters:
        if parameter is None or not parameter.requires_grad:
            first.append(torch.empty(0, device="cpu"))
            second.append(torch.empty(0, device="cpu"))
            continue
        steps_done = int(steps_taken(optimizer, parameter))
        state = optimizer.state[parameter]
        if isinstance(optimizer, SGD):
            if group["momentum"] != 0 and state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            first.append(state.get("momentum_buffer", parameter.new_empty(0)))
            second.append(parameter.new_empty(0))
            continue
        if not state:
            # As torch's own: a type of half the width would not count far.
            wide = torch.get_default_dtype() is torch.float64
            kind = torch.float64 if wide else torch.float32
            state["step"] = torch.zeros((), dtype=kind, device="cpu")
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(parameter)
        first.append(state["exp_avg"])
        second.append(state["exp_avg_sq"])
    return first, second, steps_done


@contextmanager
def scheduled(
    optimizer: Optimizer, scheduler: LRScheduler | None, count: int
) -> Iterator[tuple[Tensor, Callable[[int], None]]]:
    """Give the learning rates of the next steps, and a function that says how many were taken."""
    # What schedulers, of steps or epochs, ask for before they complain.
    optimizer._opt_called = True  # type: ignore[attr-defined]
    group = optimizer.param_groups[0]
    if scheduler is None:
        rate = float(group["lr"])
        yield torch.full((count,), rate, dtype=torch.float64, device="cpu"), lambda steps: None
        return
    before = (scheduler.state_dict(), group["lr"])
    rates = []

    def advance(steps: int) -> None:
        for _ in range(steps):
            rates.append(float(group["lr"]))
            scheduler.step()

    def keep(steps: int) -> None:
        if steps < count:
            scheduler.load_state_dict(before[0])
            group["lr"] = before[1]
            advance(steps)

    advance(count)
    yield torch.tensor(rates, dtype=torch.float64, device="cpu"), keep
