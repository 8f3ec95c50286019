"""`influence`: how strongly each coordinate moves the output. The shortest operator."""

from __future__ import annotations

from torch import Tensor

from drocc_ext.ops._call import call


def influence(grad: Tensor) -> Tensor:
    """Influence of every coordinate, the diagonal Sigma of DROCC-LF (section 4 of the paper).

    `sigma_j = |grad_j| / mean_k |grad_k|`, row by row.

    Args:
        grad: [B, *] float32, float64, float16 or bfloat16, the gradient of the output.

    Returns:
        [B, *], non-negative with mean 1 in every row, dtype (float32 under autocast)
        and device of `grad`.

    Differentiable with respect to grad (once; any number of times with the eager backend).
    A zero row gives ones, with gradient 0. An empty batch gives an empty result. NaN or infinity in
    a row makes that row NaN and touches no other.

    Raises:
        TypeError: If grad is not a floating-point tensor.
        ValueError: If grad has no feature dimension.
    """
    return call("influence", grad)
