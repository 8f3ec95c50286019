"""Convolutions that take their BatchNorm into themselves, for the forwards of a search."""

from __future__ import annotations

import copy
import itertools

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _module_globals
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from drocc_ext.models.networks import CIFARLeNet, MNISTLeNet

__all__ = ["folded"]

_PAIRS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
}

# What calls its children as they are registered, and knows nothing of what is in them.
_CONTAINERS = (nn.Sequential, CIFARLeNet, MNISTLeNet)


def folded(model: nn.Module) -> nn.Module:
    """Fold each BatchNorm in eval mode into the convolution that comes just before it.

    That changes nothing but rounding, and saves a pass over a layer's values in each forward and
    backward. Only where a container's kind proves which module follows which, in float32 and
    float64, outside of autocast, and without hooks.

    Args:
        model: The model; it stays as it is.

    Returns:
        A copy that shares all other modules and parameters, of use until they change; the model
        itself where there is nothing to fold.
    """
    parameter = next(model.parameters(), None)
    if (
        parameter is None
        or parameter.is_meta
        or torch.compiler.is_compiling()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.is_autocast_enabled(parameter.device.type)
        or _module_globals._has_any_global_hook()  # type: ignore[no-untyped-call]
    ):
        return model
    with torch.no_grad():
        return _fold(model)


def _fold(model: nn.Module) -> nn.Module:
    if type(model) not in _CONTAINERS or not _is_bare(model):
        return model
    children = dict(model._modules)
    names = list(children)
    if type(model) is nn.Sequential:
        for name, following in itertools.pairwise(names):
            conv, norm = children[name], children[following]
            if isinstance(conv, _ConvNd) and isinstance(norm, _BatchNorm) and _fits(conv, norm):
                children[name], children[following] = _fuse(conv, norm), nn.Identity()
    children = {name: None if c is None else _fold(c) for name, c in children.items()}
    if all(children[name] is model._modules[name] for name in names):
        return model
    clone = copy.copy(model)
    clone._modules = children
    return clone


def _fits(conv: _ConvNd, norm: _BatchNorm) -> bool:
    weight = conv.weight
    return (
        _PAIRS.get(type(conv)) is type(norm)
        and not norm.training
        and norm.running_mean is not None
        and norm.num_features == conv.out_channels
        and weight.dtype in (torch.float32, torch.float64)
        and norm.running_mean.dtype is weight.dtype
        and _is_bare(conv)
        and _is_bare(norm)
        and all(
            held is None or type(held) in (Tensor, nn.Parameter)
            for module in (conv, norm)
            for held in (*module._parameters.values(), *module._buffers.values())
        )
    )


def _fuse(conv: _ConvNd, norm: _BatchNorm) -> nn.Module:
    assert norm.running_mean is not None and norm.running_var is not None  # `_fits` has seen to it
    scale = torch.rsqrt(norm.running_var + norm.eps)
    shift = -norm.running_mean if conv.bias is None else conv.bias - norm.running_mean
    if norm.affine:
        scale = scale * norm.weight
    shift = shift * scale
    if norm.affine:
        shift = shift + norm.bias
    clone = copy.copy(conv)
    shape = (-1, *[1] * (conv.weight.dim() - 1))
    clone._parameters = {"weight": _frozen(conv.weight * scale.view(shape)), "bias": _frozen(shift)}
    return clone


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def _is_bare(module: nn.Module) -> bool:
    """Say whether calling a module is calling its class's forward with its own parameters."""
    own = module.__dict__
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    tensors = {"weight", "bias"} if isinstance(module, _ConvNd | _BatchNorm) else set()
    return (
        not {"forward", "weight", "bias"} & own.keys()
        and not any(own.get(name) for name in hooks)
        and set(module._parameters) <= tensors
    )
