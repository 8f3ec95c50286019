"""The ways of computing the search's gradients give the same points."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from cases import CUDA
from torch import Tensor, nn

import drocc_ext
from drocc_ext.models import networks
from drocc_ext.ops import _library
from drocc_ext.search import adversarial_search, gradients
from drocc_ext.search.gradients import compiled_gradient
from drocc_ext.search.mlp.eager_search import HiddenRows
from drocc_ext.search.mlp.match import find_mlp
from drocc_ext.search.mlp.search import pays

native = pytest.mark.skipif(
    _library.cpu_error is not None, reason=f"no native library: {_library.cpu_error}"
)


@native
@pytest.mark.parametrize(
    "features, units, rows, with_sigma, chosen",
    [
        (6, [128, 128], 256, False, True),
        (6, [128, 128], 100_000, True, True),  # held by each block
        (768, [256] * 3, 256, False, True),  # read from the caches
        (768, [256] * 3, 4096, False, False),
        (3072, [512, 512], 8, False, False),
        (10, [4000], 64, False, False),  # a large Gram matrix ...
        (10, [4000], 64, True, True),  # ... which this metric does without
    ],
)
def test_cost_rule_on_a_gpu(
    features: int, units: list[int], rows: int, with_sigma: bool, chosen: bool
) -> None:
    layers = find_mlp(networks.MLP(features, units))
    assert layers is not None
    there = layers._replace(weights=tuple(w.to("meta") for w in layers.weights))
    assert pays(there, rows, 2, with_sigma=with_sigma) is chosen


def shallow(features: int, dtype: torch.dtype) -> nn.Module:
    return networks.MLP(features, 48).to(dtype)


def deep(features: int, dtype: torch.dtype) -> nn.Module:
    return nn.Sequential(
        nn.Linear(features, 24), nn.Tanh(), nn.Linear(24, 16), nn.SiLU(), nn.Linear(16, 1)
    ).to(dtype)


def points(model: nn.Module, x: Tensor, method: str, **settings: Any) -> Tensor:
    generator = torch.Generator(x.device).manual_seed(7)
    defaults: dict[str, Any] = {"radius": 2.0, "step_size": 0.3, "num_steps": 10}
    return adversarial_search(
        model, x, generator=generator, method=method, **{**defaults, **settings}
    )


def worst(a: Tensor, b: Tensor, x: Tensor) -> float:
    return float(((a - b).norm(dim=1) / (b - x).norm(dim=1)).max())


def steady(model: nn.Module, x: Tensor, expected: Tensor, **settings: Any) -> Tensor:
    """Rows that rounding does not take elsewhere: long searches around an edge are chaotic.

    There the last bit of the step moves the end of the search by more than 1e-11.
    """
    moved = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    step_size = settings.pop("step_size", 0.3)
    for shift in (1e-14, -1e-14, 3e-15):
        other = points(model, x, "autograd", step_size=step_size * (1 + shift), **settings)
        moved = torch.maximum(moved, (other - expected).norm(dim=1))
    return moved < 1e-11


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "fifty small steps": {"num_steps": 50, "step_size": 0.01},
    "two hundred steps": {"num_steps": 200, "step_size": 0.2},
    "some projections": {"project_every": 7},
    "one radius": {"gamma": 1.0},
    "no outer bound": {"gamma": math.inf, "num_steps": 40},
    "from the origin": {"noise_scale": 0.0, "project_start": False},
    "from the first coordinate": {"noise_scale": 0.0},
    "unprojected start": {"noise_scale": 5.0, "project_start": False},
    "no step": {"step_size": 0.0},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("network", (shallow, deep))
@pytest.mark.parametrize("features", (2, 6, 200))
@pytest.mark.parametrize("device", ("cpu", *CUDA))
@native
def test_hidden_is_autograd(
    device: str, network: Any, features: int, settings: Any, seed: int
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(200, features, dtype=torch.float64)
    model, x = network(features, torch.float64).to(device), x.to(device)
    expected = points(model, x, "autograd", **settings)
    found = points(model, x, "hidden", **settings)
    rows = steady(model, x, expected, **settings)
    assert int(rows.sum()) >= 15  # two hundred steps in the plane leave a fifth of them, or more
    assert worst(found[rows], expected[rows], x[rows]) < 1e-9
    assert all(parameter.grad is None for parameter in model.parameters())


@native
def test_float32_differs_by_rounding(seed: int) -> None:
    torch.manual_seed(seed)
    model, x = shallow(300, torch.float32), torch.randn(256, 300)
    settings = {"radius": 9.0, "num_steps": 50, "step_size": 0.09}
    expected = points(model.double(), x.double(), "autograd", **settings)
    found = points(model.float(), x, "hidden", **settings)
    # The noise is drawn in the dtype of x: compare from the same start.
    assert found.dtype == torch.float32
    again = points(model, x, "autograd", **settings)
    away = (found - again).norm(dim=1) / (again - x).norm(dim=1)
    assert float(away.median()) < 2e-6
    assert float((away > 1e-3).float().mean()) < 0.05  # rows in which a unit flipped
    assert expected.shape == found.shape


@native
def test_units_that_are_all_off_do_not_move(seed: int) -> None:
    torch.manual_seed(seed)
    model, x = shallow(5, torch.float64), torch.randn(9, 5, dtype=torch.float64)
    with torch.no_grad():
        model.hidden.bias.fill_(-100.0)
    expected = points(model, x, "autograd")
    torch.testing.assert_close(points(model, x, "hidden"), expected, rtol=1e-12, atol=1e-12)


@native
def test_a_step_that_cancels_h(seed: int) -> None:
    """||h||^2 would lose its digits in the recurrence, and might become negative."""
    torch.manual_seed(seed)
    model = shallow(3, torch.float64)
    with torch.no_grad():  # a linear function nearby: the gradient is one vector for all rows
        model.hidden.weight.mul_(1e-3)
        model.hidden.bias.fill_(1.0)
        direction = model.hidden.weight.T @ model.logit.weight[0]
    # Not nearer: the digits of h itself would be gone.
    near = 1e-4 + 1e-3 * torch.rand(64, 1, dtype=torch.float64)
    h = -direction / direction.norm() * (1 + near)
    weight, step = model.hidden.weight.detach(), 1.0
    v = model.logit.weight.detach().expand(64, -1).contiguous()
    rows = HiddenRows(weight, h.contiguous().clone())
    rows.step(v, step, torch.full((64,), 0.5, dtype=torch.float64), 2.0, True)
    exact = drocc_ext.ops.l2_shell_step(h, v @ weight, step, 0.5, 2.0)
    torch.testing.assert_close(rows.point(), exact, rtol=1e-9, atol=1e-9)


@native
@pytest.mark.parametrize("network", (shallow, deep))
def test_radius_per_row_and_bad_rows(network: Any, seed: int) -> None:
    torch.manual_seed(seed)
    model, x = network(6, torch.float64), torch.randn(12, 6, dtype=torch.float64)
    radius = torch.rand(12, dtype=torch.float64) + 0.5
    radius[[3, 8]] = torch.tensor([math.nan, -1.0], dtype=torch.float64)
    expected = points(model, x, "autograd", radius=radius)
    found = points(model, x, "hidden", radius=radius)
    assert bool(found[[3, 8]].isnan().all())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9, equal_nan=True)


@native
def test_auto_leaves_the_network_alone_where_it_can(seed: int) -> None:
    torch.manual_seed(seed)
    model, x = shallow(6, torch.float32), torch.randn(8, 6)
    calls = []
    points(model, x, "auto")
    hook = model.register_forward_hook(lambda *args: calls.append(1))
    points(model, x, "auto")
    assert len(calls) == 10  # a hook must see its forwards
    hook.remove()
    with drocc_ext.use_backend("eager"):
        eager = points(model, x, "auto")
    torch.testing.assert_close(points(model, x, "auto"), eager, rtol=1e-3, atol=1e-3)


def test_hidden_says_what_it_needs() -> None:
    x = torch.randn(4, 6)
    sigma = torch.ones(6)
    convolution = nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 1, 6), nn.Flatten())
    tanh = nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 1))
    for model, settings in ((convolution, {}), (tanh, {"sigma": sigma})):
        with pytest.raises(ValueError, match=r"'hidden' needs rows \[B, D\] and a multilayer"):
            points(model, x, "hidden", **settings)
    with pytest.raises(ValueError, match="method must be one of auto"):
        points(shallow(6, torch.float32), x, "fast")
    with pytest.raises(TypeError, match="method 'compiled' needs a module"):
        adversarial_search(
            lambda x: x.sum(1), x, radius=1.0, step_size=0.1, num_steps=1, method="compiled"
        )


def test_compiled_is_autograd_and_serves_other_batches(seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(),
        nn.Linear(12, 1),
    )  # fmt: skip
    torch._dynamo.reset()
    compiled_gradient.cache_clear()
    torch._dynamo.utils.counters.clear()
    for rows in (8, 5, 3, 6, 7):
        x = torch.randn(rows, 16)
        expected = points(model, x, "autograd", num_steps=3)
        assert worst(points(model, x, "compiled", num_steps=3), expected, x) < 1e-4
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2
    with torch.no_grad():  # new weights, the same compiled code
        model[1].weight.mul_(3.0)
    x = torch.randn(6, 16)
    expected = points(model, x, "autograd", num_steps=3)
    assert worst(points(model, x, "compiled", num_steps=3), expected, x) < 1e-4
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


class Doubled(nn.Sequential):
    """A Sequential that does not only pass its input on."""

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = super().forward(2 * x)
        return result


def test_a_forward_of_its_own_is_not_taken_for_its_layers(seed: int) -> None:
    torch.manual_seed(seed)
    model = Doubled(nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = torch.randn(9, 64, dtype=torch.float64)
    torch.testing.assert_close(points(model, x, "auto"), points(model, x, "autograd"))
    with pytest.raises(ValueError, match="method 'hidden' needs"):
        points(model, x, "hidden")


@native
@pytest.mark.parametrize("network", (shallow, deep))
@pytest.mark.parametrize("layout", ("one row", "transposed", "expanded", "every other"))
def test_any_layout_of_x(network: Any, layout: str, seed: int) -> None:
    torch.manual_seed(seed)
    model, x = network(6, torch.float64), torch.randn(8, 6, dtype=torch.float64)
    x = {
        "one row": x[:1],
        "transposed": x.T.contiguous().T,
        "expanded": x[:1].expand(8, 6),
        "every other": x.repeat_interleave(2, 1)[:, ::2],
    }[layout]
    expected = points(model, x, "autograd")
    torch.testing.assert_close(points(model, x, "hidden"), expected, rtol=1e-9, atol=1e-9)
    assert points(model, x[:0], "hidden").shape == (0, 6)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_half_types_are_differentiated(dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    model, x = shallow(6, dtype), torch.randn(8, 6).to(dtype)
    assert torch.equal(points(model, x, "auto"), points(model, x, "autograd"))
    with pytest.raises(ValueError, match="method 'hidden' needs"):
        points(model, x, "hidden")


@pytest.mark.parametrize(
    ("inputs", "units", "rows", "pays"),
    [(784, 128, 256, True), (64, 16, 256, False), (784, 128, 64, False), (784, 512, 256, False)],
)
def test_when_a_search_behind_a_first_layer_pays(
    inputs: int, units: int, rows: int, pays: bool
) -> None:
    assert gradients._pays(nn.Linear(inputs, units), rows) is pays
