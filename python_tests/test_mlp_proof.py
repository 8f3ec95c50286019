"""What is taken for a multilayer perceptron must be one for every input and at every time."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from drocc_ext.models.networks import MLP
from drocc_ext.ops import _library
from drocc_ext.search import adversarial_search
from drocc_ext.search.mlp.match import find_mlp

pytestmark = pytest.mark.skipif(
    _library.native_error("cpu") is not None, reason="the operators have no eager form"
)

SWITCH = False


def helper(x: torch.Tensor) -> torch.Tensor:
    return F.relu(x) * 2


class Deep(nn.Module):
    """Two hidden layers of odd widths, and what a forward might look at."""

    factor = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 9), nn.Linear(9, 7), nn.Linear(7, 1)
        self.steps = nn.ModuleList([nn.Linear(5, 9), nn.Linear(9, 7)])
        self.stack = nn.Sequential(nn.Linear(5, 9), nn.LeakyReLU(0.2), nn.Linear(9, 7), nn.ReLU())
        self.norm = nn.BatchNorm1d(9)
        self.cfg = {"twice": False}
        self.count = np.int64(1)
        self.width, self.half = 9, 1.0

    @property
    def depth(self) -> int:
        return 2 if self.cfg["twice"] else 1


def made(forward: Callable[..., Any], **more: Any) -> nn.Module:
    """A module of a class of its own; submodules that the forward does not name are dropped."""
    model: nn.Module = type("Network", (Deep,), {"forward": forward, **more})()
    named = set(forward.__code__.co_names)
    for name in list(model._modules):
        if name not in named:
            del model._modules[name]
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm1d):
            nn.init.uniform_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
            nn.init.uniform_(norm.weight)
            nn.init.uniform_(norm.bias)
    return model.double().eval()


def plain(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.c(F.relu(self.b(F.relu(self.a(x)))))


def looped(self: Any, x: torch.Tensor) -> torch.Tensor:
    for step in self.steps:
        x = F.leaky_relu(step(x), 0.3)
    return self.c(x).squeeze(-1)


def stacked(self: Any, x: torch.Tensor) -> torch.Tensor:
    x = x.view(x.size(0), -1)
    return self.c(self.stack(x)).view(-1)


def normalized(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.c(torch.relu(self.b(F.leaky_relu(self.norm(self.a(x)), negative_slope=0.1))))


def sized(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.c(F.relu(self.b(F.relu(self.a(x)).view(-1, self.width))))


KNOWN = {f.__name__: f for f in (plain, looped, stacked, normalized, sized)}


def sequential(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers).double().eval()


CONTAINERS: dict[str, Callable[[], nn.Module]] = {
    "MLP": lambda: MLP(5, (9, 7, 8)).double(),
    "sequence": lambda: sequential(
        nn.Flatten(), nn.Linear(5, 9), nn.ReLU(), nn.Dropout(), nn.Linear(9, 7, bias=False),
        nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 1), nn.Flatten(0),
    ),
    "nested": lambda: sequential(
        nn.Sequential(nn.Linear(5, 9), nn.Sequential(nn.LeakyReLU(), nn.Identity())),
        nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(),
        nn.Linear(3, 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [*KNOWN, *CONTAINERS])
def test_known_networks(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    model = made(KNOWN[name]) if name in KNOWN else CONTAINERS[name]()
    layers = find_mlp(model)
    assert layers is not None
    x = torch.randn(6, 5, dtype=torch.float64)
    value = x
    for weight, bias, slope in zip(
        layers.weights, layers.biases, layers.negative_slopes, strict=True
    ):
        value = F.leaky_relu(F.linear(value, weight, bias), slope)
    value = value @ layers.output
    constant = layers.linears[-1].bias
    value = value if constant is None else value + constant
    torch.testing.assert_close(value, model(x).reshape(-1))
    assert layers.is_exact == ("norm" not in name and name != "sequence")


def dictionary(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.c(F.relu(self.b(F.relu(self.a(x * 5 if self.cfg["twice"] else x)))))


def subscript(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.c(F.relu(self.b(F.relu(self.a([x, x * 5][self.cfg["twice"]])))))


def numpy_integer(self: Any, x: torch.Tensor) -> torch.Tensor:
    for _ in range(self.count):
        x = F.relu(self.a(x))
    return self.c(F.relu(self.b(x)))


def class_attribute(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.c(F.relu(self.b(F.relu(self.a(x * self.factor)))))


def property_of_class(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.c(F.relu(self.b(F.relu(self.a(x)))) * self.depth)


def global_name(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.c(F.relu(self.b(F.relu(self.a(x if not SWITCH else -x)))))


def chance(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.c(F.relu(self.b(F.relu(self.a(x * round(random.random()))))))


def another_function(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.c(F.relu(self.b(helper(self.a(x)))))


def by_value(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.c(F.relu(self.b(F.relu(self.a(x if len(x) > 4 else -x)))))


def remembers(self: Any, x: torch.Tensor) -> torch.Tensor:
    self.seen = x
    return self.c(F.relu(self.b(F.relu(self.a(x)))))


def without_gradients(self: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        x = self.a(x)
    return self.c(F.relu(self.b(F.relu(x))))


def half(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.c(F.relu(self.b(F.relu(self.a(x * self.half)))))


def skips(self: Any, x: torch.Tensor) -> torch.Tensor:
    x = F.relu(self.a(x))
    return self.c(F.relu(self.b(x))) + x.flatten(1)[:, :1]


def scales(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.c(F.relu(self.b(F.relu(self.a(x + x)))))


def default(self: Any, x: torch.Tensor, twice: bool = False) -> torch.Tensor:
    return self.c(F.relu(self.b(F.relu(self.a(x)))))


def over(number: int) -> Callable[..., Any]:
    def closure(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.c(F.relu(self.b(F.relu(self.a(x * number)))))

    return closure


OTHER = [
    *(dictionary, subscript, numpy_integer, class_attribute, property_of_class, global_name),
    *(chance, another_function, by_value, remembers, without_gradients, skips, scales, default),
    over(1),
]


@pytest.mark.parametrize("forward", OTHER, ids=lambda f: f.__name__)
def test_a_forward_that_could_do_otherwise_is_left_to_autograd(
    forward: Callable[..., Any], seed: int
) -> None:
    torch.manual_seed(seed)
    assert find_mlp(made(forward)) is None


def test_what_changes_between_two_calls(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search of "auto" is that of "autograd", whatever a forward looks at."""
    torch.manual_seed(seed)
    x = torch.randn(7, 5, dtype=torch.float64)

    def both(model: nn.Module) -> None:
        ends = [
            adversarial_search(
                model, x, radius=1.0, step_size=0.1, num_steps=9, method=method,
                generator=torch.Generator().manual_seed(seed),
            )
            for method in ("auto", "autograd")
        ]  # fmt: skip
        torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-9)

    model = made(dictionary)
    both(model)
    model.cfg["twice"] = True
    both(model)
    model = made(class_attribute)
    both(model)
    type(model).factor = -3.0
    both(model)
    model = made(global_name)
    both(model)
    monkeypatch.setitem(globals(), "SWITCH", True)
    both(model)
    model = made(half)
    both(model)
    model.half = 0.5
    both(model)
    model = made(plain)
    both(model)
    model.a = nn.Sequential(nn.Linear(5, 9), nn.Tanh()).double()
    both(model)
    type(model).forward = lambda self, x: self.c(F.relu(self.b(F.relu(-self.a(x)))))
    both(model)


def test_what_stands_before_a_forward(seed: int) -> None:
    torch.manual_seed(seed)
    assert find_mlp(made(plain)) is not None
    negated = made(plain, __call__=lambda self, x: -nn.Module.__call__(self, x))
    assert find_mlp(negated) is None
    assert find_mlp(made(plain, __getattr__=lambda self, n: nn.Module.__getattr__(self, n))) is None
    hidden = made(plain, a=property(lambda self: self._modules["b"]))
    assert find_mlp(hidden) is None
    own = made(plain)
    vars(own)["a"] = lambda x: x
    assert find_mlp(own) is None

    class Negate(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            return -result if func is F.relu else result

    model = made(plain)
    with Negate():
        assert find_mlp(model) is None
    assert find_mlp(model) is not None


def test_a_patched_function_is_not_the_known_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sequence = made(plain), CONTAINERS["nested"]()
    assert find_mlp(model) is not None and find_mlp(sequence) is not None
    with monkeypatch.context() as patch:
        patch.setattr(F, "relu", torch.tanh)
        assert find_mlp(model) is None
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: F.linear(x, -self.weight, self.bias))
    assert find_mlp(model) is None and find_mlp(sequence) is None
