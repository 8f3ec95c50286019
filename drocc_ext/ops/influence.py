"""`influence`: how strongly each coordinate moves the output. The shortest operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from drocc_ext import _backend
from drocc_ext.ops import _checks
from drocc_ext.ops._registration import (
    refuse_second_order,
    register_autocast,
    register_autograd,
    register_fake,
    register_fallback,
    register_vmap,
)
from drocc_ext.reference import influence as reference


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
    if _backend.is_eager("influence", grad):
        return reference.influence(*_checks.autocast(grad))
    result: Tensor = torch.ops.drocc.influence(grad)
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


def _backward(ctx: Any, grad_out: Tensor) -> Tensor:
    result: Tensor = torch.ops.drocc._influence_backward(grad_out, *ctx.saved_tensors)
    return result


register_fake("influence", _fake)
register_fake("_influence_backward", _fake_backward)
register_fallback("influence", reference.influence)
register_fallback("_influence_backward", _eager_backward)
register_autograd("influence", _backward, _setup)
refuse_second_order("_influence_backward")
register_autocast("influence")
register_vmap("influence")
register_vmap("_influence_backward")
