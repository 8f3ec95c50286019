"""From a forward that decides nothing to the chain of layers that it is."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.nn import functional as F

from drocc_ext.models.networks import MLP
from drocc_ext.search.mlp.straight import is_plain_value

__all__ = ["Chain", "chain_of", "is_faithful"]


# A comparison of larger networks would cost more than it brings.
_MOST_WEIGHTS = 5_000_000


class Chain(NamedTuple):
    """The layers of a multilayer perceptron, by the names of their modules.

    Attributes:
        linears: The linear layers in order, the last included.
        norms: For each of them the BatchNorm layers that follow it before the activation.
        slopes: The negative slope of each activation but the last layer's, which has none.
    """

    linears: tuple[str, ...]
    norms: tuple[tuple[str, ...], ...]
    slopes: tuple[float, ...]


def chain_of(model: nn.Module, modules: dict[str, nn.Module]) -> Chain | None:
    """Trace a model's forward symbolically and read the layers it hands its input through.

    Args:
        model: A module whose forward decides nothing.
        modules: All its modules by name.

    Returns:
        The chain; None where the forward is anything else.
    """
    if isinstance(model, MLP):
        return model_chain(model)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            graph = _Tracer().trace_alone(model)
        return _Reader(modules).read(graph)
    except Exception:  # a forward of any class runs here: whatever it raises, it is not ours
        return None


def model_chain(model: MLP) -> Chain:
    """Name the layers of our own class, whose forward checks shapes and cannot be traced.

    Args:
        model: The network.

    Returns:
        Its chain.
    """
    count = len(model.layers)
    names = ("hidden",) if count == 1 else tuple(f"hidden.{i}" for i in range(count))
    return Chain((*names, "logit"), ((),) * (count + 1), (0.0,) * count)


def is_faithful(model: nn.Module, chain: Chain, modules: dict[str, nn.Module]) -> bool:
    """Compare a model with its chain by values and gradients, on random weights in float64.

    Args:
        model: The module.
        chain: What was read of it.
        modules: All its modules by name.

    Returns:
        Whether both agree to rounding.
    """
    if sum(tensor.numel() for tensor in model.state_dict().values()) > _MOST_WEIGHTS:
        return False
    noise = torch.Generator("cpu").manual_seed(0)

    def random(like: Tensor) -> Tensor:
        drawn = torch.randn(like.shape, generator=noise, dtype=torch.float64, device="cpu")
        return (drawn / max(1, like.shape[-1]) ** 0.5).abs() + 0.1 if like.dim() == 0 else drawn

    state = {
        name: random(tensor).abs() if name.endswith("running_var") else random(tensor)
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point()
    }
    first = modules[chain.linears[0]]
    assert isinstance(first, nn.Linear)
    x = random(first.weight[:3]).requires_grad_()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            theirs = functional_call(_twin(model, lambda cls: cls), state, (x,)).reshape(-1)
            ours = _evaluate(chain, modules, state, x).reshape(-1)
            gradients = [torch.autograd.grad(value.sum(), x)[0] for value in (theirs, ours)]
    except Exception:  # as above
        return False
    return all(
        one.shape == other.shape and torch.allclose(one, other, rtol=1e-9, atol=1e-9)
        for one, other in ((theirs, ours), gradients)
    )


def _evaluate(
    chain: Chain, modules: dict[str, nn.Module], state: dict[str, Tensor], x: Tensor
) -> Tensor:
    def part(name: str, of: str) -> Tensor | None:
        return state.get(f"{name}.{of}" if name else of)

    for position, name in enumerate(chain.linears):
        weight = part(name, "weight")
        assert weight is not None
        x = F.linear(x, weight, part(name, "bias"))
        for norm in chain.norms[position]:
            mean, variance = part(norm, "running_mean"), part(norm, "running_var")
            scale, shift = part(norm, "weight"), part(norm, "bias")
            x = F.batch_norm(x, mean, variance, scale, shift, eps=_eps_of(modules[norm]))
        if position < len(chain.slopes):
            x = F.leaky_relu(x, chain.slopes[position])
    return x


def _eps_of(module: nn.Module) -> float:
    assert isinstance(module, nn.BatchNorm1d)
    return module.eps


def _twin(model: nn.Module, of: Callable[[type[nn.Module]], type[nn.Module]]) -> nn.Module:
    """Make modules of other classes that share a model's tensors.

    What is done to them, such as other weights for a while, stays unseen by threads that use the
    model.
    """
    made: dict[int, nn.Module] = {}
    ours = {id(module) for module in model.modules()}

    def swapped(value: Any) -> Any:
        if isinstance(value, nn.Module):
            return twin(value) if id(value) in ours else value
        if type(value) in (list, tuple):
            return type(value)(map(swapped, value))
        if type(value) in (dict, OrderedDict):
            return type(value)((key, swapped(part)) for key, part in value.items())
        return value

    def twin(module: nn.Module) -> nn.Module:
        if hasattr(type(module), "__del__"):
            raise TypeError("a twin's end would be taken for the module's")
        if id(module) not in made:
            made[id(module)] = copy = object.__new__(of(type(module)))
            copy.__dict__.update({key: swapped(part) for key, part in vars(module).items()})
        return made[id(module)]

    return twin(model)


class _Tracer(fx.Tracer):
    """Traces a twin of a model, whose modules tell it when they are called.

    torch's own way replaces `nn.Module.__call__` meanwhile, for all modules and all threads.
    """

    def trace_alone(self, model: nn.Module) -> fx.Graph:
        self.root = _twin(model, self._watched)
        self.submodule_paths = {module: name for name, module in self.root.named_modules()}
        self.graph = fx.Graph(tracer_cls=type(self))
        self.tensor_attrs = {}
        forward, args = self.create_args_for_root(type(self.root).forward, True, None)
        self.create_node("output", "output", (self.create_arg(forward(*args)),), {})
        return self.graph

    def _watched(self, cls: type[nn.Module]) -> type[nn.Module]:
        if type(cls) is not type or hasattr(cls.__init_subclass__, "__func__"):
            raise TypeError("a subclass would not be unseen")

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            def forward(*args: Any, **kwargs: Any) -> Any:
                return nn.Module.__call__(module, *args, **kwargs)

            return self.call_module(module, forward, args, kwargs)

        return type(cls.__name__, (cls,), {"__call__": call, "__module__": cls.__module__})

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        # A graph does not show the contexts that a forward enters.
        if any(map(torch.is_autocast_enabled, ("cpu", "cuda"))) or not torch.is_grad_enabled():
            raise RuntimeError("the forward changes modes")
        return super().create_node(*args, **kwargs)


class _Reader:
    """Follows the one path through a traced graph, from x to the logit."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self.modules = modules
        # What a node's value is: "rows" on their way, "shape" or "count" of rows.
        self.kinds: dict[fx.Node, str] = {}
        self.linears: list[str] = []
        self.norms: list[tuple[str, ...]] = []
        self.slopes: list[float] = []
        self.last: fx.Node | None = None

    def read(self, graph: fx.Graph) -> Chain | None:
        for node in graph.nodes:
            if node.op == "output":
                ended = node.args[0] is self.last and len(self.linears) == len(self.slopes) + 1
                return self._chain() if ended and self.slopes else None
            if not self._step(node):
                return None
        return None

    def _chain(self) -> Chain:
        return Chain(tuple(self.linears), tuple(self.norms), tuple(self.slopes))

    def _step(self, node: fx.Node) -> bool:
        if node.op == "placeholder":
            if self.last is not None or node.args:
                return False
            return self._goes_on(node)
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or source not in self.kinds:
            return False
        rest = node.args[1:]
        if self.kinds[source] != "rows" or _is_size(node):
            return self._reads_size(node, self.kinds[source], rest)
        if source is not self.last:  # a second path from an earlier value
            return False
        if node.op == "call_module":
            passes = not rest and not node.kwargs and self._passes(str(node.target))
        else:
            slope = _slope_of(node, rest)
            passes = self._activates(slope) if slope is not None else self._keeps_rows(node, rest)
        return passes and self._goes_on(node)

    def _goes_on(self, node: fx.Node) -> bool:
        self.kinds[node] = "rows"
        self.last = node
        return True

    @property
    def _is_linear(self) -> bool:
        """Whether a linear layer came after the last activation."""
        return len(self.linears) > len(self.slopes)

    def _activates(self, slope: float) -> bool:
        if not self._is_linear or not 0.0 <= slope < float("inf"):
            return False
        self.slopes.append(slope)
        return True

    def _passes(self, name: str) -> bool:
        module = self.modules[name]
        if isinstance(module, nn.Linear):
            if self._is_linear:
                return False
            self.linears.append(name)
            self.norms.append(())
            return True
        if isinstance(module, nn.BatchNorm1d):
            if not self._is_linear:
                return False
            self.norms[-1] += (name,)
            return True
        if isinstance(module, nn.ReLU):
            return self._activates(0.0)
        if isinstance(module, nn.LeakyReLU):
            slope = module.negative_slope
            return is_plain_value(slope) and self._activates(float(slope))
        if isinstance(module, nn.Flatten):
            if not (is_plain_value(module.start_dim) and is_plain_value(module.end_dim)):
                return False
            least = 0 if self._at_logit() else 1
            return bool(module.start_dim >= least and module.end_dim in (-1, 1))
        return isinstance(module, (nn.Identity, nn.Dropout))  # `is_plain` has seen exact types

    def _at_logit(self) -> bool:
        return self._is_linear and bool(self.slopes) and self._width() == 1

    def _keeps_rows(self, node: fx.Node, rest: tuple[Any, ...]) -> bool:
        """Say whether a reshape leaves `[B, width]` (for a logit also `[B]`) as it is."""
        if node.kwargs:
            return False
        if node.op == "call_method" and node.target == "contiguous":
            return not rest
        if _is_call(node, torch.flatten, "flatten"):
            return rest == (1,) or (self._at_logit() and rest == ())
        if _is_call(node, torch.squeeze, "squeeze"):
            return self._at_logit() and rest in ((1,), (-1,))
        if node.op != "call_method" or node.target not in ("view", "reshape"):
            return False
        if self._at_logit() and rest == (-1,):
            return True
        return len(rest) == 2 and self._is_shape(rest, self._width())

    def _width(self) -> int | None:
        if not self.linears:
            return None
        layer = self.modules[self.linears[-1]]
        return layer.out_features if type(layer) is nn.Linear else None

    def _is_shape(self, shape: tuple[Any, ...], width: int | None) -> bool:
        batch, columns = shape
        if isinstance(batch, fx.Node) and self.kinds.get(batch) == "count":
            return bool(columns == -1 or (width is not None and columns == width))
        return bool(batch == -1 and width is not None and columns == width)

    def _reads_size(self, node: fx.Node, of: str, rest: tuple[Any, ...]) -> bool:
        """Recognize the number of rows: `x.size(0)`, `x.size()[0]` and `x.shape[0]`."""
        if node.kwargs or of == "count":
            return False
        if of == "shape":
            found = "count" if node.target is operator.getitem and rest == (0,) else None
        else:
            found = "count" if rest == (0,) else "shape" if rest in ((), ("shape",)) else None
        if found is None:
            return False
        self.kinds[node] = found
        return True


def _slope_of(node: fx.Node, rest: tuple[Any, ...]) -> float | None:
    """Return the negative slope of a ReLU or LeakyReLU; None for another call."""
    settings = {key: value for key, value in node.kwargs.items() if key != "inplace"}
    if node.op == "call_function":
        if node.target in (F.relu, F.relu_, torch.relu, torch.relu_):
            return 0.0 if not rest and not settings else None
        if node.target in (F.leaky_relu, F.leaky_relu_):
            slope = rest[0] if len(rest) == 1 else settings.pop("negative_slope", 0.01)
            if settings or len(rest) > 1 or not isinstance(slope, (int, float)):
                return None
            return float(slope)
        return None
    is_relu = node.op == "call_method" and node.target in ("relu", "relu_")
    return 0.0 if is_relu and not rest and not node.kwargs else None


def _is_call(node: fx.Node, function: Any, method: str) -> bool:
    return node.target is function if node.op == "call_function" else node.target == method


def _is_size(node: fx.Node) -> bool:
    if node.op == "call_function":
        return node.target is getattr and node.args[1:] == ("shape",)
    return node.op == "call_method" and node.target == "size"
