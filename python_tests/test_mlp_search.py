"""All steps of a search in a deep ReLU network in one operator: against autograd, step by step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from processes import run_tests
from torch import Tensor
from torch.nn import functional as F

from drocc_ext.ops import _library, project_l2_shell, project_mahalanobis_shell
from drocc_ext.ops.eager.mlp_search import mlp_search

pytestmark = pytest.mark.skipif(
    _library.native_error("cpu") is not None, reason="needs the compiled operator"
)

F32, F64 = torch.float32, torch.float64


class Network(NamedTuple):
    weights: list[Tensor]
    biases: list[Tensor | None]
    slopes: list[float]
    output: Tensor

    def logit(self, x: Tensor) -> Tensor:
        for weight, bias, slope in zip(self.weights, self.biases, self.slopes, strict=True):
            x = F.leaky_relu(F.linear(x, weight, bias), slope)
        return x @ self.output

    def to(self, dtype: torch.dtype) -> Network:
        biases = [None if bias is None else bias.to(dtype) for bias in self.biases]
        weights = [weight.to(dtype) for weight in self.weights]
        return Network(weights, biases, self.slopes, self.output.to(dtype))


def made(
    widths: Sequence[int],
    generator: torch.Generator,
    *,
    slopes: Sequence[float] | None = None,
    bias: bool = True,
    dtype: torch.dtype = F64,
) -> Network:
    def uniform(*shape: int) -> Tensor:
        values = torch.rand(*shape, generator=generator, dtype=F64) * 2 - 1
        return (values / math.sqrt(shape[-1])).to(dtype)

    pairs = list(zip(widths[1:], widths[:-1], strict=True))
    weights = [uniform(units, entering) for units, entering in pairs]
    biases = [uniform(units) if bias else None for units, _ in pairs]
    return Network(weights, biases, list(slopes or [0.0] * len(pairs)), uniform(widths[-1]))


def rows(
    count: int, width: int, generator: torch.Generator, dtype: torch.dtype = F64
) -> tuple[Tensor, Tensor]:
    x, h = (torch.randn(count, width, generator=generator, dtype=F64).to(dtype) for _ in range(2))
    return x, h


def searched(net: Network, x: Tensor, h: Tensor, **options: Any) -> Tensor:
    """The operator's end point; checks what it returns besides."""
    end = h.clone()
    clean, adv = torch.ops.drocc._mlp_search(
        end, x, net.weights, net.biases, net.slopes, net.output, *_arguments(x, options)
    )
    bad = end.isnan().any(1) | x.isnan().any(1)
    tolerance = 1e-12 if x.dtype is F64 else 2e-5
    for z, points in ((clean, x), (adv, x + end)):
        wanted = F.linear(points, net.weights[0], net.biases[0])
        scale = wanted[~bad].abs().max() if (~bad).any() else 1.0
        assert bool(((z - wanted)[~bad].abs() <= tolerance * scale).all())
    assert bool(adv[bad].isnan().all())
    return end


def _arguments(x: Tensor, options: dict[str, Any]) -> tuple[Any, ...]:
    given = {
        "sigma": None,
        "step_size": 0.02 * math.sqrt(x.shape[1]),
        "num_steps": 20,
        "project_every": 1,
        "radius": math.sqrt(x.shape[1]),
        "radius_rows": None,
        "gamma": 2.0,
        "grid_points": 0,
        "project_last": True,
    } | options
    assert len(given) == 9
    return tuple(given.values())


def by_autograd(net: Network, x: Tensor, h: Tensor, **options: Any) -> Tensor:
    sigma, step_size, num_steps, every, radius, radii, gamma, grid, last = _arguments(x, options)
    for step in range(1, num_steps + 1):
        points = (x + h).requires_grad_()
        (grad,) = torch.autograd.grad(net.logit(points).sum(), points)
        length = grad.norm(dim=1, keepdim=True)
        h = h + step_size * torch.where(length == 0, torch.zeros_like(grad), grad / length)
        if step % every and not (last and step == num_steps):
            continue
        r = radius if radii is None else radii
        if sigma is None:
            h = project_l2_shell(h, r, gamma)
        else:
            solver = {"solver": "grid", "grid_points": grid} if grid else {}
            h = project_mahalanobis_shell(h, sigma, r, gamma, **solver)
    return h


def relative(actual: Tensor, wanted: Tensor) -> Tensor:
    """Error per row; infinite where only one is NaN, 0 where both are."""
    error = (actual - wanted).norm(dim=1) / wanted.norm(dim=1)
    both = actual.isnan().any(1) & wanted.isnan().any(1)
    return torch.where(both, 0.0, error.nan_to_num(nan=math.inf))


def check(net: Network, x: Tensor, h: Tensor, tolerance: float = 1e-9, **options: Any) -> None:
    wanted = by_autograd(net, x, h, **options)
    assert float(relative(searched(net, x, h, **options), wanted).max()) <= tolerance


WIDTHS = {
    "1": [6, 40],
    "1-wide-inputs": [70, 40],
    "1-one-input": [1, 3],
    "1-hundreds": [200, 140],
    "2": [6, 32, 48],
    "2-wide-inputs": [90, 33, 17],
    "2-one-unit": [5, 1, 1],
    "2-hundreds": [20, 130, 260],
    "2-few-inputs": [3, 70, 50],
    "3": [7, 31, 20, 45],
    "3-wide-inputs": [80, 40, 64, 65],
    "3-few-inputs": [2, 60, 45, 90],
    "4": [9, 20, 19, 18, 17],
    "4-few-inputs": [1, 40, 30, 37, 40],
}
WALKS = {
    "short steps": {"num_steps": 90, "step_size": 0.01},
    "long steps": {"num_steps": 5, "step_size": 0.6},
    "every tenth": {"num_steps": 35, "project_every": 10},
    "no last": {"num_steps": 25, "project_every": 10, "project_last": False},
    "on the sphere": {"gamma": 1.0},
    "no outer radius": {"gamma": math.inf, "step_size": 0.3},
}


@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize("widths", WIDTHS)
def test_walks_as_autograd_does(widths: str, walk: str, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    net = made(WIDTHS[widths], g)
    check(net, *rows(37, WIDTHS[widths][0], g), **WALKS[walk])


@pytest.mark.parametrize("widths", ["1", "2", "2-wide-inputs", "3", "4"])
@pytest.mark.parametrize("bias", [True, False])
def test_leaky_units_and_none_biases(widths: str, bias: bool, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    layers = len(WIDTHS[widths]) - 1
    for slopes in ([0.01, 0.3, 0.0, 1.5], [0.0, 0.2, 0.1, 0.0], [-0.1, 0.0, 0.0, 0.2]):
        net = made(WIDTHS[widths], g, slopes=slopes[:layers], bias=bias)
        check(net, *rows(19, WIDTHS[widths][0], g), num_steps=40)


@pytest.mark.parametrize("widths", ["1", "2", "2-wide-inputs", "3"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("grid", [0, 64])
def test_mahalanobis(widths: str, shared: bool, grid: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    net = made(WIDTHS[widths], g)
    x, h = rows(21, WIDTHS[widths][0], g)
    sigma = torch.rand(x.shape[1:] if shared else x.shape, generator=g, dtype=F64) + 0.1
    for every in (1, 4):
        options = {"sigma": sigma, "grid_points": grid, "project_every": every, "num_steps": 30}
        check(net, x, h, **options)


@pytest.mark.parametrize("widths", ["1", "2-wide-inputs", "2-few-inputs", "3"])
def test_a_radius_for_each_row(widths: str, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    net = made(WIDTHS[widths], g)
    x, h = rows(23, WIDTHS[widths][0], g)
    radii = torch.rand(23, generator=g, dtype=F64) * 3 + 0.1
    check(net, x, h, radius_rows=radii)
    check(net, x, h, radius_rows=radii, sigma=torch.ones_like(x))


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("sigma", [False, True])
def test_float32(widths: str, sigma: bool, seed: int) -> None:
    """Rounding may switch a unit early or late, in few rows; those too end on the shell."""
    g = torch.Generator().manual_seed(seed)
    net = made(WIDTHS[widths], g, dtype=F32)
    x, h = rows(200, WIDTHS[widths][0], g, F32)
    options: dict[str, Any] = {"num_steps": 50, "gamma": 1.5}
    wide = {"sigma": torch.rand(x.shape[1], generator=g, dtype=F64) + 0.1} if sigma else {}
    narrow = {name: value.float() for name, value in wide.items()}
    end = searched(net, x, h, **options, **narrow)
    wide = {name: value.double() for name, value in narrow.items()}
    wanted = by_autograd(net.to(F64), x.double(), h.double(), **options, **wide)
    error = relative(end.double(), wanted)
    assert float(error.median()) < 2e-6
    assert float((error > 1e-4).double().mean()) < 0.06
    length = (end.double().square() * wide.get("sigma", 1.0)).sum(1).sqrt() / math.sqrt(x.shape[1])
    assert float(length.min()) > 1 - 1e-6
    assert float(length.max()) < 1.5 * (1 + 1e-6)


@pytest.mark.parametrize("widths", ["1", "2", "2-wide-inputs", "3", "4"])
@pytest.mark.parametrize("sigma", [False, True])
def test_the_eager_form(widths: str, sigma: bool, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    layers = len(WIDTHS[widths]) - 1
    net = made(WIDTHS[widths], g, slopes=[0.0, 0.1, 0.0, 0.0][:layers])
    x, h = rows(11, WIDTHS[widths][0], g)
    options = {"sigma": torch.rand(x.shape[1], generator=g, dtype=F64)} if sigma else {}
    end = h.clone()
    arguments = (net.weights, net.biases, net.slopes, net.output, *_arguments(x, options))
    clean, adv = mlp_search(end, x, *arguments)
    assert float(relative(end, by_autograd(net, x, h, **options)).max()) < 1e-9
    wanted = h.clone()
    both = torch.ops.drocc._mlp_search(wanted, x, *arguments)
    for actual, other in zip((clean, adv, end), (*both, wanted), strict=True):
        torch.testing.assert_close(actual, other, rtol=1e-9, atol=1e-9)


# ---- edges ------------------------------------------------------------------------------------


@pytest.mark.parametrize("widths", ["1-wide-inputs", "2", "2-wide-inputs", "3-few-inputs", "3"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_row_becomes_nan_alone(widths: str, bad: float, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    net = made(WIDTHS[widths], g, dtype=F32)
    x, h = rows(40, WIDTHS[widths][0], g, F32)
    wanted = searched(net, x, h)
    x[3, 1] = bad
    h[20, 0] = bad
    radii = torch.full((40,), math.sqrt(x.shape[1]))
    radii[33] = bad
    end = searched(net, x, h, radius_rows=radii)
    spoiled = torch.tensor([3, 20, 33])
    assert bool(end[spoiled].isnan().all())
    kept = torch.ones(40, dtype=torch.bool)
    kept[spoiled] = False
    assert torch.equal(end[kept], wanted[kept])


@pytest.mark.parametrize("where", [0, 1, "bias", "output"])
def test_a_bad_weight_makes_every_row_nan(where: int | str, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    net = made(WIDTHS["2"], g)
    if where == "output":
        net.output[2] = math.inf
    elif where == "bias":
        assert net.biases[1] is not None
        net.biases[1][0] = math.nan
    else:
        net.weights[int(where)][0, 0] = math.nan
    x, h = rows(5, 6, g)
    end = h.clone()
    arguments = (net.weights, net.biases, net.slopes, net.output, *_arguments(x, {}))
    torch.ops.drocc._mlp_search(end, x, *arguments)
    assert bool(end.isnan().all())


@pytest.mark.parametrize(
    "widths", ["1", "1-wide-inputs", "2", "2-wide-inputs", "3-few-inputs", "3"]
)
def test_rows_without_a_gradient_do_not_ascend(widths: str, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    net = made(WIDTHS[widths], g)
    x, h = rows(12, WIDTHS[widths][0], g)
    off = Network(net.weights, [torch.full((w.shape[0],), -1e3) for w in net.weights], *net[2:])
    off = off.to(F64)
    still = Network(*net[:3], torch.zeros_like(net.output))
    h[5] = 0
    for other in (off, still):
        radius = math.sqrt(x.shape[1])
        wanted = project_l2_shell(h, radius, 2.0)
        torch.testing.assert_close(searched(other, x, h), wanted, rtol=1e-12, atol=1e-12)
        assert float(wanted[5, 0]) == radius
        torch.testing.assert_close(searched(other, x, h, project_every=50, project_last=False), h)


def test_a_unit_at_zero_is_off() -> None:
    """At 0 the slope is that of the negative side; whole numbers make every sum exact."""
    weights = [torch.tensor([[1.0, -1.0], [2.0, 1.0], [-1.0, 3.0]], dtype=F64)]
    x = torch.tensor([[1.0, 1.0], [1.0, -2.0], [3.0, 1.0]], dtype=F64)  # a unit at 0 in each row
    for slope in (0.0, 0.25):
        net = Network(weights, [None], [slope], torch.tensor([1.0, -2.0, 4.0], dtype=F64))
        check(net, x, torch.zeros_like(x), 1e-15, num_steps=1, step_size=1.0, radius=0.5)
        again = Network([*weights, torch.eye(3, dtype=F64)], [None, None], [slope, 0.0], net.output)
        check(again, x, torch.zeros_like(x), 1e-15, num_steps=1, step_size=1.0, radius=0.5)


@pytest.mark.parametrize("widths", ["1-wide-inputs", "2", "2-wide-inputs", "3-few-inputs", "4"])
@pytest.mark.parametrize("scales", [(1e-22, 1e12), (1e-22, 1e-10), (1e16, 1e-24), (1e-37, 1.0)])
def test_tiny_and_large_weights(widths: str, scales: tuple[float, float], seed: int) -> None:
    """Squares of such weights leave the range of float32."""
    g = torch.Generator().manual_seed(seed)
    net = made(WIDTHS[widths], g, dtype=F32, bias=False)
    x, h = rows(100, WIDTHS[widths][0], g, F32)
    wanted = by_autograd(net.to(F64), x.double(), h.double())
    scaled = Network(
        [net.weights[0] * scales[0], *net.weights[1:]], *net[1:3], net.output * scales[1]
    )
    error = relative(searched(scaled, x, h).double(), wanted)
    assert float(error.median()) < 2e-6
    assert float((error > 1e-4).double().mean()) < 0.06


@pytest.mark.parametrize(
    "widths", ["1-wide-inputs", "2-wide-inputs", "3-wide-inputs", "2-few-inputs"]
)
def test_units_whose_gradients_cancel(widths: str, seed: int) -> None:
    """Every unit twice with opposite weights of the logit, nearly: <v, G v> cancels."""
    g = torch.Generator().manual_seed(seed)
    net = made(WIDTHS[widths], g)
    first = net.weights[0]
    first[1::2] = first[0 : 2 * (len(first) // 2) : 2] * (1 + 1e-7)
    if len(net.weights) > 1:
        net.weights[1][:, 1::2] = -net.weights[1][:, 0 : 2 * (len(first) // 2) : 2]
    else:
        net.output[1::2] = -net.output[0 : 2 * (len(first) // 2) : 2]
    check(net, *rows(20, len(first[0]), g), 1e-6)


def test_steps_that_lead_through_the_origin(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    for widths in map(WIDTHS.__getitem__, ("1-wide-inputs", "2-wide-inputs", "2-few-inputs", "2")):
        net = made(widths, g)
        x, h = rows(20, widths[0], g)
        points = (x + h).requires_grad_()
        (grad,) = torch.autograd.grad(net.logit(points).sum(), points)
        unit = grad / grad.norm(dim=1, keepdim=True)
        base = -0.5 * unit * torch.linspace(0.99, 1.01, 20, dtype=F64)[:, None]
        check(net, x + h - base, base, 1e-6, step_size=0.5, num_steps=4, radius=0.4)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("widths", [[1, 3], [1, 40, 30, 37, 40], [64, 5], [9, 20, 19]])
def test_steps_that_a_projection_undoes_again_and_again(
    widths: list[int], dtype: torch.dtype
) -> None:
    """An error of ||h|| is not to grow, factor by factor, while each step leads inwards.

    One across h does, in any arithmetic, so that all coordinates have to be rounded alike: there
    are whole vectors of many, or few.
    """
    weights = [torch.full((n, k), 1 / k, dtype=dtype) for k, n in itertools.pairwise(widths)]
    count = len(weights)
    net = Network(weights, [None] * count, [0.0] * count, torch.ones(widths[-1], dtype=dtype))
    root = math.sqrt(widths[0])
    x = torch.linspace(5, 9, 8, dtype=dtype)[:, None].expand(8, widths[0]).contiguous()
    h = torch.full_like(x, -1.0)
    options = {"step_size": 0.3 * root, "num_steps": 60, "radius": root, "gamma": math.inf}
    torch.testing.assert_close(searched(net, x, h, **options), torch.full_like(x, -1.0))


@pytest.mark.parametrize("slope", [0.0, 0.25])
@pytest.mark.parametrize("layers", [1, 2])
def test_steps_to_and_fro_keep_their_length(layers: int, slope: float) -> None:
    """A row between a kink and the sphere: ||g||^2 of the units' sums would cancel on one side."""
    weights = [torch.tensor([[0.8351], [-0.8062], [0.4175]]), torch.eye(3)][:layers]
    biases = [torch.tensor([0.7, 1.25, 0.35]), torch.zeros(3)][:layers]
    output = torch.tensor([-0.4383, -0.2691, 0.2226])
    net = Network(weights, biases, [0.0, slope][:layers], output)
    x = torch.linspace(-1.3, 1.3, 40)[:, None]
    options = {"step_size": 0.9, "num_steps": 400, "radius": 1.0}
    for sign in (-1.0, 1.0):
        h = torch.full_like(x, sign)
        wanted = by_autograd(net.to(F64), x.double(), h.double(), **options)
        error = relative(searched(net, x, h, **options).double(), wanted)
        assert float((error > 5e-6).double().mean()) <= 0.05


def test_weights_of_nearly_one_rank_keep_the_length_of_steps() -> None:
    """Sums among units that cancel to a fifth would lose 1e-3 and more in 100 steps of float32."""
    options = {"step_size": 4.0, "num_steps": 100}
    errors = []
    for seed in range(3):
        g = torch.Generator().manual_seed(seed)
        net = made([20, 12, 12], g)
        factors = [torch.randn(*shape, generator=g, dtype=F64) for shape in ((12, 1), (1, 20))]
        net.weights[0].mul_(1e-3).add_(factors[0] @ factors[1] / 10)
        net = net.to(F32)
        x, h = rows(16, 20, g, F32)
        wanted = by_autograd(net.to(F64), 3 * x.double(), h.double(), **options)
        errors.append(relative(searched(net, 3 * x, h, **options).double(), wanted))
    assert float((torch.cat(errors) > 1e-4).double().mean()) < 0.06


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17])
def test_numbers_of_rows_and_steps(count: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    net = made(WIDTHS["2"], g)
    x, h = rows(count, 6, g)
    if count:
        check(net, x, h)
    assert torch.equal(searched(net, x, h, num_steps=0), h)


@pytest.mark.parametrize("widths", ["2", "3-wide-inputs"])
def test_wide_layers(widths: str, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    net = made([WIDTHS[widths][0], 1300, 700], g)
    check(net, *rows(5, WIDTHS[widths][0], g), num_steps=4)


@pytest.mark.parametrize("sigma", [False, True])
@pytest.mark.parametrize("widths", [[12, 128, 100], [200, 300]])
def test_neither_threads_nor_neighbors_change_a_bit(
    widths: list[int], sigma: bool, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    net = made(widths, g, dtype=F32)
    x, h = rows(301, widths[0], g, F32)
    options = {"sigma": torch.rand(widths[0], generator=g)} if sigma else {}
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        wanted = searched(net, x, h, **options)
        torch.set_num_threads(4)
        assert torch.equal(searched(net, x, h, **options), wanted)
        assert torch.equal(searched(net, x[100:207], h[100:207], **options), wanted[100:207])
    finally:
        torch.set_num_threads(threads)


def test_some_walks_on_another_instruction_set() -> None:
    """The quick tier's share of the next test."""
    run_tests([Path(__file__)], "walks_as_autograd and 2-wide", 6, DROCC_CPU_ISA="generic")


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512"])
def test_every_instruction_set(isa: str) -> None:
    wanted = "(walks_as_autograd or float32 or bad_row or mahalanobis) and (1-wide or 2-wide or 3)"
    # Memory that the kernels allocate comes filled with other bytes than 0.
    run_tests([Path(__file__)], wanted, 20, DROCC_CPU_ISA=isa, MALLOC_PERTURB_="170")


def test_what_it_refuses(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    net = made(WIDTHS["2"], g)
    x, h = rows(3, 6, g)

    def refused(message: str, **changes: Any) -> None:
        given = dict(h=h, x=x, weights=net.weights, biases=net.biases, slopes=net.slopes)
        given |= {"output": net.output}
        given |= {name: value for name, value in changes.items() if name in given}
        rest = {name: value for name, value in changes.items() if name not in given}
        with pytest.raises(RuntimeError, match=message):
            torch.ops.drocc._mlp_search(*given.values(), *_arguments(x, rest))

    refused("x must have the shape of h", x=x[:2])
    refused("x must not share memory with h", x=h)
    refused("float32 or float64", h=h.half(), x=x.half())
    refused(r"weights must be of 1 to 4 hidden layers, got 0", weights=[])
    refused(r"weights\[1\] must have shape \[units, 32\]", weights=[net.weights[0]] * 2)
    refused("biases must have one entry per layer, 2, got 1", biases=[None])
    refused(r"biases\[0\] must have shape \[32\]", biases=[net.output, None])
    refused("negative_slopes must be finite", slopes=[math.nan, 0.0])
    refused(r"output must have shape \[48\]", output=net.output[:3])
    refused("weights must have the dtype of h", weights=[w.float() for w in net.weights])
    refused("num_steps must be >= 0, got -1", num_steps=-1)
    refused("project_every must be >= 1, got 0", project_every=0)
    refused("gamma must be >= 1", gamma=0.5)
    refused("radius must be", radius=0.0)
    refused(r"sigma must have shape \[6\]", sigma=torch.ones(5, dtype=F64))
    refused("grid_points must be 0 or >= 2, got 1", grid_points=1)
