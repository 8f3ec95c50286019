"""Multilayer perceptrons: the search in one operator, and when to use it.

On a GPU there is another for linear - ReLU - linear in the l2 metric. Its search goes through the
hidden units' values; what it has computed there is what the forward of clean and adversarial rows
would compute again.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from drocc_ext.search.config import SearchConfig
from drocc_ext.search.mlp.loss import HiddenLosses
from drocc_ext.search.mlp.match import HiddenLayers, MLPLayers, as_hidden_layers
from drocc_ext.search.mlp.matmul import linear

__all__ = [
    "hidden_search",
    "is_compatible",
    "joint_losses",
    "mlp_search",
    "pays",
    "search_units",
]

# Parts of a batch of fewer rows would leave processors without work.
_LEAST_ROWS = 4096

# A Gram matrix of so few multiplications is made in no time; one of more units fills the memory.
_CHEAP_GRAM, _MOST_UNITS = 100_000_000, 4096

# Weights of this many and more elements do not stay in the second-level cache.
_MOST_WEIGHTS = 600_000

# Weights whose packing costs next to nothing; that a row and step pays for; and that are too many.
_FEW_WEIGHTS, _WEIGHTS_A_STEP, _MOST_PACKED = 200_000, 4000, 3_000_000

# Weights on a GPU, in bytes: that a block holds; and that it reads at every step, and all blocks.
_HELD_BYTES, _READ_BYTES, _READ_BYTES_OF_ALL = 200_000, 1_600_000, 800_000_000


def is_compatible(layers: HiddenLayers | MLPLayers, x: Tensor) -> bool:
    """Say whether rows can be searched among the units of a layer.

    Args:
        layers: The network.
        x: Rows, any tensor.

    Returns:
        Whether x is `[B, D]` in the layers' type and on their device.
    """
    weight = layers.weights[0] if isinstance(layers, MLPLayers) else layers.weight
    like = (
        type(x) in (Tensor, nn.Parameter) and x.dtype is weight.dtype and x.device == weight.device
    )
    return like and x.dim() == 2 and x.shape[1] == weight.shape[1]


def mlp_search(
    layers: MLPLayers, x: Tensor, h: Tensor, sigma: Tensor | None, config: SearchConfig
) -> Tensor:
    """Run all ascent steps of Algorithm 1 or 2 from a given start, in one operator.

    The iterates are those of autograd: the same in exact arithmetic, to about 1e-6 (relative) in
    float32 except for rows in which rounding switches a unit. Nothing here has gradients.

    Args:
        layers: The network.
        x: Rows `[B, D]` to search around, dtype and device of the layers.
        h: Where the search starts, `[B, D]`, contiguous, same dtype.
        sigma: Weights of the Mahalanobis metric, `[D]` or `[B, D]`; None: the l2 shell.
        config: How to search.

    Returns:
        `x + h` where the search ended, `[B, D]`, in the memory of h.

    Raises:
        ValueError, RuntimeError: For arguments that do not fit, from the operator.
    """
    one = None if x.is_cpu or sigma is not None else as_hidden_layers(layers)
    if one is not None:
        return hidden_search(one, x, h, config)
    with torch.no_grad():
        search_units(layers, x, h, sigma, config)
        return h.add_(x)


def search_units(
    layers: MLPLayers, x: Tensor, h: Tensor, sigma: Tensor | None, config: SearchConfig
) -> tuple[Tensor, Tensor]:
    """Run all ascent steps in place of h; give the first layer's values at x and at `x + h`."""
    radius = config.radius
    units: tuple[Tensor, Tensor] = torch.ops.drocc._mlp_search(
        h,
        x,
        layers.weights,
        layers.biases,
        layers.negative_slopes,
        layers.output,
        sigma,
        float(config.step_size),
        config.num_steps,
        config.project_every,
        1.0 if isinstance(radius, Tensor) else float(radius),
        radius.to(h.dtype) if isinstance(radius, Tensor) else None,
        float(config.gamma),
        config.grid_points if config.solver == "grid" else 0,
        config.project_last,
    )
    return units


def pays(layers: MLPLayers, rows: int, steps: int, *, with_sigma: bool = False) -> bool:
    """Say whether the operator is known to be no slower than autograd.

    Many units over many inputs are left to the matrix products of torch. On the CPU the weights,
    the first layer's counted by its Gram matrix where that is smaller, must fit the cache. To pack
    more than 200,000 of them takes a row and step for each 4000 to be worth its while, and from 3
    million on too much memory (measured by `benchmarks/training/methods.py`).

    On a GPU, where linear - ReLU - linear is searched among its units, the Gram matrix of these,
    H x H x D multiplications, has to be worth its while: it replaces about 3 H D multiplications
    for each row and step. The other networks' weights either fit a block's shared memory, 200 kB,
    or are read from the caches at every step for each eight rows: up to 1.6 MB, and 800 MB for all
    rows, that takes less time than the launches that autograd needs (predicted in
    docs/kernels-cuda.md, not measured).

    Args:
        layers: The network.
        rows: Rows to search around.
        steps: Steps of the search.
        with_sigma: Whether the metric is Mahalanobis's.

    Returns:
        Whether to use it.
    """
    first = layers.weights[0]
    units, inputs = first.shape
    others = sum(weight.numel() for weight in layers.weights[1:])
    if not first.is_cpu:
        if not with_sigma and as_hidden_layers(layers) is not None:
            is_cheap = units * units * inputs <= _CHEAP_GRAM or units <= 3 * rows * steps
            return is_cheap and units <= _MOST_UNITS
        size = (inputs * units + others) * first.element_size()
        return size <= _HELD_BYTES or (size <= _READ_BYTES and size * rows <= _READ_BYTES_OF_ALL)
    if min(inputs, units) * units + others > _MOST_WEIGHTS:
        return False
    packed = inputs * units + others
    return packed <= _FEW_WEIGHTS or _WEIGHTS_A_STEP * rows * steps >= packed <= _MOST_PACKED


def hidden_search(layers: HiddenLayers, x: Tensor, h: Tensor, config: SearchConfig) -> Tensor:
    """Run all ascent steps of Algorithm 1 from a given start, on a GPU.

    The iterates are those of `h += step_size * g / ||g||`, g the gradient of the logit at `x + h`,
    with the projection onto `radius <= ||h|| <= gamma * radius` after every `project_every`-th
    step: the same in exact arithmetic, to about 1e-6 (relative) in float32 but for rows in which
    rounding switches a unit. Rows without a gradient do not ascend. Nothing here has gradients.

    Args:
        layers: The network.
        x: Rows `[B, D]` to search around, dtype and device of the layers.
        h: Where the search starts, `[B, D]`, contiguous, same dtype.
        config: How to search.

    Returns:
        `x + h` where the search ended, `[B, D]`, in the memory of h.

    Raises:
        ValueError, RuntimeError: For arguments that do not fit, from the operator.
    """
    with torch.no_grad():
        gram = linear(layers.weight, layers.weight)
        # In parts, because buffers [B, H] would be the peak of a training step's memory.
        part = max(_LEAST_ROWS, -(-x.shape[0] // 4))
        for begin in range(0, x.shape[0], part):
            rows = slice(begin, begin + part)
            clean = linear(x[rows], layers.weight, layers.bias)
            end = _search(layers, gram, h[rows], clean, config.of_rows(rows))
            _finish(layers, x[rows], h[rows], end)
        return h


def joint_losses(
    layers: HiddenLayers,
    x: Tensor,
    is_normal: Tensor | None,
    h: Tensor,
    config: SearchConfig,
) -> tuple[Tensor, Tensor]:
    """Search around the normal rows, and compute the losses of all rows and of what was found.

    Args:
        layers: The network.
        x: Rows `[B, D]`, dtype and device of the layers, without gradients.
        is_normal: Mask `[B]` of the rows to search around; None: all.
        h: Where the search starts, `[M, D]` for M such rows, contiguous; used up.
        config: How to search, a radius tensor `[M]`.

    Returns:
        The mean cross-entropies of all rows at their labels and of what was found at the anomalous
        label, 0-dimensional, with gradients for the network's parameters, of any order.
    """
    weight = layers.weight
    with torch.no_grad():
        gram = linear(weight, weight)
        units = linear(x, weight, layers.bias)
        clean = units if is_normal is None else units[is_normal]
        end = _search(layers, gram, h, clean, config)
        found = end.image.add_(clean)
        factored = weight.shape[1] >= weight.shape[0]
        if not factored:  # the points are smaller than their factors
            _finish(layers, x if is_normal is None else x[is_normal], h, end)
    held = (layers.first.weight, layers.first.bias, layers.last.weight, layers.last.bias)
    losses: tuple[Tensor, Tensor] = HiddenLosses.apply(  # type: ignore[no-untyped-call]
        *(None if t is None else t.view_as(t) for t in held),  # as in `mlp_losses`
        x,
        is_normal,
        units,
        found,
        h,
        end.scale if factored else None,
        end.coefficients if factored else None,
    )
    return losses


class _End(NamedTuple):
    """Where a search ended: at `scale * (h + coefficients @ weight)`, whose hidden image is given.

    Attributes:
        image: `[B, H]`.
        scale: `[B]`.
        coefficients: `[B, H]`.
    """

    image: Tensor
    scale: Tensor
    coefficients: Tensor


def _search(
    layers: HiddenLayers, gram: Tensor, h: Tensor, clean: Tensor, config: SearchConfig
) -> _End:
    radius = config.radius
    image = linear(h, layers.weight)
    scale, coefficients = torch.ops.drocc._hidden_search(
        h,
        image,
        clean,
        layers.weight,
        gram,
        layers.output_weight,
        float(config.step_size),
        config.num_steps,
        config.project_every,
        1.0 if isinstance(radius, Tensor) else float(radius),
        radius.to(h.dtype) if isinstance(radius, Tensor) else None,
        float(config.gamma),
        config.project_last,
    )
    return _End(image, scale, coefficients)


def _finish(layers: HiddenLayers, x: Tensor, h: Tensor, end: _End) -> None:
    """Turn h into x plus where the search ended."""
    h.add_(linear(end.coefficients, layers.weight.T))
    torch.addcmul(x, h, end.scale[:, None], out=h)
