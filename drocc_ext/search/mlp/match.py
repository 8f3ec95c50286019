"""Which networks are linear - ReLU - linear.

Their modules and a symbolic trace of their forward decide, never the names of their layers.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules import module as _module_globals

from drocc_ext.models.networks import MLP
from drocc_ext.ops import _backend, _library

__all__ = ["HiddenLayers", "find_hidden_layers"]


class HiddenLayers(NamedTuple):
    """A network `f(x) = <output_weight, relu(weight x + bias)> + constant`.

    Attributes:
        weight: `[H, D]`, float32 or float64, on the CPU or a GPU, contiguous, without gradient
            history.
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
    """Find the layers of a network linear - ReLU - linear, if it is one.

    Recognized are `networks.MLP` and every module that holds two plain `nn.Linear`, no parameter or
    buffer besides, and whose forward, traced symbolically, only passes its one input through the
    first, a ReLU (module, function or method) and the second; reshapes that do nothing to `[B, D]`
    rows, `nn.Identity` and dropout that is switched off may stand between. A trace is made once for
    each module and mode (training or not) and is dropped when its modules change.

    Args:
        model: Anything; what is not recognized gives None.

    Returns:
        The weights as they are now, views of the parameters where those are contiguous. None where
        the network is of another form, is parametrized or has hooks, where it is not in float32 or
        float64 on one CPU or GPU throughout, and where the operator cannot or shall not run:
        without native kernels, with the eager or Triton backend, under autocast, `torch.compile` or
        `torch.func`.
    """
    if not isinstance(model, nn.Module):
        return None
    some = next(model.parameters(), None)
    if some is None or not _operator_available(some):
        return None
    modules = dict(model.named_modules(remove_duplicate=False))
    # Both a cheap way out for large networks, and the reason why a trace below is quick.
    if len(modules) > _MOST_MODULES or not all(map(is_plain, modules.values())):
        return None
    linear = [module for module in set(modules.values()) if type(module) is nn.Linear]
    if len(linear) != 2 or not _owns_only(modules.values(), linear):
        return None
    names = ("hidden", "logit") if type(model) is MLP else _traced(model, modules)
    if names is None:
        return None
    first, last = modules[names[0]], modules[names[1]]
    if type(first) is not nn.Linear or type(last) is not nn.Linear or first is last:
        return None
    if last.in_features != first.out_features or last.out_features != 1:
        return None
    tensors = [first.weight, last.weight, *(m.bias for m in (first, last) if m.bias is not None)]
    if not all(_is_plain_tensor(tensor, first.weight) for tensor in tensors):
        return None
    weight = first.weight.detach()
    bias = weight.new_zeros(weight.shape[0]) if first.bias is None else first.bias.detach()
    return HiddenLayers(
        weight.contiguous(),
        bias.contiguous(),
        last.weight.detach().reshape(-1).contiguous(),
        first,
        last,
    )


_MOST_MODULES = 16

# Devices with the operator; parts of a batch of fewer rows would leave processors without work.
LEAST_ROWS = {"cpu": 128, "cuda": 4096}

# Modules that may stand between the layers: they do nothing to rows [B, D] but the ReLU.
_LEAVES = (nn.Linear, nn.ReLU, nn.Identity, nn.Dropout, nn.Flatten)


@dataclass
class _Trace:
    key: tuple[object, ...]
    names: tuple[str, str] | None


_traces: WeakKeyDictionary[nn.Module, _Trace] = WeakKeyDictionary()


def _operator_available(tensor: Tensor) -> bool:
    return not (
        torch.compiler.is_compiling()
        or _library.native_error(tensor.device.type) is not None
        or not _backend.allows_native()
        or torch.is_autocast_enabled(tensor.device.type)
        or torch._C._functorch.peek_interpreter_stack() is not None
        or _module_globals._has_any_global_hook()  # type: ignore[no-untyped-call]
    )


def is_plain(module: nn.Module) -> bool:
    """Say whether calling a module is calling its class's forward, and that is one we know."""
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
    if not module._modules and type(module) not in _LEAVES:
        return False
    if type(module) is nn.Dropout:
        return not module.training or module.p == 0
    return True


def _owns_only(modules: Iterable[nn.Module], linear: Sequence[nn.Module]) -> bool:
    known = {id(tensor) for layer in linear for tensor in layer._parameters.values()}
    return not any(
        any(p is not None and id(p) not in known for p in module._parameters.values())
        or any(buffer is not None for buffer in module._buffers.values())
        for module in modules
    )


def _is_plain_tensor(tensor: Tensor, weight: Tensor) -> bool:
    return (
        type(tensor) in (nn.Parameter, Tensor)
        and tensor.dtype is weight.dtype
        and tensor.dtype in (torch.float32, torch.float64)
        and tensor.device == weight.device
        and tensor.device.type in LEAST_ROWS
        and tensor.layout is torch.strided
    )


def _traced(model: nn.Module, modules: dict[str, nn.Module]) -> tuple[str, str] | None:
    """Name the layers of a network whose forward is linear - ReLU - linear."""
    key: tuple[object, ...] = (
        type(model).forward,
        *((name, type(m), id(m), _settings(m)) for name, m in modules.items()),
    )
    known = _traces.get(model)
    if known is None or known.key != key:
        known = _Trace(key, _read_trace(model, modules))
        _traces[model] = known
    return known.names


def _settings(module: nn.Module) -> tuple[object, ...]:
    """List what a forward may branch on, `training` above all."""
    plain = (bool, int, float, str, type(None))
    return tuple((k, v) for k, v in vars(module).items() if isinstance(v, plain))


def _autocast_anywhere() -> bool:
    return any(map(torch.is_autocast_enabled, LEAST_ROWS))


class _Tracer(fx.Tracer):
    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        # A graph does not show the contexts that a forward enters.
        if _autocast_anywhere() or not torch.is_grad_enabled():
            raise RuntimeError("the forward changes modes")
        return super().create_node(*args, **kwargs)


def _read_trace(model: nn.Module, modules: dict[str, nn.Module]) -> tuple[str, str] | None:
    try:
        with torch.inference_mode(False), torch.enable_grad():
            graph = _Tracer().trace(model)
        return _Reader(modules).read(graph)
    except Exception:  # the forward of any class runs here: whatever it raises, it is not ours
        return None


class _Reader:
    """Follows the one path through a traced graph: x, then hidden, then active, then logit."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self.modules = modules
        self.stage: dict[fx.Node, str] = {}
        self.layers: list[str] = []

    def read(self, graph: fx.Graph) -> tuple[str, str] | None:
        for node in graph.nodes:
            if node.op == "output":
                ended = node.args[0] in self.stage and self.stage[node.args[0]] == "logit"
                return (self.layers[0], self.layers[1]) if ended else None
            stage = self._step(node)
            if stage is None:
                return None
            self.stage[node] = stage
        return None

    def _step(self, node: fx.Node) -> str | None:
        if node.op == "placeholder":
            return None if self.stage or node.args else "x"
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or source not in self.stage:
            return None
        stage, rest = self.stage[source], node.args[1:]
        if node.op == "call_module":
            return None if rest or node.kwargs else self._through(str(node.target), stage)
        if stage in ("shape", "rows") or _is_size(node):
            return _size(node, stage, rest)
        if _is_relu(node) and not rest and set(node.kwargs) <= {"inplace"}:
            return "active" if stage == "hidden" else None
        return stage if self._keeps_rows(node, stage, rest) else None

    def _through(self, name: str, stage: str) -> str | None:
        module = self.modules[name]
        if type(module) is nn.Linear:
            self.layers.append(name)
            return {"x": "hidden", "active": "logit"}.get(stage)
        if type(module) is nn.ReLU:
            return "active" if stage == "hidden" else None
        if type(module) is nn.Flatten:
            least = 0 if stage == "logit" else 1
            return stage if module.start_dim >= least and module.end_dim in (-1, 1) else None
        return stage if type(module) in (nn.Identity, nn.Dropout) else None

    def _keeps_rows(self, node: fx.Node, stage: str, rest: tuple[Any, ...]) -> bool:
        """Say whether a reshape leaves `[B, width]` (for a logit also `[B]`) as it is."""
        if node.kwargs:
            return False
        if node.op == "call_method" and node.target == "contiguous":
            return not rest
        flatten = (
            node.target is torch.flatten if node.op == "call_function" else node.target == "flatten"
        )
        if flatten:
            return rest == (1,) or (stage == "logit" and rest == ())
        squeeze = (
            node.target is torch.squeeze if node.op == "call_function" else node.target == "squeeze"
        )
        if squeeze:
            return stage == "logit" and rest in ((1,), (-1,))
        if node.op != "call_method" or node.target not in ("view", "reshape"):
            return False
        if stage == "logit" and rest == (-1,):
            return True
        return len(rest) == 2 and self._is_shape(rest, self._width(stage))

    def _width(self, stage: str) -> int | None:
        if stage == "x" or not self.layers:
            return None
        layer = self.modules[self.layers[1 if stage == "logit" else 0]]
        return layer.out_features if type(layer) is nn.Linear else None

    def _is_shape(self, shape: tuple[Any, ...], width: int | None) -> bool:
        batch, columns = shape
        counted = isinstance(batch, fx.Node) and self.stage.get(batch) == "rows"
        if counted:
            return bool(columns == -1 or (width is not None and columns == width))
        return bool(batch == -1 and width is not None and columns == width)


def _is_relu(node: fx.Node) -> bool:
    if node.op == "call_function":
        return node.target in (F.relu, F.relu_, torch.relu, torch.relu_)
    return node.op == "call_method" and node.target in ("relu", "relu_")


def _is_size(node: fx.Node) -> bool:
    if node.op == "call_function":
        return node.target is getattr and node.args[1:] == ("shape",)
    return node.op == "call_method" and node.target == "size"


def _size(node: fx.Node, stage: str, rest: tuple[Any, ...]) -> str | None:
    """Recognize the number of rows: `x.size(0)`, `x.size()[0]` and `x.shape[0]`."""
    if stage == "shape":
        return "rows" if node.target is operator.getitem and rest == (0,) else None
    if stage == "rows" or node.kwargs:
        return None
    return "rows" if rest == (0,) else "shape" if rest in ((), ("shape",)) else None
