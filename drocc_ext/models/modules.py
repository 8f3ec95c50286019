"""What the package does with anyone's module: unwrap it, read its logits."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from drocc_ext._checks import describe
from drocc_ext.models.modes import modules_of, stepping

_Model = TypeVar("_Model", bound=Callable[..., Tensor])
_Function = TypeVar("_Function", bound=Callable[..., Any])


def uses_batch_statistics(model: object) -> bool:
    """Say whether a BatchNorm layer takes its statistics from the batch.

    Args:
        model: The model, or a method of one, in the mode that it is in.

    Returns:
        Whether there is one.
    """
    return any(
        isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)
        for module in modules_of(model)
    )


def to_device(model: nn.Module, device: torch.device, channels_last: bool) -> nn.Module:
    """Move a model, if it is not there: another thread may train it where it is.

    Args:
        model: The model, changed in place.
        device: Where to.
        channels_last: Whether to bring it to that memory format too.

    Returns:
        The model.
    """
    tensors = [*model.parameters(), *model.buffers()]
    if not channels_last and all(tensor.device == device for tensor in tensors):
        return model
    with stepping(model):
        model = model.to(device)
        if channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model


def copied(model: nn.Module) -> nn.Module:
    """Copy a model, TorchScript's too, whose copied parameters torch leaves as results of a clone.

    Args:
        model: The model.

    Returns:
        The copy, whose parameters can be trained.
    """
    copy_of_it = copy.deepcopy(model)
    for parameter in copy_of_it.parameters():
        if not parameter.is_leaf:
            parameter.detach_().requires_grad_()
    return copy_of_it


class _Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notices the first operator that draws random numbers, and keeps it from drawing."""

    noticed = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.noticed = True
            raise RuntimeError("the model draws random numbers")
        return func(*args, **(kwargs or {}))


def draws_numbers(model: nn.Module, rows: Tensor) -> bool:
    """Say whether a forward in training mode draws random numbers of torch's; none are drawn.

    Args:
        model: The model; a copy is asked.
        rows: A batch that it takes.

    Returns:
        Whether it does; also where that cannot be told, as it fails.
    """
    mode = _Draws()  # type: ignore[no-untyped-call]
    try:
        with mode, torch.no_grad():
            copied(model).train()(rows)
    except Exception:  # a model of any class runs here
        return True
    return mode.noticed


def may_draw(model: nn.Module, rows: Tensor) -> bool:
    """Say whether a training may draw random numbers of torch's: code of one's own may begin later.

    Args:
        model: The model.
        rows: A batch that it takes.

    Returns:
        False where all modules are torch's, without hooks, and a forward draws nothing.
    """
    for module in model.modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks)
        if not type(module).__module__.startswith("torch.nn.") or "forward" in vars(module):
            return True
        if any(hooks):
            return True
    return draws_numbers(model, rows)


class keeping_gradients:
    """Have gradients on or off behind what fails as before it.

    An interrupt that strikes as torch enters or leaves `no_grad` would leave them off for good.
    """

    def __enter__(self) -> None:
        """Take note of how it is."""
        self.enabled: bool = torch.is_grad_enabled()

    def __exit__(self, kind: object, *error: object) -> None:
        """Make it so again."""
        if kind is not None:
            torch.set_grad_enabled(self.enabled)


@contextmanager
def fresh_casts(device_type: str) -> Iterator[None]:
    """Train in an `autocast` of the caller's without the casts of weights that it keeps.

    It keeps them until it ends: a step in it would see the weights that the first step saw.

    Args:
        device_type: Where the model is.

    Yields:
        Nothing.
    """
    if not torch.is_autocast_enabled(device_type):
        yield
        return
    dtype = torch.get_autocast_dtype(device_type)
    try:
        with torch.autocast(device_type, dtype=dtype, cache_enabled=False):
            yield
    finally:
        torch.clear_autocast_cache()  # what follows sees the trained weights


def bare(x: Tensor) -> Tensor:
    """Return rows of a library's class, such as images, as plain ones: those go their own ways.

    Args:
        x: Rows.

    Returns:
        Rows that share their memory; those of a class that computes otherwise, as they are.
    """
    plain = type(x).__torch_dispatch__ is Tensor.__torch_dispatch__
    return x.as_subclass(Tensor) if plain else x


def uncached(leaf: Tensor) -> Tensor:
    """Take what a model is called with at a leaf that is overwritten, or dead before long.

    Autocast keeps its casts of leaves that require gradients until it ends, whatever is written to
    them meanwhile. It keeps none of another tensor.

    Args:
        leaf: Where to differentiate.

    Returns:
        The leaf; in autocast a view of it, with gradients enabled.
    """
    casts = not leaf.is_meta and torch.is_autocast_enabled(leaf.device.type)
    return leaf.view_as(leaf) if casts else leaf


def unwrap(model: _Model) -> _Model:
    """Return the module inside `DistributedDataParallel` or `torch.compile`, any other as it is.

    A search has no use for either: the first prepares a reduction of parameter gradients, which a
    search never makes; the second is compiled for another kind of call.

    Args:
        model: A model, wrapped or not.

    Returns:
        The model without the wrappers.
    """
    while True:
        if isinstance(model, DistributedDataParallel):
            model = model.module
        elif (inner := uncompiled(model)) is not model:
            model = inner
        else:
            return model


def uncompiled(model: _Model) -> _Model:
    """Return the module that `torch.compile` was given, any other model as it is.

    Args:
        model: A model, compiled or not.

    Returns:
        The module; the compiled one where that has hooks, which the module would not run.
    """
    dynamo = sys.modules.get("torch._dynamo.eval_frame")  # where it is not loaded, none is compiled
    if dynamo is None or not isinstance(model, dynamo.OptimizedModule):
        return model
    hooks = (model._forward_hooks, model._forward_pre_hooks, model._backward_hooks)
    inner: _Model = model._orig_mod
    return model if any(hooks) or model._backward_pre_hooks else inner


def runs_by_itself(function: _Function, name: str) -> _Function:
    """Keep `torch.compile` out of a function that runs operators of its own.

    A trace of it would be the slow way: step by step, without the operators. Around it the graph
    breaks; with `fullgraph=True` torch's error gives the reason.

    Args:
        function: The function. `torch.compile` strips this from the very function it is given, so
            what users call is a function that calls this one.
        name: What users call it.

    Returns:
        The function, left alone by the compiler.
    """
    reason = (
        f"{name} runs all its steps in operators of its own, which no graph can "
        "hold: compile the network, or use fullgraph=False"
    )
    disabled: _Function = torch.compiler.disable(function, reason=reason)  # type: ignore[no-untyped-call]
    return disabled


def as_logits(output: Tensor, batch_size: int) -> Tensor:
    """Check a model's output and bring it to shape `[B]`.

    Args:
        output: What the model returned, floating point, `[B]` or `[B, 1]`.
        batch_size: Number of rows B that went in.

    Returns:
        The logits, `[B]`.

    Raises:
        TypeError: If output is not a floating-point tensor.
        ValueError: If output has another shape.
    """
    if not isinstance(output, Tensor) or not output.is_floating_point():
        raise TypeError(
            f"as_logits: the model's output must be a floating-point tensor, got {describe(output)}"
        )
    if output.shape not in ((batch_size,), (batch_size, 1)):
        raise ValueError(
            f"as_logits: the model's output must be one logit per row, shape ({batch_size},) or "
            f"({batch_size}, 1), got {tuple(output.shape)}"
        )
    return output.reshape(batch_size)


def full_precision(logits: Tensor) -> Tensor:
    """Bring half-precision logits to float32, where a cross-entropy is accurate.

    Args:
        logits: Any floating-point tensor.

    Returns:
        The tensor, in float32 if it was in a half type.
    """
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
