"""The Mahalanobis shell on Triton: against eager float64, edge rows, derivatives, in place.

Runs where `test_triton_interpreter.py` starts it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from cases import ABSOLUTE, BACKENDS, DTYPES, RELATIVE, TRITON_ONLY, bits, lay_out
from mahalanobis_cases import ascended, undecided
from torch import Tensor

import drocc_ext
from drocc_ext import ops
from drocc_ext.ops.eager import mahalanobis_shell as reference

pytestmark = pytest.mark.skipif(
    not TRITON_ONLY, reason="test_triton_interpreter.py runs it in a process of its own"
)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
shapes = pytest.mark.parametrize(
    "shape", [(1, 1), (7, 6), (9, 37), (5, 300), (4, 3, 8, 8), (3, 5000)], ids=str
)


def triton(function: Callable[..., Tensor], *args: object) -> Tensor:
    with drocc_ext.use_backend(BACKENDS[0]):
        return function(*args)


def draw(
    shape: tuple[int, ...], dtype: torch.dtype, seed: int
) -> tuple[Tensor, Tensor, Tensor, float]:
    """h with rows near, inside and far, a gradient, sigma over two decades, and the radius."""
    generator = torch.Generator().manual_seed(seed)
    h, grad = (torch.randn(shape, generator=generator).double() for _ in range(2))
    sigma = 10 ** (2 * torch.rand(shape, generator=generator).double() - 1)
    radius = math.sqrt(math.prod(shape[1:]))
    lengths = (sigma * h * h).flatten(1).sum(1).sqrt()
    wanted = radius * torch.tensor([0.43, 1.4, 5.0, 0.03, 60.0]).double().repeat(shape[0])
    h *= (wanted[: shape[0]] / lengths).reshape(-1, *[1] * (len(shape) - 1))
    return h.to(dtype), grad.to(dtype), sigma.to(dtype), radius


def assert_near(actual: Tensor, exact: Tensor, factor: float = 4.0) -> None:
    """Within rounding of the row's largest coordinate (the multiplier is shared by a row)."""
    assert actual.shape == exact.shape
    size = exact.abs().flatten(1).amax(1) if exact.numel() else exact
    size = size.reshape(-1, *[1] * (exact.dim() - 1))
    allowed = factor * RELATIVE[actual.dtype] * torch.maximum(exact.abs(), 0.05 * size)
    error = (actual.double() - exact).abs()
    assert (error <= allowed + ABSOLUTE[actual.dtype]).all(), float((error / allowed).max())


def decided(d: Tensor, sigma: Tensor, radius: float, points: int) -> Tensor:
    """Rows `[B]` whose point of the grid is not left to rounding: most."""
    if not points:
        return torch.ones(d.shape[0], dtype=torch.bool)
    close, _ = undecided(d, sigma, radius, 1.5, points)
    assert 2 * close.sum() < len(close), "most rows are compared"
    return ~close


@dtypes
@shapes
@pytest.mark.parametrize("solver", ["newton", "grid"])
def test_values(shape: tuple[int, ...], dtype: torch.dtype, solver: str, seed: int) -> None:
    h, grad, sigma, radius = draw(shape, dtype, seed)
    points = 11 if solver == "grid" else 0
    wide = [t.double() for t in (h, grad, sigma)]
    exact = reference.project_mahalanobis_shell(wide[0], wide[2], radius, 1.5, points)
    clear = decided(wide[0], wide[2], radius, points)
    out = triton(ops.project_mahalanobis_shell, h, sigma, radius, 1.5, solver, 11)
    assert out.dtype == dtype
    assert_near(out[clear], exact[clear])
    stepped = reference.mahalanobis_shell_step(*wide, 0.1 * radius, radius, 1.5, points)
    clear = decided(ascended(*wide[:2], 0.1 * radius), wide[2], radius, points)
    args = (grad, sigma, 0.1 * radius, radius, 1.5, solver, 11)
    assert_near(triton(ops.mahalanobis_shell_step, h, *args)[clear], stepped[clear])
    written = h.clone()
    assert triton(ops.mahalanobis_shell_step_, written, *args) is written
    assert_near(written[clear], stepped[clear])
    norms = triton(ops.mahalanobis_norm, h, sigma).double()
    torch.testing.assert_close(
        norms, reference.mahalanobis_norm(wide[0], wide[2]), rtol=1e-6, atol=0
    )


@dtypes
def test_results_lie_in_the_shell(dtype: torch.dtype, seed: int) -> None:
    h, _, sigma, radius = draw((40, 64), dtype, seed)
    out = triton(ops.project_mahalanobis_shell, h, sigma, radius, 1.5).double()
    lengths = (sigma.double() * out * out).sum(1).sqrt()
    slack = RELATIVE[dtype] * 1.0 if dtype.itemsize == 2 else 4 * torch.finfo(dtype).eps
    absolute = 2.0**-25 * float(sigma.double().sum(1).max().sqrt())
    absolute = absolute if dtype == torch.float16 else 0.0
    assert (lengths >= radius * (1 - slack) - absolute).all()
    assert (lengths <= 1.5 * radius * (1 + slack) + absolute).all()


def test_a_long_row(seed: int) -> None:
    h, grad, sigma, radius = draw((2, 150528), torch.float32, seed)
    wide = [t.double() for t in (h, grad, sigma)]
    out = triton(ops.mahalanobis_shell_step, h, grad, sigma, 3.0, radius, 1.5)
    assert_near(out, reference.mahalanobis_shell_step(*wide, 3.0, radius, 1.5))


@dtypes
@pytest.mark.parametrize("layout", ["transposed", "channels_last", "sliced", "misaligned"])
def test_layouts_shared_sigma_and_rows_of_radii(layout: str, dtype: torch.dtype, seed: int) -> None:
    h, _, sigma, radius = draw((4, 3, 8, 8), dtype, seed)
    radii = radius * torch.linspace(0.5, 2, 4).double()
    radii = radii if dtype == torch.float64 else radii.float()
    laid = lay_out(h, layout)
    for metric in (sigma, lay_out(sigma, layout), sigma[1], sigma[:1].expand_as(h)):
        exact = reference.project_mahalanobis_shell(
            h.double(), metric.double(), radii.double(), 1.5
        )
        out = triton(ops.project_mahalanobis_shell, laid, metric, radii, 1.5)
        assert_near(out, exact)
        written = laid.clone(memory_format=torch.preserve_format)
        triton(ops.project_mahalanobis_shell_, written, metric, radii, 1.5)
        assert_near(written, exact)


@dtypes
@pytest.mark.parametrize("tied", [1, 4])
def test_hard_rows(dtype: torch.dtype, tied: int, seed: int) -> None:
    """The coordinates of largest sigma are 0 and the others cannot reach the shell."""
    h, _, sigma, _ = draw((6, 37), dtype, seed)
    h = 0.01 * h
    sigma[:, 5 : 5 + tied] = 2 * sigma.amax()
    h[:, 5 : 5 + tied] = 0
    radius = 3 * float(sigma.double().amax().sqrt() * 10)
    exact = reference.project_mahalanobis_shell(h.double(), sigma.double(), radius, 2.0)
    out = triton(ops.project_mahalanobis_shell, h, sigma, radius, 2.0)
    assert_near(out, exact)
    assert (out[:, 5] != 0).all() and not out[:, 6 : 5 + tied].any()


@dtypes
def test_edge_rows(dtype: torch.dtype, seed: int) -> None:
    """NaN, infinity, negative sigma, no sigma at all, sigma partly zero: each in its own row."""
    h, grad, sigma, radius = draw((8, 37), dtype, seed)
    clean = triton(ops.mahalanobis_shell_step, h, grad, sigma, 0.3, radius, 1.5)
    good = [0, 7]
    h[1, 3], grad[2, 4], sigma[3, 5], sigma[4, 6] = math.nan, math.inf, -1e-3, math.inf
    sigma[5] = 0
    grad[5] = 0
    sigma[6, :18] = 0
    out = triton(ops.mahalanobis_shell_step, h, grad, sigma, 0.3, radius, 1.5)
    assert out[1:5].isnan().all()
    assert torch.equal(out[5], h[5]), "without any sigma > 0 there is nothing to project to"
    assert torch.equal(bits(out[good]), bits(clean[good]))
    still = triton(ops.project_mahalanobis_shell, h[6:7], sigma[6:7], radius, 1.5)
    assert torch.equal(still[:, :18], h[6:7, :18])
    norms = triton(ops.mahalanobis_norm, h, sigma)
    assert norms[[1, 3, 4]].isnan().all() and norms[5] == 0 and norms[[0, 2, 6, 7]].isfinite().all()
    zero = torch.zeros(2, 5, dtype=dtype)
    metric = torch.tensor([1.0, 4.0, 2.0, 4.0, 1.0], dtype=dtype)
    out = triton(ops.project_mahalanobis_shell, zero, metric, 3.0, 2.0)
    assert out.tolist() == [[0.0, 1.5, 0.0, 0.0, 0.0]] * 2
    empty = triton(ops.project_mahalanobis_shell, h[:0], sigma[:0], radius, 1.5)
    assert empty.shape == (0, 37)


@dtypes
def test_a_bad_radius_spoils_its_row_only(dtype: torch.dtype, seed: int) -> None:
    h, _, sigma, radius = draw((6, 37), dtype, seed)
    radii = torch.full((6,), radius, dtype=torch.float64 if dtype == torch.float64 else None)
    clean = triton(ops.project_mahalanobis_shell, h, sigma, radii, 1.5)
    radii[1:5] = torch.tensor([0.0, -1.0, math.nan, math.inf])
    out = triton(ops.project_mahalanobis_shell, h, sigma, radii, 1.5)
    assert out[1:5].isnan().all()
    assert torch.equal(bits(out[[0, 5]]), bits(clean[[0, 5]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_order_of_magnitude(dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    ends = 34 if dtype == torch.float32 else 280
    powers = torch.linspace(-ends, ends, 12).double()
    for metric_power in (-30.0, -7.0, 0.0, 12.0, 30.0):
        rows = (torch.randn(12, 12).double() * 10 ** powers[:, None]).to(dtype)
        sigma = ((0.1 + torch.rand(12, 12)).double() * 10**metric_power).to(dtype)
        for ratio in (1e-4, 0.5, 3.0, 1e4):
            radii = (ratio * 10 ** (powers + metric_power / 2)).to(dtype)
            usable = (radii > 1e-36) & (radii < 1e36) if dtype == torch.float32 else radii > 0
            exact = reference.project_mahalanobis_shell(
                rows.double(), sigma.double(), radii.double(), 1.5
            )
            usable &= exact.abs().amax(1) < torch.finfo(dtype).max / 4
            out = triton(ops.project_mahalanobis_shell, rows, sigma, radii, 1.5)
            assert_near(out[usable], exact[usable], factor=8.0)


# ---- derivatives -------------------------------------------------------------------------------


def _gradients(
    function: Callable[..., Tensor], leaves: list[Tensor], upstream: Tensor, backend: str
) -> list[Tensor]:
    with drocc_ext.use_backend(backend):
        return list(torch.autograd.grad(function(*leaves), leaves, upstream))


@dtypes
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("features", [5, 300])
def test_gradients(features: int, shared: bool, dtype: torch.dtype, seed: int) -> None:
    """Of step and norm, against eager float64 on the same values."""
    h, grad, sigma, radius = draw((5, features), dtype, seed)
    sigma = sigma[0] if shared else sigma
    radii = torch.full((5,), radius).to(torch.float64 if dtype == torch.float64 else torch.float32)
    upstream = torch.randn(h.shape, generator=torch.Generator().manual_seed(seed)).to(dtype)

    def step(h: Tensor, grad: Tensor, sigma: Tensor, radii: Tensor) -> Tensor:
        return ops.mahalanobis_shell_step(h, grad, sigma, 0.1, radii, 1.5)

    leaves = [t.clone().requires_grad_() for t in (h, grad, sigma, radii)]
    wide = [t.detach().double().requires_grad_() for t in leaves]
    pairs = [
        (
            _gradients(step, leaves, upstream, "triton"),
            _gradients(step, wide, upstream.double(), "eager"),
        )
    ]
    ones = torch.linspace(1, 2, 5)
    norms = [leaves[0], leaves[2]], [wide[0], wide[2]]
    row_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    pairs.append(
        (
            _gradients(ops.mahalanobis_norm, norms[0], ones.to(row_dtype), "triton"),
            _gradients(ops.mahalanobis_norm, norms[1], ones.double(), "eager"),
        )
    )
    relative = {8: 1e-10, 4: 1e-4, 2: 2.0**-6}[dtype.itemsize]
    for actual, exact in pairs:
        for a, b in zip(actual, exact, strict=True):
            atol = relative * float(b.abs().max())
            torch.testing.assert_close(a.double(), b, rtol=relative, atol=atol)


@pytest.mark.parametrize("hard", [False, True])
def test_gradcheck(hard: bool, seed: int) -> None:
    h, _, sigma, radius = draw((3, 6), torch.float64, seed)
    if hard:
        h = 0.01 * h
        h[torch.arange(3), sigma.argmax(1)] = 0
    radii = torch.full((3,), radius, dtype=torch.float64)

    def step(h: Tensor, sigma: Tensor, radii: Tensor) -> Tensor:
        return triton(ops.project_mahalanobis_shell, h, sigma, radii, 1.5)

    others = [t.requires_grad_() for t in (sigma, radii)]
    if hard:  # h itself may only move along directions that keep the row hard
        assert torch.autograd.gradcheck(lambda r: step(h, others[0].detach(), r), others[1:])
        return
    assert torch.autograd.gradcheck(step, [h.requires_grad_(), *others], atol=1e-5)


def test_gradients_of_edge_rows(seed: int) -> None:
    h, grad, sigma, radius = draw((6, 12), torch.float64, seed)
    grad[0] = 0
    h[1, 2] = math.nan
    sigma[2] = 0
    sigma[3, 1] = -1.0
    upstream = torch.randn_like(h)
    leaves = [t.clone().requires_grad_() for t in (h, grad, sigma)]
    out = triton(ops.mahalanobis_shell_step, *leaves, 0.2, radius, 1.5)
    by_h, by_grad, by_sigma = torch.autograd.grad(out, leaves, upstream)
    assert not by_grad[0].any(), "no ascent happened"
    assert by_h[[1, 3]].isnan().all() and by_sigma[[1, 3]].isnan().all()
    assert torch.equal(by_h[2], upstream[2]) and not by_sigma[2].any()
    assert all(g[[0, 2, 4, 5]].isfinite().all() for g in (by_h, by_grad, by_sigma))


def test_transforms(seed: int) -> None:
    h, grad, sigma, radius = draw((6, 12), torch.float32, seed)
    expected = triton(ops.mahalanobis_shell_step, h, grad, sigma[0], 0.2, radius, 1.5)

    def step(h: Tensor, grad: Tensor) -> Tensor:
        return triton(ops.mahalanobis_shell_step, h, grad, sigma[0], 0.2, radius, 1.5)

    mapped = torch.vmap(step)(h.view(2, 3, 12), grad.view(2, 3, 12))
    torch.testing.assert_close(mapped.view(6, 12), expected)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(h, grad), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert triton(ops.mahalanobis_norm, h.bfloat16(), sigma.bfloat16()).dtype == torch.float32
    torch._dynamo.reset()


def test_memory_that_is_shared_with_h(seed: int) -> None:
    """Sigma and radii may be views of the h that is written."""
    torch.manual_seed(seed)
    h = 0.1 + torch.rand(16, 16)
    for shared in (lambda t: t[3], lambda t: t):
        written = h.clone()
        expected = triton(ops.project_mahalanobis_shell, h, shared(h).clone(), 0.5, 1.5)
        triton(ops.project_mahalanobis_shell_, written, shared(written), 0.5, 1.5)
        assert torch.equal(written, expected)
    with pytest.raises(RuntimeError, match="second derivatives are not available; use the eager"):
        leaf = h.requires_grad_()
        out = triton(ops.project_mahalanobis_shell, leaf, leaf.detach()[0], 0.5, 1.5)
        (first,) = torch.autograd.grad(out.sin().sum(), leaf, create_graph=True)
        first.sum().backward()
