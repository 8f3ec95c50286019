"""What a trainer refuses before it begins."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from drocc_ext._checks import as_int, describe
from drocc_ext.training.callbacks import Callback
from drocc_ext.training.loss import DROCCLoss
from drocc_ext.training.optimizer_checks import needs_closure
from drocc_ext.training.ranks import OneProcess

_HOOKS = [name for name in vars(Callback) if name.startswith("on_") and name != "on_every_rank"]


def check_parameters(caller: str, model: nn.Module, optimizer: Optimizer) -> None:
    """Refuse an optimizer that would step nothing of the model.

    Args:
        caller: Name to begin an error with.
        model: The model, whose parameters may have been replaced since the optimizer was made.
        optimizer: Its optimizer.

    Raises:
        ValueError: If it has none of the model's parameters.
    """
    own = {id(parameter) for parameter in model.parameters()}
    if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
        raise ValueError(f"{caller}: optimizer must be over parameters of model, got none of them")


def check_can_be_restored(model: nn.Module) -> None:
    """Refuse a state that nothing can be copied into, before a fit that would have to.

    Args:
        model: The model.

    Raises:
        ValueError: If a part of it is expanded, several elements in one place.
    """
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor) and value.layout is torch.strided and value.numel() > 1:
            pairs = zip(value.shape, value.stride(), strict=True)
            if any(size > 1 and stride == 0 for size, stride in pairs):
                raise ValueError(
                    "Trainer.fit: the model's state must be copied back for the best epoch or a "
                    f"resumed fit, got an expanded tensor for {name!r}; its clone() can be"
                )


def check_record(record: dict[str, Any]) -> None:
    """Make python's numbers of what callbacks have added to a record, which a checkpoint keeps.

    Args:
        record: The epoch's, changed in place.

    Raises:
        TypeError: If an entry is no number.
    """
    for name, value in record.items():
        if type(value) in (int, float):
            continue
        if isinstance(value, Real | np.bool_ | Tensor):
            with suppress(TypeError, ValueError, RuntimeError):
                value = float(value)  # as history has it
                record[name] = value
        if type(value) is not float:
            raise TypeError(
                "Trainer.fit: a record must hold numbers to be kept in a checkpoint, got "
                f"{describe(value)} for {name!r}"
            )


def check_state_is_here(optimizer: Optimizer) -> None:
    """Refuse an optimizer whose state lies on all ranks, before a checkpoint asks for it.

    Args:
        optimizer: The optimizer.

    Raises:
        ValueError: If it is a `ZeroRedundancyOptimizer`.
    """
    if hasattr(optimizer, "consolidate_state_dict"):
        raise ValueError(
            "Trainer.fit: checkpoint_dir needs an optimizer that has its whole state, got "
            f"{type(optimizer).__name__}; distributed='fsdp' spreads it over the ranks and keeps it"
        )


def check_parts(
    model: Any,
    loss: Any,
    optimizer: Any,
    scheduler: Any,
    scheduler_interval: Any,
    callbacks: Any = (),
) -> None:
    """Check what a trainer is made of; see `Trainer` for the arguments.

    Raises:
        TypeError: If model, loss or optimizer has the wrong type.
        ValueError: If they do not go together.
    """
    parts = (
        ("model", model, nn.Module, "a Module"),
        ("loss", loss, DROCCLoss, "a DROCCLoss"),
        ("optimizer", optimizer, Optimizer, "an Optimizer"),
    )
    for name, value, kind, wanted in parts:
        if not isinstance(value, kind):
            raise TypeError(f"Trainer: {name} must be {wanted}, got {type(value).__name__}")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("Trainer: model must have a parameter that requires gradients, got none")
    check_parameters("Trainer", model, optimizer)
    if needs_closure(optimizer):
        raise ValueError(
            "Trainer: optimizer must step without a closure, got "
            f"{type(optimizer).__name__}: within a step it would compare losses of different "
            "adversarial points"
        )
    steps = callable(getattr(scheduler, "step", None)) and not isinstance(scheduler, type)
    if scheduler is not None and not steps:
        raise TypeError(
            "Trainer: scheduler must be one of torch.optim.lr_scheduler over optimizer, or None, "
            f"got {_shown(scheduler)}"
        )
    if not isinstance(callbacks, Iterable):
        raise TypeError(f"Trainer: callbacks must be several, got one {_shown(callbacks)}")
    for callback in callbacks:
        whole = all(callable(getattr(callback, name, None)) for name in _HOOKS)
        if not whole or isinstance(callback, type):
            raise TypeError(
                f"Trainer: callbacks must be instances of Callback, got {_shown(callback)}"
            )
    # By the groups, whose rates it sets: a wrapper shares them.
    stepped = getattr(scheduler, "optimizer", optimizer)
    if stepped.param_groups is not optimizer.param_groups:
        raise ValueError("Trainer: scheduler must be one of optimizer, got one of another")
    if isinstance(loss.search.radius, Tensor):
        raise ValueError(
            "Trainer: the loss's radius must be a number, got a tensor: rows are shuffled, so "
            "radii by position would go to the wrong rows"
        )
    if scheduler_interval not in ("epoch", "step"):
        raise ValueError(
            f"Trainer: scheduler_interval must be 'epoch' or 'step', got {scheduler_interval!r}"
        )
    if isinstance(scheduler, ReduceLROnPlateau) and scheduler_interval == "step":
        raise ValueError("Trainer: ReduceLROnPlateau needs scheduler_interval 'epoch', got 'step'")


class FitNumbers(NamedTuple):
    """Numbers of a fit, see `Trainer.fit`."""

    epochs: int | None
    max_steps: int | None
    patience: int | None
    batch_size: int
    warmup_epochs: int


def check_fit(
    *,
    validation: Any,
    epochs: Any,
    max_steps: Any,
    batch_size: Any,
    warmup_epochs: Any,
    monitor: Any,
    patience: Any,
    checkpoint_dir: str | os.PathLike[str] | None,
    resume: bool,
    seed: Any,
) -> FitNumbers:
    """Check the arguments of a fit; see `Trainer.fit` for them.

    Returns:
        Its numbers as Python's integers: those of numpy may overflow.

    Raises:
        TypeError: If one has the wrong type.
        ValueError: If one is out of range, or lacks another.
        RuntimeError: If gradients are switched off.
    """
    if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
        raise RuntimeError(
            "Trainer.fit: gradients must be enabled, got a call under torch.no_grad() or "
            "torch.inference_mode()"
        )
    if epochs is None and max_steps is None:
        raise ValueError("Trainer.fit: epochs or max_steps must be given, got neither")
    numbers = {"epochs": epochs, "max_steps": max_steps, "patience": patience}
    whole = {
        name: None if value is None else as_int("Trainer.fit", name, value, 1)
        for name, value in numbers.items()
    }
    size = as_int("Trainer.fit", "batch_size", batch_size, 1)
    warmup = as_int("Trainer.fit", "warmup_epochs", warmup_epochs, 0)
    if seed is not None and as_int("Trainer.fit", "seed", seed, 0) >= 2**63:
        raise ValueError(f"Trainer.fit: seed must be < 2**63, got {seed}")
    if patience is not None and validation is None:
        raise ValueError(f"Trainer.fit: patience needs validation data, got {patience}")
    if resume and checkpoint_dir is None:
        raise ValueError("Trainer.fit: resume needs a checkpoint_dir, got None")
    if checkpoint_dir is not None and not isinstance(checkpoint_dir, str | os.PathLike):
        raise TypeError(
            f"Trainer.fit: checkpoint_dir must be a path, got {type(checkpoint_dir).__name__}"
        )
    if checkpoint_dir is not None and os.fspath(checkpoint_dir) == "":
        raise ValueError("Trainer.fit: checkpoint_dir must be named, got ''")
    if checkpoint_dir is not None:
        place = Path(checkpoint_dir).absolute()
        found = next(parent for parent in (place, *place.parents) if parent.exists())
        if not found.is_dir():
            raise ValueError(
                "Trainer.fit: checkpoint_dir must be a directory, got "
                f"{os.fspath(checkpoint_dir)!r}, where {found} is a file"
            )
    if not callable(monitor) and monitor not in ("loss", "auc"):
        raise ValueError(
            f"Trainer.fit: monitor must be 'loss', 'auc' or a function, got {monitor!r}"
        )
    return FitNumbers(**whole, batch_size=size, warmup_epochs=warmup)


def check_finite(model: nn.Module, optimizer: Optimizer, ranks: OneProcess, step: int) -> None:
    """Check what the last step has left; the loss of the next would not show all of it.

    An optimizer whose mean of squares has overflowed divides by infinity: it moves its weight no
    more, and says nothing.

    Args:
        model: The model.
        optimizer: Its optimizer.
        ranks: Who trains it; each may have a part.
        step: Optimizer steps so far.

    Raises:
        FloatingPointError: If a weight that is trained is not finite, or what the optimizer keeps
            for it.
    """
    found = ""
    for name, parameter in model.named_parameters():
        if found or not parameter.requires_grad:
            continue
        if not _is_finite(parameter.detach()):
            found = f"weights must be finite, got others in {name}"
        for key, value in optimizer.state.get(parameter, {}).items():
            kept = isinstance(value, Tensor) and value.shape == parameter.shape
            if not found and kept and not _is_finite(value):
                found = f"{key} of the optimizer must be finite, got others for {name}"
    if ranks.any(found != ""):
        raise FloatingPointError(
            f"Trainer.fit: {found or 'weights must be finite, got others on another rank'} after "
            f"step {step}: gradients, weight decay or learning rate are too large for their type"
        )


def _is_finite(values: Tensor) -> bool:
    own: Tensor = getattr(values, "to_local", lambda: values)()
    return bool(own.isfinite().all())


def _shown(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
