"""Checks of plain arguments. Every message names caller, argument, rule and value."""

from __future__ import annotations

from numbers import Integral, Real

import torch
from torch import Tensor

# The operators have rules for `vmap`, what calls a model in between has none.
AS_ONE_BATCH = "torch.func.vmap, got some of it; one batch of all rows does the same"


def is_mapped(tensor: Tensor) -> bool:
    """Say whether a tensor is one of `vmap`, however many other transforms are around that.

    Args:
        tensor: The tensor.

    Returns:
        Whether it is.
    """
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            return True
        tensor = functorch.get_unwrapped(tensor)
    return False


def as_float(caller: str, name: str, value: object) -> float:
    """Return a real number (python's or numpy's, no bool) as float.

    Raises:
        TypeError: If it is none.
        ValueError: If it is too large.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{caller}: {name} must be a number, got {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{caller}: {name} must fit a float64, got an integer beyond it") from None


def as_int(caller: str, name: str, value: object, least: int) -> int:
    """Return an integer (python's or numpy's, no bool) of at least `least` as int.

    Raises:
        TypeError: If it is none.
        ValueError: If it is too small.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{caller}: {name} must be an integer, got {value!r}")
    if int(value) < least:
        raise ValueError(f"{caller}: {name} must be >= {least}, got {value}")
    return int(value)


def describe(value: object) -> str:
    """Say what a value is: the dtype of a tensor, the type of anything else."""
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def check_rows(caller: str, x: object) -> None:
    """Refuse what are no rows `[B, *]` to compute with.

    Raises:
        TypeError: If x is no dense floating-point tensor.
        ValueError: If it has no dimensions.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"{caller}: x must be a floating-point tensor, got {describe(x)}")
    if x.is_nested:
        raise TypeError(f"{caller}: x must be rows of one shape, got a nested tensor")
    if x.layout is not torch.strided:
        raise TypeError(f"{caller}: x must be dense, got {x.layout}; its to_dense() is")
    if is_mapped(x):
        raise TypeError(f"{caller}: x must be from outside of {AS_ONE_BATCH}")
    if x.dim() == 0:
        raise ValueError(f"{caller}: x must have a batch dimension, got a tensor of shape ()")
