"""What the package does with anyone's module: freeze it, unwrap it, read its logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from drocc_ext._checks import describe

_Model = TypeVar("_Model", bound=Callable[..., Tensor])


@contextmanager
def frozen(model: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Run a model as at inference time, still able to differentiate through it.

    Every module is in eval mode, except `nn.RNNBase`: cuDNN refuses the backward pass of a
    recurrent layer in eval mode, so these are in training mode with their dropout at 0, which
    computes the same. On exit each module gets back its own mode and dropout. The flags are set
    directly: a module's own `train()` does not run.

    Args:
        model: The module to freeze; a plain function is left alone.

    Yields:
        Nothing.
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [(module, module.training) for module in modules]
    dropouts = [(module, module.dropout) for module in modules if isinstance(module, nn.RNNBase)]
    try:
        for module in modules:
            module.training = isinstance(module, nn.RNNBase)
        for rnn, _ in dropouts:
            rnn.dropout = 0.0
        yield
    finally:
        for module, training in modes:
            module.training = training
        for rnn, dropout in dropouts:
            rnn.dropout = dropout


def unwrap(model: _Model) -> _Model:
    """Return the module inside a `DistributedDataParallel` wrapper, any other model as it is.

    The wrapper's forward prepares a reduction of parameter gradients, which a search never makes.

    Args:
        model: A model, wrapped or not.

    Returns:
        The model without the wrapper.
    """
    return model.module if isinstance(model, DistributedDataParallel) else model


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
