"""The published searches: their order of operations and of random numbers, without their faults."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from drocc_ext.models.modules import as_logits, full_precision, uncached, unwrap
from drocc_ext.ops import (
    influence,
    normalized_ascent_,
    project_l2_shell_,
    project_mahalanobis_shell_,
)
from drocc_ext.search.config import SearchConfig
from drocc_ext.search.mlp.joint import has_losses, mlp_losses
from drocc_ext.search.mlp.match import MLPLayers, as_hidden_layers, find_mlp
from drocc_ext.search.mlp.search import (
    is_compatible,
    joint_losses,
    mlp_search,
    pays,
)
from drocc_ext.search.noise import gaussian
from drocc_ext.search.recurrent import input_gradients_alone

_L2_STEPS_PER_PROJECTION = 10
_METRIC_STEPS_PER_PROJECTION = 5

# Least weight of a row relative to the largest. Small enough to change no other row's gradient, and
# large enough for the row's own direction, which the weight cancels from, to stay exact.
_LEAST_WEIGHT = 1e-12


def start_near(x: Tensor) -> Tensor:
    """Draw the start of a search, `x + N(0, I)`, from torch's global generator on the CPU.

    Args:
        x: Rows, `[B, *]`.

    Returns:
        The start, shape, dtype, device and layout of x.
    """
    return torch.add(x, _noise(x.shape, x), out=torch.empty_like(x))


def l2_search(
    model: nn.Module,
    x: Tensor,
    *,
    radius: float,
    gamma: float,
    step_size: float,
    num_steps: int,
    method: str = "auto",
) -> Tensor:
    """Search with a projection onto the l2 shell after every tenth step, and no other.

    Args:
        model: Maps `[B, *]` to logits `[B]` or `[B, 1]`; called in the mode that it is in.
        x: Rows, `[B, *]`, not empty, in the model's dtype and on its device.
        radius: Inner radius of the shell in units of x.
        gamma: Outer radius divided by inner radius.
        step_size: Length of a step in units of x.
        num_steps: Number of steps; with 0 the start is projected.
        method: "autograd": a forward and a backward of the model for each step. "auto": all steps
            in one operator where the model is a multilayer perceptron (`find_mlp`).

    Returns:
        The adversarial points, shape of x, without gradient history.
    """
    layers = mlp_layers(model, x, num_steps) if method == "auto" and num_steps > 0 else None
    if layers is not None:
        config = _config(radius, gamma, step_size, num_steps)
        return mlp_search(layers, x, _noise(x.shape, x), None, config)
    return _search(
        model,
        x,
        lambda h: project_l2_shell_(h, radius, gamma),
        step_size=step_size,
        num_steps=num_steps,
        project_every=_L2_STEPS_PER_PROJECTION,
    )


def mlp_layers(model: nn.Module, x: Tensor, num_steps: int) -> MLPLayers | None:
    """Find the layers of a multilayer perceptron, where its operator is known to be faster.

    Args:
        model: As in `l2_search`.
        x: Rows, any tensor.
        num_steps: Steps of the search.

    Returns:
        The layers; None where the network is of another form or the rows do not fit.
    """
    layers = find_mlp(plain_module(model))
    if layers is None or not is_compatible(layers, x):
        return None
    return layers if pays(layers, x.shape[0], num_steps) else None


def l2_search_losses(
    layers: MLPLayers,
    x: Tensor,
    is_normal: Tensor | None,
    *,
    radius: float,
    gamma: float,
    step_size: float,
    num_steps: int,
) -> tuple[Tensor, Tensor]:
    """Compute the losses of all rows and of what `l2_search` finds around the normal ones.

    Args:
        layers: The network.
        x: Rows `[B, D]`.
        is_normal: Mask `[B]` of the rows to search around, M >= 1 of them; None: all.
        radius: As in `l2_search`.
        gamma: Likewise.
        step_size: Likewise.
        num_steps: Likewise, >= 1.

    Returns:
        The mean cross-entropies at the rows' labels and at the anomalous label, 0-dimensional,
        with gradients for the network's parameters.
    """
    count = x.shape[0] if is_normal is None else int(is_normal.sum())
    h = _noise((count, x.shape[1]), x)
    config = _config(radius, gamma, step_size, num_steps)
    one = None if x.is_cpu else as_hidden_layers(layers)
    if one is None:
        return mlp_losses(layers, x, is_normal, h, config)
    return joint_losses(one, x, is_normal, h, config)


def has_joint_losses(layers: MLPLayers, x: Tensor) -> bool:
    """Say whether `l2_search_losses` serves a network and rows.

    Args:
        layers: The network.
        x: Rows `[B, D]`.

    Returns:
        Whether it does.
    """
    return has_losses(layers, x) if x.is_cpu else as_hidden_layers(layers) is not None


def _noise(shape: Sequence[int], like: Tensor) -> Tensor:
    drawn = gaussian(shape, dtype=torch.get_default_dtype(), device=torch.device("cpu"))
    return drawn.to(like.device, like.dtype)


def _config(radius: float, gamma: float, step_size: float, num_steps: int) -> SearchConfig:
    return SearchConfig(
        radius=radius,
        gamma=gamma,
        step_size=step_size,
        num_steps=num_steps,
        project_every=_L2_STEPS_PER_PROJECTION,
        project_last=False,
    )


def metric_search(
    model: nn.Module,
    x: Tensor,
    gradients: Tensor,
    *,
    radius: float,
    gamma: float,
    step_size: float,
    num_steps: int,
) -> Tensor:
    """Search with a projection onto the Mahalanobis shell after every fifth step, and no other.

    Args:
        model: As in `l2_search`.
        x: Rows, `[B, *]`, not empty.
        gradients: `[B, *]`, the gradient of the loss at x; a factor of a row does not matter. The
            metric is its `influence`.
        radius: Inner radius in units of the metric.
        gamma: Outer radius divided by inner radius.
        step_size: Length of a step in units of x.
        num_steps: Number of steps; with 0 the start is projected.

    Returns:
        The adversarial points, shape of x, without gradient history.
    """
    rows = x.shape[0]
    sigma = influence(gradients.detach().to(x).reshape(rows, -1))
    return _search(
        model,
        x,
        lambda h: project_mahalanobis_shell_(h.reshape(rows, -1), sigma, radius, gamma),
        step_size=step_size,
        num_steps=num_steps,
        project_every=_METRIC_STEPS_PER_PROJECTION,
    )


def loss_gradient(model: nn.Module, x: Tensor, label: int) -> Tensor:
    """Differentiate the mean cross-entropy at one label, up to a factor of all rows and the sign.

    The gradient of row i's loss is that of its logit times a weight, 1 minus the probability of the
    label. Only the weights' ratios are used, so that none underflows, and where rows are
    independent they cancel from every direction. They do not where BatchNorm uses the statistics of
    the batch: another row's loss then depends on row i too.

    Args:
        model: As in `l2_search`.
        x: Rows `[B, *]`, a leaf that requires grad.
        label: 0 or 1.

    Returns:
        The gradient, shape of x.
    """
    with torch.enable_grad():
        logits = as_logits(model(uncached(x)), x.shape[0])
    values = full_precision(logits.detach())
    weights = F.logsigmoid(values if label == 0 else -values)
    weights.sub_(weights.max()).exp_()
    least = max(_LEAST_WEIGHT, torch.finfo(logits.dtype).tiny)
    (grad,) = torch.autograd.grad(logits, x, weights.clamp_(min=least).to(logits.dtype))
    return grad


def plain_module(model: nn.Module) -> nn.Module:
    """Return the module in a wrapper that only passes calls on.

    Args:
        model: A module, in `DistributedDataParallel`, in `DataParallel` without devices, or bare.

    Returns:
        The module.
    """
    model = unwrap(model)
    return model.module if type(model) is nn.DataParallel and not model.device_ids else model


def _search(
    model: nn.Module,
    x: Tensor,
    project: Callable[[Tensor], Tensor],
    *,
    step_size: float,
    num_steps: int,
    project_every: int,
) -> Tensor:
    model = unwrap(model)
    with torch.no_grad(), input_gradients_alone(model):
        x_adv = start_near(x).requires_grad_()
        for step in range(1, num_steps + 1):
            normalized_ascent_(x_adv, loss_gradient(model, x_adv, 0), step_size)
            if step % project_every == 0:
                _project(x_adv, x, project)
        if num_steps == 0:
            _project(x_adv, x, project)
        return x_adv.detach()


def _project(x_adv: Tensor, x: Tensor, project: Callable[[Tensor], Tensor]) -> None:
    h = x_adv.detach() - x
    torch.add(x, project(h).view(x.shape), out=x_adv)
