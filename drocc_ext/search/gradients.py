"""Gradients for the search: by autograd, compiled, or behind a first linear layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from types import NoneType

import torch
from torch import Tensor, nn
from torch.func import functional_call

from drocc_ext._checks import AS_ONE_BATCH, is_mapped
from drocc_ext.models.modules import as_logits, uncached
from drocc_ext.search.config import SearchConfig
from drocc_ext.search.mlp.eager_search import hidden_search as hidden_loop
from drocc_ext.search.mlp.match import find_mlp, is_plain
from drocc_ext.search.mlp.search import is_compatible, mlp_search, pays

# From this ratio of inputs to hidden units on the loop in torch operators is faster than
# differentiating the whole network (measured on a CPU; on other devices it waits for the device).
_PAYS_FROM = 4
# Multiplications of the layer in a step; below, the loop's own operators take longer (measured on
# one thread: 2.1 of autograd's time at 0.3 million, 1.0 at 13 to 17, .9 at 26, .5 at 100).
_LEAST_WORK = 25_000_000


def search_by_operator(
    caller: str,
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    h: Tensor,
    sigma: Tensor | None,
    config: SearchConfig,
) -> Tensor | None:
    """Run the steps of a search without calling the model, where it is known what it does.

    Args:
        caller: Name to begin an error with.
        model: The network, frozen or without anything to freeze.
        x: Rows `[B, D]` to search around.
        h: Where the search starts, `[B, D]`, contiguous; used up unless None is returned.
        sigma: Weights of the Mahalanobis metric, `[D]` or `[B, D]`; None: the l2 shell.
        config: How to search. With method "auto" only where it is known to be faster.

    Returns:
        `x + h` where the search ended; None where the model or x does not allow it.
    """
    if x.dim() != 2 or not isinstance(model, nn.Module):
        return None
    layers = find_mlp(model)
    if layers is not None and is_compatible(layers, x):
        with_sigma = sigma is not None
        if config.method == "auto" and not pays(
            layers, x.shape[0], config.num_steps, with_sigma=with_sigma
        ):
            return None
        return mlp_search(layers, x, h, sigma, config)
    return None if sigma is not None else _search_behind_first_layer(caller, model, x, h, config)


def _search_behind_first_layer(
    caller: str, model: nn.Module, x: Tensor, h: Tensor, config: SearchConfig
) -> Tensor | None:
    """Search among the units of a first linear layer, whatever network follows it."""
    if type(model) is not nn.Sequential or len(model) < 2:  # a subclass may have its own forward
        return None
    first = model[0]
    if type(first) is not nn.Linear or not (is_plain(model) and is_plain(first)):
        return None
    held = (first.weight, first.bias)
    if not all(type(tensor) in (nn.Parameter, Tensor, NoneType) for tensor in held):
        return None
    if not _is_compatible(x, first.weight) or torch.is_autocast_enabled(x.device.type):
        return None
    if config.method == "auto" and not (x.is_cpu and _pays(first, len(x))):
        return None
    weight, bias = first.weight.detach(), None if first.bias is None else first.bias.detach()
    rest = model[1:]

    def behind(z: Tensor) -> Tensor:
        output: Tensor = rest(z.clone())  # what follows may work in place, in a leaf it cannot
        return output

    def gradient(z: Tensor) -> Tensor:
        return input_gradient(caller, behind, z.requires_grad_())

    return hidden_loop(weight, bias, gradient, x, h, config)


def _pays(first: nn.Linear, rows: int) -> bool:
    work = first.in_features * first.out_features * rows
    return first.in_features >= _PAYS_FROM * first.out_features and work >= _LEAST_WORK


def _is_compatible(x: Tensor, weight: Tensor) -> bool:
    return (
        type(x) in (Tensor, nn.Parameter)
        and not x.is_meta
        and x.dtype is weight.dtype
        and x.device == weight.device
        and x.shape[1] == weight.shape[1]
        and x.dtype in (torch.float32, torch.float64)
    )


@lru_cache(maxsize=4)
def compiled_gradient(model: nn.Module, *, graphs: bool) -> Callable[[Tensor], Tensor]:
    """Compile the gradient of the sum of a model's logits with respect to its input.

    Parameters get no gradients, which a compiled forward and backward would compute too. Batches of
    other sizes are served by one more compilation, in which the size is a symbol. The latest few
    models are kept alive with what was compiled for them.

    Args:
        model: Module `[B, *]` -> logits `[B]` or `[B, 1]`.
        graphs: Whether to replay CUDA graphs, for x on such a device.

    Returns:
        Maps x `[B, *]` to the gradient, `[B, *]`, with graphs in memory that the next call reuses.
    """

    def total(x: Tensor, state: dict[str, Tensor]) -> Tensor:
        return as_logits(functional_call(model, state, (x,)), x.shape[0]).sum()

    gradient = torch.compile(torch.func.grad(total), mode="reduce-overhead" if graphs else None)

    def of(x: Tensor) -> Tensor:
        state = {name: tensor.detach() for name, tensor in model.state_dict(keep_vars=True).items()}
        result: Tensor = gradient(x.detach(), state)
        return result

    return of


def input_gradient(caller: str, model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Differentiate the sum of the logits with respect to the input; parameters get no gradients.

    Args:
        caller: Name to begin an error with.
        model: Maps `[B, *]` to logits `[B]` or `[B, 1]`, not wrapped for distribution.
        x: Rows, `[B, *]`, a leaf that requires gradients. Not in inference mode.

    Returns:
        The gradient, `[B, *]`. Nothing of its graph stays alive.

    Raises:
        TypeError: If the model's output is not a floating-point tensor, or one of `vmap`.
        ValueError: If it is not one logit per row or does not depend differentiably on x.
    """
    with torch.enable_grad():
        logits = as_logits(model(uncached(x)), x.shape[0])
        if is_mapped(logits):
            raise TypeError(f"{caller}: the model must be from outside of {AS_ONE_BATCH}")
        grad = None
        if logits.requires_grad:
            (grad,) = torch.autograd.grad(logits.sum(), x, allow_unused=True)
    if grad is None:
        raise ValueError(
            f"{caller}: the model's output must depend differentiably on its input, got an output "
            "without a gradient with respect to it"
        )
    return grad
