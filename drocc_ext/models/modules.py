"""What the package does with anyone's module: freeze it, unwrap it, read its logits."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from drocc_ext._checks import describe

_Model = TypeVar("_Model", bound=Callable[..., Tensor])
_Function = TypeVar("_Function", bound=Callable[..., Any])


_RECURRENT = (nn.RNN.forward, nn.LSTM.forward, nn.GRU.forward)


@dataclass
class _Held:
    """What a frozen module gets back, and who still holds it: the thread of each holder."""

    module: nn.Module
    training: bool
    dropout: float | None
    holders: dict[object, int] = field(default_factory=dict)


# Modules that are frozen now, by id: the flags belong to the module, so all threads share them.
_held: dict[int, _Held] = {}
# What could not be given back where it was collected, as somebody was at work.
_abandoned: list[tuple[Sequence[nn.Module], object]] = []
_lock = threading.Lock()


def _after_fork() -> None:
    """Give a forked process, which has one thread only, a lock, and what others had frozen back."""
    global _lock
    _lock = threading.Lock()
    here = threading.get_ident()
    for held in list(_held.values()):
        for holder, thread in list(held.holders.items()):
            if thread != here:
                _give_back([held.module], holder)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class frozen:
    """Run a model as at inference time, still able to differentiate through it.

    Every module is in eval mode, except torch's recurrent layers: cuDNN refuses their backward pass
    in eval mode, so these are in training mode with their dropout at 0, which computes the same. A
    layer of a class with its own forward, which may ask for the mode, is in eval mode too: on a GPU
    its backward needs `torch.backends.cudnn.flags(enabled=False)`. The flags are set directly: a
    module's own `train()` does not run.

    Several threads may freeze one model, or models that share modules: a module stays frozen until
    the last of them is done, and then gets back the mode and dropout that it had before the first.
    A thread that trains the model meanwhile would train it frozen.

    An interrupt may come at any place: to give back twice does no harm, so that it is done again.
    """

    _modules: Sequence[nn.Module] = ()

    def __init__(self, model: Callable[..., object]) -> None:
        """Take note of the modules.

        Args:
            model: The module to freeze; a plain function is left alone.
        """
        self._holder = object()  # not this context, which would then never be collected
        self._modules = list(model.modules()) if isinstance(model, nn.Module) else []

    def __enter__(self) -> None:
        """Freeze them."""
        try:
            with _lock:
                _settle()
                for module in self._modules:
                    _take(module, self._holder)
        except BaseException:
            self._end()
            raise

    def __exit__(self, *error: object) -> None:
        """Give them back what they had, where nobody else holds them."""
        self._end()

    def __del__(self) -> None:
        """Do so where an interrupt came before `__exit__` could begin."""
        if not self._modules:
            return
        if _lock.acquire(blocking=False):
            try:
                _give_back(self._modules, self._holder)
            finally:
                _lock.release()
        else:  # perhaps by this very thread
            _abandoned.append((self._modules, self._holder))

    def _end(self) -> None:
        try:
            self._give_back()
        except BaseException:
            self._give_back()
            raise

    def _give_back(self) -> None:
        with _lock:
            _give_back(self._modules, self._holder)
            _settle()
        self._modules = ()


def _take(module: nn.Module, holder: object) -> None:
    held = _held.get(id(module))
    if held is None:
        dropout = module.dropout if isinstance(module, nn.RNNBase) else None
        held = _held[id(module)] = _Held(module, module.training, dropout)
    held.holders[holder] = threading.get_ident()
    # Parametrizations make classes that inherit the forward.
    usual = "forward" not in vars(module) and type(module).forward in _RECURRENT
    module.training = usual
    if isinstance(module, nn.RNNBase):
        module.dropout = 0.0


def _give_back(modules: Sequence[nn.Module], holder: object) -> None:
    for module in modules:
        held = _held.get(id(module))
        if held is None:
            continue
        held.holders.pop(holder, None)
        if held.holders:
            continue
        module.training = held.training
        if isinstance(module, nn.RNNBase) and held.dropout is not None:
            module.dropout = held.dropout
        _held.pop(id(module), None)


def _settle() -> None:
    while _abandoned:
        _give_back(*_abandoned[-1])
        _abandoned.pop()


def uses_batch_statistics(model: nn.Module) -> bool:
    """Say whether a BatchNorm layer takes its statistics from the batch.

    Args:
        model: The model in the mode that it is in.

    Returns:
        Whether there is one.
    """
    return any(
        isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)
        for module in model.modules()
    )


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
