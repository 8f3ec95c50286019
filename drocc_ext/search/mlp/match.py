"""Which networks are multilayer perceptrons: linear layers with a ReLU between any two.

Their modules, the code of their forward and a symbolic trace of it decide, never the names of their
layers. What cannot be proven is left to autograd.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _module_globals
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from drocc_ext.models.networks import MLP
from drocc_ext.ops import _backend, _library
from drocc_ext.search.mlp.straight import decides_nothing, settings_of
from drocc_ext.search.mlp.trace import Chain, chain_of, is_faithful

__all__ = [
    "HiddenLayers",
    "MLPLayers",
    "as_hidden_layers",
    "find_hidden_layers",
    "find_mlp",
    "is_plain",
]

MOST_HIDDEN_LAYERS = 4


class MLPLayers(NamedTuple):
    """A network `f(x) = <output, a_L(W_L ... a_1(W_1 x + b_1) ... + b_L)> + constant`.

    Attributes:
        weights: W_1 to W_L, `[H_l, H_(l-1)]`, float32 or float64, on the CPU or a GPU, contiguous,
            without gradient history.
        biases: b_1 to b_L, `[H_l]`, or None.
        negative_slopes: Of each activation: 0 for ReLU, else LeakyReLU's.
        output: `[H_L]`, contiguous.
        linears: The linear layers, the last included.
        is_exact: Whether weights and biases are those of the layers. False where a BatchNorm layer
            was folded into them: a search can use them, a training cannot.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]
    negative_slopes: tuple[float, ...]
    output: Tensor
    linears: tuple[nn.Linear, ...]
    is_exact: bool


class HiddenLayers(NamedTuple):
    """A network `f(x) = <output_weight, relu(weight x + bias)> + constant`.

    Attributes:
        weight: `[H, D]`, contiguous, without gradient history.
        bias: `[H]`, zeros where the layer has none.
        output_weight: `[H]`, contiguous.
        first: The module with the first two.
        last: That with the third, and the constant.
    """

    weight: Tensor
    bias: Tensor
    output_weight: Tensor
    first: nn.Linear
    last: nn.Linear


def find_hidden_layers(model: object) -> HiddenLayers | None:
    """Find the layers of a network linear - ReLU - linear, if it is one; see `find_mlp`."""
    return as_hidden_layers(find_mlp(model))


def as_hidden_layers(layers: MLPLayers | None) -> HiddenLayers | None:
    """Give the layers of a network linear - ReLU - linear; None for any other."""
    if layers is None or len(layers.weights) != 1 or layers.negative_slopes != (0.0,):
        return None
    if not layers.is_exact:
        return None
    weight, bias = layers.weights[0], layers.biases[0]
    return HiddenLayers(
        weight,
        weight.new_zeros(weight.shape[0]) if bias is None else bias,
        layers.output,
        *layers.linears,
    )


def find_mlp(model: object) -> MLPLayers | None:
    """Find the layers of a multilayer perceptron, if a network is one.

    Recognized are `networks.MLP`, `nn.Sequential`, and modules of other classes whose forward
    decides nothing (`straight.decides_nothing`) and hands its one input through one to four hidden
    layers: `nn.Linear`, perhaps `nn.BatchNorm1d` in eval mode, and a ReLU or LeakyReLU (module,
    function or method). Reshapes that do nothing to `[B, D]` rows, `nn.Identity` and dropout that
    is switched off may stand between. A trace is made once for each module and mode, and compared
    with the module by values and gradients; the latest two are kept.

    Args:
        model: Anything; what is not recognized gives None.

    Returns:
        The weights as they are now, views of the parameters where those are contiguous. None where
        the network is of another form, is parametrized or has hooks, where it is not in float32 or
        float64 on one CPU or GPU throughout, and where the operators cannot or shall not run:
        without native kernels, with the eager or Triton backend, under autocast, `torch.compile`,
        `torch.func` or a mode that changes what torch functions mean.
    """
    if not isinstance(model, nn.Module):
        return None
    some = next(model.parameters(), None)
    if some is None or not (some.is_cpu or some.is_cuda) or not _operator_available(some):
        return None
    modules = dict(model.named_modules(remove_duplicate=False))
    # Both a cheap way out for large networks, and the reason why a trace below is quick.
    if len(modules) > _MOST_MODULES or not all(map(is_plain, modules.values())):
        return None
    chain = _chain(model, modules)
    if chain is None or not 1 <= len(chain.slopes) <= MOST_HIDDEN_LAYERS:
        return None
    return _layers(chain, modules)


_MOST_MODULES = 40

# Leaves that a chain may pass, with the forward that we know them by.
_LEAVES = (
    *(nn.Linear, nn.ReLU, nn.LeakyReLU, nn.BatchNorm1d, nn.Identity, nn.Dropout, nn.Flatten),
)
_CONTAINERS = (nn.Sequential, nn.ModuleList)
_FORWARDS: dict[type[nn.Module], object] = {
    cls: cls.forward for cls in (*_LEAVES, *_CONTAINERS, MLP)
}


@dataclass
class _Trace:
    key: tuple[object, ...]
    chain: Chain | None


_traces: WeakKeyDictionary[nn.Module, tuple[_Trace, ...]] = WeakKeyDictionary()


def _operator_available(tensor: Tensor) -> bool:
    return not (
        torch.compiler.is_compiling()
        or _library.native_error(tensor.device.type) is not None
        or not _backend.allows_native()
        or torch.is_autocast_enabled(tensor.device.type)
        or torch._C._functorch.peek_interpreter_stack() is not None
        or _is_watched()
        or torch._C._len_torch_dispatch_stack() > 0
        or _module_globals._has_any_global_hook()  # type: ignore[no-untyped-call]
    )


def _is_watched() -> bool:
    """Say whether a mode sees each call; a default device only says where new tensors are made."""
    return torch._C._len_torch_function_stack() > 0 and any(
        type(mode) is not DeviceContext
        for mode in _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    )


def is_plain(module: nn.Module) -> bool:
    """Say whether calling a module is calling its class's forward, and one that we know."""
    own = module.__dict__
    if (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in own
        or own.get("_compiled_call_impl") is not None
        or isinstance(module, torch.jit.ScriptModule)
        or "_orig_mod" in module._modules  # torch.compile
    ):
        return False
    cls = type(module)
    known = _FORWARDS.get(cls)
    if known is None:
        return bool(module._modules) and decides_nothing(module)
    if cls.forward is not known:
        return False
    if isinstance(module, nn.Dropout):
        return not module.training or module.p == 0
    if isinstance(module, nn.BatchNorm1d):
        return not module.training and isinstance(module.running_mean, Tensor)
    return True


def _chain(model: nn.Module, modules: dict[str, nn.Module]) -> Chain | None:
    """Read the layers that a model hands its input through, once for each form of it."""
    key = tuple(
        (name, id(module), type(module), settings_of(module)) for name, module in modules.items()
    )
    # By its code, which a module that is loaded anew puts into the function that there is.
    forwards: list[Any] = [type(m).forward for m in modules.values() if type(m) not in _FORWARDS]
    key += tuple(getattr(forward, "__code__", forward) for forward in forwards)
    former = _traces.get(model, ())
    known = next((trace for trace in former if trace.key == key), None)
    if known is None:
        chain = chain_of(model, modules)
        proven = type(model) in _FORWARDS
        if chain is not None and not proven and not is_faithful(model, chain, modules):
            chain = None
        known = _Trace(key, chain)
        # Whole, for other threads see it. Two, for a fit with validation changes modes to and fro.
        _traces[model] = (known, *former[:1])
    return known.chain


def _layers(chain: Chain, modules: dict[str, nn.Module]) -> MLPLayers | None:
    found = [modules[name] for name in chain.linears]
    linears = [module for module in found if type(module) is nn.Linear]
    norms = [[modules[name] for name in names] for names in chain.norms]
    if len(linears) != len(found) or linears[-1].out_features != 1:
        return None
    folded = [m for ms in norms for m in ms if isinstance(m, nn.BatchNorm1d)]
    if any({"weight", "bias"} & vars(module).keys() for module in (*linears, *folded)):
        return None  # no parameters
    tensors = [tensor for module in (*linears, *folded) for tensor in _tensors_of(module)]
    widths = [linears[0].in_features]
    for linear in linears:
        shape = (linear.out_features, linear.in_features)
        if linear.in_features != widths[-1] or linear.weight.shape != shape:
            return None
        if linear.bias is not None and linear.bias.shape != shape[:1]:  # one for all units, say
            return None
        widths.append(linear.out_features)
    if not all(_is_plain_tensor(tensor, linears[0].weight) for tensor in tensors):
        return None
    if not _owns_only(modules.values(), tensors):
        return None
    with torch.no_grad():
        pairs = [_folded(linear, some) for linear, some in zip(linears, norms, strict=True)]
        return MLPLayers(
            tuple(weight.contiguous() for weight, _ in pairs[:-1]),
            tuple(None if bias is None else bias.contiguous() for _, bias in pairs[:-1]),
            chain.slopes,
            pairs[-1][0].reshape(-1).contiguous(),
            tuple(linears),
            not folded,
        )


def _folded(linear: nn.Linear, norms: Sequence[nn.Module]) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of a linear layer with what normalizes its output."""
    weight = linear.weight.detach()
    bias = None if linear.bias is None else linear.bias.detach()
    for norm in norms:
        assert isinstance(norm, nn.BatchNorm1d)
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None and variance is not None
        factor = torch.rsqrt(variance + norm.eps)
        if norm.weight is not None:
            factor = factor * norm.weight
        bias = -mean * factor if bias is None else (bias - mean) * factor
        if norm.bias is not None:
            bias = bias + norm.bias
        weight = weight * factor[:, None]
    return weight, bias


def _owns_only(modules: Iterable[nn.Module], tensors: Sequence[Tensor]) -> bool:
    """Say whether no module holds a floating-point tensor besides these."""
    known = {id(tensor) for tensor in tensors}
    return all(id(tensor) in known for module in modules for tensor in _tensors_of(module))


def _tensors_of(module: nn.Module) -> list[Tensor]:
    """List the floating-point tensors that a module itself holds."""
    held: list[Tensor | None] = list(module._buffers.values())
    held += module._parameters.values()
    return [tensor for tensor in held if tensor is not None and tensor.is_floating_point()]


def _is_plain_tensor(tensor: Tensor, weight: Tensor) -> bool:
    return (
        type(tensor) in (nn.Parameter, Tensor)
        and tensor.dtype is weight.dtype
        and tensor.dtype in (torch.float32, torch.float64)
        and tensor.device == weight.device
        and tensor.device.type in ("cpu", "cuda")
        and tensor.layout is torch.strided
    )
