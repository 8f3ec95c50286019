"""Matrix products of single precision on the CPU, by whichever of torch's libraries is faster.

The BLAS behind `torch.mm` does not use AVX-512 on processors of every maker; oneDNN, which torch
brings along for convolutions, does.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["linear"]

# Multiplications from which on oneDNN's longer way to the first of them pays (measured).
_LEAST_SIZE = 4_000_000


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute `x @ weight.T + bias` like `torch.nn.functional.linear`, without gradients.

    Args:
        x: `[B, D]`, with any strides.
        weight: `[H, D]`, same dtype and device, with any strides.
        bias: `[H]`, or None.

    Returns:
        `[B, H]`.
    """
    if (
        x.dtype is torch.float32
        and x.is_cpu
        and x.shape[0] * x.shape[1] * weight.shape[0] >= _LEAST_SIZE
        and _has_onednn()
    ):
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return product
    return F.linear(x, weight, bias)


def _has_onednn() -> bool:
    return (
        torch.backends.cpu.get_cpu_capability() == "AVX512"
        and bool(torch.backends.mkldnn.enabled)
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
