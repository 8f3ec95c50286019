"""`influence`: how strongly each coordinate moves the output. The shortest operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from drocc_ext.ops import _backend, _checks
from drocc_ext.ops._registration import (
    refuse_second_order,
    register_autocast,
    register_autograd,
    register_fake,
    register_fallback,
    register_vmap,
)
from drocc_ext.ops.eager import influence as reference


def influence(grad: Tensor) -> Tensor:
    """Influence of every coordinate, the diagonal Sigma of DROCC-LF (section 4 of the paper).

    `sigma_j = |grad_j| / mean_k |grad_k|`, row by row.

    Args:
        grad: [B, *] float32, float64, float16 or bfloat16, the gradient of the output.

    Returns:
        [B, *], non-negative with mean 1 in every row, dtype (float32 under autocast)
        and device of `grad`.

    Differentiable with respect to grad (once; any number of times with the eager backend).
    A zero row gives ones (with gradient 0), an empty batch an empty result, NaN or infinity a row
    of NaN.

    Raises:
        TypeError: If grad is not a floating-point tensor.
        ValueError: If grad has no feature dimension.
    """
    _checks.check_rows("influence", "grad", grad)
    kernels = _backend.kernels("influence", grad)
    if kernels is None:
        return reference.influence(*_checks.autocast(grad))
    result: Tensor = kernels.influence(grad)
    return result


def _fake(grad: Tensor) -> Tensor:
    _checks.check_rows("influence", "grad", grad)
    return torch.empty_like(grad)


def _fake_backward(grad_out: Tensor, grad: Tensor) -> Tensor:
    return torch.empty_like(grad, memory_format=torch.contiguous_format)


def _eager_backward(grad_out: Tensor, grad: Tensor) -> Tensor:
    return reference.influence_backward(grad_out, grad).contiguous()


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])


def _backward(ops: Any, ctx: Any, grad_out: Tensor) -> Tensor:
    result: Tensor = ops._influence_backward(grad_out, *ctx.saved_tensors)
    return result


def register(kernels: Callable[[str], Any] | None = None, namespace: str = "drocc") -> None:
    """Register everything the operator has besides its native kernels.

    Args:
        kernels: Gives the implementation of an operator by its name; the eager one if None.
        namespace: Where the operator stands.
    """
    for name, fake, fallback in (
        ("influence", _fake, reference.influence),
        ("_influence_backward", _fake_backward, _eager_backward),
    ):
        register_fake(name, fake, namespace)
        register_fallback(name, kernels(name) if kernels else fallback, namespace)
        register_vmap(name, namespace=namespace)
    register_autograd("influence", _backward, _setup, namespace)
    refuse_second_order("_influence_backward", namespace)
    register_autocast("influence", namespace)


register()
