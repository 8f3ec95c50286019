"""The CUDA kernels: every regime against the CPU, derivatives, streams, graphs, devices, sizes.

The suites of the operators run on CUDA too (implementation "cuda"); this file has what only a GPU
can show.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import DTYPES, lay_out, on_cuda
from torch import Tensor

import drocc_ext
from drocc_ext import DROCCLoss, ops
from drocc_ext.models import networks
from drocc_ext.search import SearchConfig
from drocc_ext.search.mlp.match import MLPLayers, find_mlp
from drocc_ext.search.mlp.search import mlp_search

pytestmark = pytest.mark.cuda

# Short, medium and long rows of every kernel family, odd lengths, and the borders between regimes.
LENGTHS = (1, 2, 6, 31, 64, 257, 274, 512, 513, 784, 1000, 1024, 1025, 3072, 6144, 6148, 6150)
LONG = (12288, 16384, 20480, 32768, 40001, 150528, 200000, 400000, 600000)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 2e-3, torch.bfloat16: 2e-2}
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


def inputs(shape: tuple[int, int], dtype: torch.dtype, seed: int) -> tuple[Tensor, ...]:
    """h on both sides of a shell of radius sqrt(D), grad, sigma, upstream, radii."""
    generator = torch.Generator().manual_seed(seed)
    h, grad, upstream = torch.randn((3, *shape), generator=generator, dtype=torch.float64)
    h = h * torch.tensor([0.4, 1.2, 3.0]).repeat(shape[0])[: shape[0], None]
    sigma = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.2
    radius = shape[1] ** 0.5 * (0.9 + 0.2 * torch.rand(shape[0], generator=generator).double())
    radius = radius if dtype == torch.float64 else radius.float()
    return (*(t.to(dtype) for t in (h, grad, sigma, upstream)), radius)


CALLS: dict[str, Callable[..., Tensor]] = {
    "ascent": lambda h, g, s, r: ops.normalized_ascent(h, g, 0.7),
    "project": lambda h, g, s, r: ops.project_l2_shell(h, r, 1.5),
    "step": lambda h, g, s, r: ops.l2_shell_step(h, g, 0.7, r, 1.5),
    "mahalanobis project": lambda h, g, s, r: ops.project_mahalanobis_shell(h, s, r, 1.5),
    "mahalanobis step": lambda h, g, s, r: ops.mahalanobis_shell_step(h, g, s, 0.7, r, 1.5),
    "norm": lambda h, g, s, r: ops.mahalanobis_norm(h, s),
    "influence": lambda h, g, s, r: ops.influence(g),
}
calls = pytest.mark.parametrize("call", CALLS)


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    actual, expected = actual.detach().cpu().double(), expected.detach().double()
    size = expected.abs().amax().clamp_min(1e-30) if expected.numel() else 1.0
    assert float((actual - expected).abs().max() / size) <= TOLERANCE[dtype]


def compare(call: str, shape: tuple[int, int], dtype: torch.dtype, seed: int) -> None:
    h, grad, sigma, upstream, radius = inputs(shape, dtype, seed)
    results = []
    for device in ("cpu", "cuda"):
        leaves = [t.to(device).requires_grad_() for t in (h, grad, sigma, radius)]
        with drocc_ext.use_backend("native"):
            out = CALLS[call](*leaves)
        up = upstream[:, 0].to(out.dtype) if out.dim() == 1 else upstream
        taken = torch.autograd.grad(out, leaves, up.to(device), allow_unused=True)
        results.append([out, *(t for t in taken if t is not None)])
    for expected, actual in zip(*results, strict=True):
        assert actual.is_cuda and actual.dtype == expected.dtype
        close(actual, expected, dtype)


@calls
@dtypes
@pytest.mark.parametrize("length", LENGTHS)
def test_values_and_gradients(call: str, dtype: torch.dtype, length: int, seed: int) -> None:
    compare(call, (5, length), dtype, seed)


@calls
@dtypes
@pytest.mark.parametrize("length", LONG)
def test_long_rows(call: str, dtype: torch.dtype, length: int, seed: int) -> None:
    compare(call, (3, length), dtype, seed)


@calls
def test_many_short_rows(call: str, seed: int) -> None:
    for length in (2, 6, 100, 784):
        compare(call, (20000, length), torch.float32, seed)


@calls
@pytest.mark.parametrize("layout", ["misaligned", "sliced", "transposed"])
@dtypes
def test_layouts(call: str, layout: str, dtype: torch.dtype, seed: int) -> None:
    h, grad, sigma, _, radius = inputs((5, 64), dtype, seed)
    expected = CALLS[call](h, grad, sigma, radius)
    laid = [lay_out(t, layout) for t in (h, grad, sigma)]
    close(CALLS[call](*on_cuda(*laid, radius)), expected, dtype)


@pytest.mark.parametrize("solver", ["newton", "grid"])
def test_shared_sigma_and_the_grid(solver: Any, seed: int) -> None:
    h, _, sigma, _, radius = inputs((64, 300), torch.float32, seed)
    expected = ops.project_mahalanobis_shell(h.double(), sigma[0].double(), radius.double(), 1.5)
    got = ops.project_mahalanobis_shell(h.cuda(), sigma[0].cuda(), radius.cuda(), 1.5, solver)
    if solver == "newton":
        close(got, expected, torch.float32)
    lengths = (sigma[0].double() * got.cpu().double() ** 2).sum(1).sqrt() / radius
    assert (lengths >= 1 - 1e-5).all() and (lengths <= 1.5 * (1 + 1e-5)).all()


@pytest.mark.parametrize("length", [37, 3072, 150528])
def test_graph_capture(length: int, seed: int) -> None:
    start, grad, sigma, _, radius = on_cuda(*inputs((7, length), torch.float32, seed))
    h = start.clone()

    def steps() -> None:
        ops.l2_shell_step_(h, grad, 0.7, radius, 1.5)
        ops.mahalanobis_shell_step_(h, grad, sigma, 0.7, radius, 1.5)

    with torch.no_grad():
        steps()
        expected = h.clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            steps()
        for _ in range(3):
            h.copy_(start)
            graph.replay()
            assert torch.equal(h, expected)


def test_the_current_stream_is_used(seed: int) -> None:
    h, grad, _, _, radius = on_cuda(*inputs((64, 3072), torch.float32, seed))
    expected = ops.l2_shell_step(h, grad, 0.7, radius, 1.5)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream), torch.no_grad():
        late = torch.full_like(h, float("nan"))
        torch.cuda._sleep(50_000_000)
        late.copy_(h)  # a kernel on another stream would run before this
        ops.l2_shell_step_(late, grad, 0.7, radius, 1.5)
    stream.synchronize()
    assert torch.equal(late, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second GPU")
@calls
def test_second_device(call: str, seed: int) -> None:
    arguments = inputs((5, 3072), torch.float32, seed)
    tensors = [arguments[k] for k in (0, 1, 2, 4)]
    got = CALLS[call](*on_cuda(*tensors, device="cuda:1"))
    assert got.device.index == 1 and torch.cuda.current_device() == 0
    close(got, CALLS[call](*tensors), torch.float32)


def test_more_than_2_to_the_31_elements() -> None:
    batch, length = 2**20 + 3, 2048
    if torch.cuda.mem_get_info()[0] < 3 * 2 * batch * length:
        pytest.skip("needs 13 GB of free GPU memory")
    h = torch.ones(batch, length, dtype=torch.bfloat16, device="cuda")
    with torch.no_grad():
        ops.project_l2_shell_(h, 0.5 * length**0.5, 1.0)
        assert bool((h == 0.5).all())
        ops.project_mahalanobis_shell_(h, torch.ones_like(h[0]), length**0.5, 1.0)
        assert bool((h == 1.0).all())


@calls
def test_results_do_not_change_from_run_to_run(call: str, seed: int) -> None:
    for length in (100, 3072, 150528):
        tensors = on_cuda(*inputs((9, length), torch.float32, seed))
        arguments = [tensors[k] for k in (0, 1, 2, 4)]
        first = CALLS[call](*arguments)
        for _ in range(5):
            assert torch.equal(CALLS[call](*arguments), first)


# ---- the search in hidden space: a row by a warp, by a block, and with its units in device memory


def search(
    layers: MLPLayers,
    x: Tensor,
    start: Tensor,
    radius: float | Tensor,
    sigma: Tensor | None = None,
) -> Tensor:
    settings = SearchConfig(
        radius=radius,
        gamma=1.5,
        step_size=0.1,
        num_steps=40,
        project_every=3,
        project_last=True,
    )
    return mlp_search(layers, x, start.clone(), sigma, settings)


@pytest.mark.parametrize(
    "features, units, rows",
    [(6, 9, 5), (6, 128, 5), (274, 128, 5), (20, 100, 5000), (40, 1100, 5), (30, 6500, 3)],
)
def test_hidden_search(features: int, units: int, rows: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = networks.MLP(features, units).double()
    x, start = torch.randn(2, rows, features, dtype=torch.float64)
    radius = 1.0 + torch.rand(rows, dtype=torch.float64)
    x[1, 0], start[2] = float("nan"), 0.0
    layers = find_mlp(model)
    again = find_mlp(copy.deepcopy(model).cuda())
    assert layers is not None and again is not None
    expected = search(layers, x, start, radius)
    ends = [search(again, *on_cuda(x, start, radius)) for _ in range(2)]
    assert torch.equal(ends[0].nan_to_num(), ends[1].nan_to_num())
    assert bool(ends[0][1].isnan().all()) and bool(expected[1].isnan().all())
    # Rounding may switch a unit in a few rows, which then end elsewhere.
    away = (ends[0].cpu() - expected).norm(dim=1) / expected.norm(dim=1)
    assert float((away.nan_to_num() > 1e-8).double().mean()) < 0.01


# Weights held by a block of few rows, and of many; read from the caches, likewise; rows in device
# memory, in several launches.
@pytest.mark.parametrize("metric", ["l2", "one sigma", "sigma of each row"])
@pytest.mark.parametrize(
    "features, units, rows",
    [
        (6, [128, 128], 5),
        (30, [20, 64, 33, 7], 2000),
        (274, [256, 256, 256], 40),
        (64, [300, 100], 301),
        (12000, [5, 3], 700),
    ],
)
def test_mlp_search(features: int, units: list[int], rows: int, metric: str, seed: int) -> None:
    torch.manual_seed(seed)
    model = networks.MLP(features, units).double()
    x, start = torch.randn(2, rows, features, dtype=torch.float64)
    radius = features**0.5 * (1.0 + torch.rand(rows, dtype=torch.float64))
    sigma = 0.5 + torch.rand(rows, features, dtype=torch.float64)
    weights = {"l2": None, "one sigma": sigma[0], "sigma of each row": sigma}[metric]
    x[1, 0], start[2] = float("nan"), 0.0
    layers, again = find_mlp(model), find_mlp(copy.deepcopy(model).cuda())
    assert layers is not None and again is not None
    expected = search(layers, x, start, radius, weights)
    moved = None if weights is None else weights.cuda()
    ends = [search(again, *on_cuda(x, start, radius), moved) for _ in range(2)]
    assert torch.equal(ends[0].nan_to_num(), ends[1].nan_to_num())
    assert bool(ends[0][1].isnan().all()) and bool(expected[1].isnan().all())
    away = (ends[0].cpu() - expected).norm(dim=1) / expected.norm(dim=1)
    assert float((away.nan_to_num() > 1e-8).double().mean()) < 0.01


def test_a_loss_searches_by_the_operator(seed: int) -> None:
    torch.manual_seed(seed)
    model = networks.MLP(30, [64, 64]).double()
    x = torch.randn(50, 30, dtype=torch.float64)
    loss = DROCCLoss(SearchConfig(5.0, 0.5, 5, noise_scale=0.0))
    found: dict[str, list[Tensor]] = {}
    for device in ("cpu", "cuda"):
        net = copy.deepcopy(model).to(device)
        with torch.profiler.profile() as profile:
            terms = loss(net, x.to(device))
        assert any(event.name == "drocc::_mlp_search" for event in profile.events() or ())
        terms.total.backward()
        found[device] = [terms.total, *(p.grad for p in net.parameters() if p.grad is not None)]
    for expected, actual in zip(found["cpu"], found["cuda"], strict=True):
        assert torch.allclose(actual.cpu(), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("units", [128, [128, 128], [512, 512]])
def test_hidden_search_in_a_graph(units: int | list[int], seed: int) -> None:
    torch.manual_seed(seed)
    layers = find_mlp(networks.MLP(274, units).cuda())
    assert layers is not None
    x, start = torch.randn(2, 256, 274, device="cuda")
    expected = search(layers, x, start, 16.0)  # also warms up the matrix products
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = search(layers, x, start, 16.0)
    result.zero_()
    graph.replay()
    assert torch.equal(result, expected)
