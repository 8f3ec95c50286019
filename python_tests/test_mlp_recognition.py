"""Which networks are taken for linear - ReLU - linear, and the search that they get."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import drocc_ext
from drocc_ext.models import networks
from drocc_ext.ops import _library
from drocc_ext.search import SearchConfig, adversarial_search
from drocc_ext.search.mlp.match import find_hidden_layers, find_mlp
from drocc_ext.search.mlp.search import mlp_search

pytestmark = pytest.mark.skipif(
    _library.native_error("cpu") is not None, reason="the operator has no eager form"
)

Forward = Callable[["Two", torch.Tensor], torch.Tensor]


class Two(nn.Module):
    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 9), nn.Linear(9, 1)
        self.act = nn.ReLU()
        type(self).forward = forward  # type: ignore[method-assign]
        self.scale = 1.0


def two(forward: Forward) -> nn.Module:
    return type("Network", (Two,), {})(forward)


def _no_grad_inside(m: Two, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        z = m.first(x)
    return m.second(F.relu(z))


KNOWN: dict[str, Forward] = {
    "plain": lambda m, x: m.second(F.relu(m.first(x))),
    "module": lambda m, x: m.second(m.act(m.first(x))).squeeze(1),
    "method": lambda m, x: m.second(m.first(x).relu()).flatten(),
    "view": lambda m, x: m.second(torch.relu(m.first(x.view(x.shape[0], -1))).view(-1, 9)),
    "size": lambda m, x: m.second(torch.relu(m.first(x.reshape(x.size(0), -1)))).view(-1),
    "flatten": lambda m, x: m.second(F.relu(m.first(torch.flatten(x, 1)), inplace=True)),
}
OTHER: dict[str, Forward] = {
    "detached": lambda m, x: m.second(F.relu(m.first(x.detach()))),
    "skip": lambda m, x: m.second(F.relu(m.first(x))) + x[:, :1],
    "scaled": lambda m, x: m.second(F.relu(m.first(2 * x))),
    "leaky": lambda m, x: m.second(F.leaky_relu(m.first(x))),
    "linear": lambda m, x: m.second(m.first(x)),
    "negated": lambda m, x: -m.second(F.relu(m.first(x))),
    "dropout": lambda m, x: m.second(F.dropout(F.relu(m.first(x)))),
    "transposed": lambda m, x: m.second(F.relu(m.first(x)).t().reshape(-1, 9)),
    "other reshape": lambda m, x: m.second(F.relu(m.first(x.view(-1, 6).view(x.shape[1], 6)))),
    "no grad": _no_grad_inside,
    "branch": lambda m, x: m.second(F.relu(m.first(x if x.sum() > 0 else -x))),
}


def assert_right(model: nn.Module, seed: int) -> None:
    layers = find_mlp(model)
    assert layers is not None
    torch.manual_seed(seed)
    x = torch.randn(16, 6, dtype=layers.output.dtype)
    settings = {"radius": 1.2, "gamma": 1.5, "step_size": 0.1, "num_steps": 12}
    noise = torch.Generator().manual_seed(seed)
    expected = adversarial_search(model, x, project_start=False, generator=noise, **settings)
    h = torch.empty_like(x).normal_(generator=torch.Generator().manual_seed(seed))
    ours = mlp_search(layers, x, h, None, SearchConfig(**settings))
    tolerance = 1e-9 if x.dtype == torch.float64 else 2e-3
    away = ~torch.isclose(ours, expected, rtol=tolerance, atol=tolerance).all(1)
    # In float32 rounding may switch a unit of one of the sixteen rows the other way.
    assert away.sum() <= (0 if x.dtype == torch.float64 else 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", KNOWN)
def test_known_networks(name: str, dtype: torch.dtype, seed: int) -> None:
    assert_right(two(KNOWN[name]).to(dtype).eval(), seed)


def test_more_rows_than_one_part(seed: int) -> None:
    torch.manual_seed(seed)
    layers = find_mlp(networks.MLP(6, 9).double())
    assert layers is not None
    x, start = torch.randn(2, 700, 6, dtype=torch.float64)
    radius = torch.rand(700, dtype=torch.float64) + 0.5
    settings = SearchConfig(radius=radius, gamma=1.5, step_size=0.1, num_steps=7)
    together = mlp_search(layers, x, start.clone(), None, settings)
    for begin in (0, 130, 693):
        rows = slice(begin, begin + 7)
        alone = mlp_search(layers, x[rows], start[rows].clone(), None, settings.of_rows(rows))
        torch.testing.assert_close(together[rows], alone, rtol=1e-12, atol=1e-12)


def test_networks_and_containers(seed: int) -> None:
    assert_right(networks.MLP(6, 9).double(), seed)
    layers = [nn.Linear(6, 9, bias=False), nn.ReLU(True), nn.Linear(9, 1, bias=False)]
    assert_right(nn.Sequential(*layers).double(), seed)
    dropped = nn.Sequential(nn.Flatten(), *layers[:2], nn.Dropout(0.3), layers[2], nn.Flatten(0))
    assert find_hidden_layers(dropped) is None
    assert_right(dropped.double().eval(), seed)
    assert find_hidden_layers(dropped.train()) is None


@pytest.mark.parametrize("name", OTHER)
def test_other_networks(name: str) -> None:
    assert find_hidden_layers(two(OTHER[name]).eval()) is None


def test_other_modules() -> None:
    first, second = nn.Linear(6, 9), nn.Linear(9, 1)
    for model in (
        networks.MNISTLeNet(),
        networks.LSTMClassifier(1),
        nn.Linear(6, 1),
        nn.Sequential(first, nn.ReLU(), nn.Linear(9, 2)),
        nn.Sequential(first, nn.Tanh(), second),
        nn.Sequential(first, nn.ReLU(), nn.BatchNorm1d(9), second),
        nn.Sequential(first, nn.ReLU(), nn.Linear(9, 9), nn.ReLU(), second),
        nn.Sequential(nn.Linear(6, 9).double(), nn.ReLU(), second),
        networks.MLP(6, 9).to(torch.bfloat16),
        networks.MLP(6, 9).to("meta"),
        lambda x: x,
    ):
        assert find_hidden_layers(model) is None


def test_what_a_call_would_do_besides() -> None:
    for where in (lambda m: m, lambda m: m.first):
        model = two(KNOWN["plain"])
        assert find_hidden_layers(model) is not None
        handle = where(model).register_forward_hook(lambda *_: None)
        assert find_hidden_layers(model) is None
        handle.remove()
        assert find_hidden_layers(model) is not None
        handle = where(model).register_full_backward_pre_hook(lambda *_: None)
        assert find_hidden_layers(model) is None
    model = two(KNOWN["plain"])
    nn.utils.parametrizations.weight_norm(model.first)
    assert find_hidden_layers(model) is None
    model = networks.MLP(6, 9)
    model.forward = lambda x: x[:, :1]
    assert find_hidden_layers(model) is None
    model = two(KNOWN["plain"])
    for backend in ("eager", *(("triton",) if _library.triton_missing is None else ())):
        with drocc_ext.use_backend(backend):
            assert find_hidden_layers(model) is None, backend
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert find_hidden_layers(model) is None
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert find_hidden_layers(model) is None
    handle.remove()
    assert find_hidden_layers(model) is not None


def test_a_changed_network_is_read_again() -> None:
    model = two(KNOWN["plain"])
    assert find_hidden_layers(model) is not None
    model.first = nn.Linear(6, 5)
    assert find_hidden_layers(model) is None
    model.second = nn.Linear(5, 1)
    layers = find_hidden_layers(model)
    assert layers is not None and layers.weight.data_ptr() == model.first.weight.data_ptr()


def test_the_last_projection_can_be_left_out(seed: int) -> None:
    torch.manual_seed(seed)
    layers = find_mlp(networks.MLP(6, 9).double())
    assert layers is not None
    x = torch.randn(8, 6, dtype=torch.float64)
    start = torch.randn_like(x)

    def end(steps: int, project_last: bool, step_size: float = 0.5) -> torch.Tensor:
        settings = SearchConfig(
            radius=1.0,
            gamma=1.0,
            step_size=step_size,
            num_steps=steps,
            project_every=4,
            project_last=project_last,
        )
        return mlp_search(layers, x, start.clone(), None, settings)

    one = torch.ones(8, dtype=torch.float64)
    for steps in (1, 3, 4, 6, 8):
        torch.testing.assert_close((end(steps, True) - x).norm(dim=1), one)
        reached = (end(steps, False) - x).norm(dim=1)
        on_shell = torch.allclose(reached, one, rtol=1e-9)
        assert on_shell == (steps % 4 == 0)


@pytest.mark.parametrize("columns", [1, 2, 3])
@pytest.mark.parametrize("steps", [5, 50])
def test_few_inputs_in_single_precision(columns: int, steps: int, seed: int) -> None:
    """The Gram matrix of many units over few inputs is nearly singular: <v, G v> cancels."""
    torch.manual_seed(seed)
    model = networks.MLP(columns, 128)
    x = torch.randn(2000, columns)
    settings = {"radius": 1.0, "gamma": 2.0, "step_size": 0.5 / steps, "num_steps": steps}
    length = (adversarial_search(model, x, **settings) - x).norm(dim=1)
    # x + h is rounded at the size of x.
    assert length.min() > 1 - 1e-5 and length.max() < 2 + 1e-5


@pytest.mark.parametrize("exponent", range(-18, -9))
def test_gradients_whose_squares_underflow(exponent: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = networks.MLP(8, 64)
    with torch.no_grad():
        model.hidden.weight.mul_(1e-6)
        model.logit.weight.mul_(10.0**exponent)
    x = torch.randn(300, 8)
    settings = {"radius": 4.0, "gamma": 1.0, "step_size": 4.0, "num_steps": 1}
    for method in ("hidden", "autograd"):
        length = (adversarial_search(model, x, method=method, **settings) - x).norm(dim=1)
        torch.testing.assert_close(length, torch.full((300,), 4.0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("step_size", [0.1, 1e30, 1e38])
def test_bad_rows_leave_nothing_behind(step_size: float, seed: int) -> None:
    torch.manual_seed(seed)
    model = networks.MLP(16, 8)  # fewer units than a vector holds
    x, radius = torch.randn(40, 16), torch.full((40,), 1.0)
    bad_x, bad_radius = x.clone(), radius.clone()
    bad_x[::6, 3] = torch.tensor([float("nan"), float("inf")]).repeat(4)[:7]
    bad_radius[::9] = torch.tensor([float("nan"), float("inf"), 3e38, 1e-45, -1.0])
    good = torch.ones(40, dtype=torch.bool)
    good[::6] = good[::9] = False
    settings = {"gamma": 1e30, "step_size": step_size, "num_steps": 7, "project_every": 2**40}

    def ends(rows: torch.Tensor, radii: torch.Tensor) -> torch.Tensor:
        noise = torch.Generator().manual_seed(seed)
        return adversarial_search(
            model, rows, radius=radii, generator=noise, method="hidden", **settings
        )

    expected, found = ends(x, radius), ends(bad_x, bad_radius)
    torch.testing.assert_close(found[good], expected[good], rtol=0, atol=0, equal_nan=True)


def test_a_module_with_an_end_of_its_own_meets_it_once() -> None:
    ended = []

    class Closing(Two):
        def __del__(self) -> None:
            ended.append(self)

    model = Closing(KNOWN["plain"])
    assert find_mlp(model) is None
    gc.collect()
    assert ended == []
