"""Values of the Mahalanobis shell operators, against bisection in a wider float."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from cases import DTYPES, EVERY_IMPLEMENTATION, IMPLEMENTATIONS, TRITON_ONLY, lay_out, new_seed
from mahalanobis_cases import (
    GRIDS,
    OPERATORS,
    PROJECT,
    STEP,
    MetricOperator,
    assert_nearest,
    draw,
    exact,
    lengths,
    norm_of,
    relative_error,
    run,
    shell_error,
    tight,
)
from torch import Tensor

implementations = pytest.mark.parametrize("implementation", EVERY_IMPLEMENTATION)
operators = pytest.mark.parametrize("op", OPERATORS, ids=str)
grids = pytest.mark.parametrize("points", GRIDS)
precise = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
halves = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)


# ---- the exact solution itself -----------------------------------------------------------------


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", ["random", "hard", "tied", "zero sigma"])
def test_the_exact_solution_against_brute_force(dims: int, kind: str, seed: int) -> None:
    """No point of a dense cover of the shell is nearer, and one is nearly as near."""
    generator = torch.Generator().manual_seed(seed)
    h, _, sigma = draw(seed, (9, dims), spread=1.0, ratios=(0.2, 3.0))
    if kind == "hard":
        h, sigma = h * 0.3, sigma / 4
        h[:, -1], sigma[:, -1] = 0.0, 3.0
    elif kind == "tied":
        sigma[:, :2] = 2.0
    elif kind == "zero sigma":
        sigma[:, 0] = 0.0
    radius, gamma = 1.75, 1.5
    solution = exact(PROJECT, h, None, sigma, 0.0, radius, gamma)
    assert shell_error(solution, sigma, radius, gamma).max() < 1e-14
    for row, weights, answer in zip(h, sigma, solution, strict=True):
        count = 3000 if dims == 2 else 40000
        samples = torch.randn(count, dims, generator=generator, dtype=torch.float64)
        # Half everywhere, half about the answer; each is then brought into the shell.
        samples[::2] = answer + 0.02 * samples[::2]
        length = (weights * samples**2).sum(1).sqrt()
        wanted = radius * (1 + (gamma - 1) * torch.rand(count, generator=generator).double())
        wanted[::4], wanted[1::4] = radius, gamma * radius
        feasible = samples * torch.where(weights > 0, (wanted / length)[:, None], 1.0)
        distances = (feasible - row).norm(dim=1)
        distance = (answer - row).norm()
        assert (distances >= distance * (1 - 1e-12)).all()
        if distance > 0:
            assert distances.min() <= distance + 0.05 * answer.norm()


# ---- accuracy ----------------------------------------------------------------------------------

# Three quarters of the rows of each draw lie outside: ratios from 1e-3 to 1e3, gamma 1 and 2.
SIZES = ((2, 120), (3, 120), (10, 60), (784, 8), (3072, 5))


@operators
@precise
@pytest.mark.parametrize("spread", [0.0, 1e-6, 3.0, 18.0])
@pytest.mark.parametrize(("features", "batch"), SIZES)
def test_every_row_is_at_the_nearest_point(
    op: MetricOperator, features: int, batch: int, spread: float, dtype: torch.dtype, seed: int
) -> None:
    h, grad, sigma = draw(seed, (batch, features), dtype, spread)
    for gamma in (1.0, 2.0):
        solution = exact(op, h, grad, sigma, 0.25, 1.75, gamma)
        for implementation in IMPLEMENTATIONS:
            out = run(implementation, op, h, grad, sigma, 0.25, 1.75, gamma)
            assert out.dtype == dtype
            assert_in_reach(op, h, grad, out, solution, sigma, gamma)


def assert_in_reach(
    op: MetricOperator,
    h: Tensor,
    grad: Tensor,
    out: Tensor,
    solution: Tensor,
    sigma: Tensor,
    gamma: float,
) -> None:
    """As `assert_nearest`; the rounding of h + step, of the size of both, may grow on the way."""
    if op is PROJECT or h.dtype == torch.float64:
        assert_nearest(out, solution, sigma, 1.75, gamma)
        return
    assert (shell_error(out, sigma, 1.75, gamma) <= tight(h.dtype, IMPLEMENTATIONS[-1])).all()
    allowed = torch.full(h.shape[:1], 1e-6, dtype=torch.float64)
    if TRITON_ONLY:
        # Float32 arithmetic rounds the step, and the sum: by up to an eps of the sizes of h and
        # step, where their sum, which the projection scales, may be far smaller. Other rows keep
        # 1e-6; the bar of the Triton kernels is 1e-5.
        step = 0.25 * grad.double() / grad.double().norm(dim=1, keepdim=True)
        sizes = (h.double().abs() + step.abs()) * (solution / (h.double() + step)).abs()
        allowed += 2.0**-23 * sizes.norm(dim=1) / solution.norm(dim=1)
    error = relative_error(out, solution)
    assert (error <= allowed).all(), (error / allowed).max()


@implementations
@operators
@halves
@pytest.mark.parametrize("shape", [(60, 3), (20, 37), (4, 3, 8, 8)])
def test_half_types_round_once(
    op: MetricOperator, shape: tuple[int, ...], dtype: torch.dtype, implementation: str, seed: int
) -> None:
    h, grad, sigma = draw(seed, shape, dtype, 1.5, (1e-1, 1e1))
    rounding = torch.finfo(dtype).eps / 2
    for points in GRIDS:
        solution = exact(op, h, grad, sigma, 0.25, 1.75, 2.0, points)
        out = run(implementation, op, h, grad, sigma, 0.25, 1.75, 2.0, points)
        assert out.dtype == dtype
        subnormal = 2.0**-25 if dtype == torch.float16 else 0.0
        slack = subnormal * sigma.double().flatten(1).sum(1).sqrt() / 1.75
        assert (shell_error(out, sigma, 1.75, 2.0) <= rounding + slack).all()
        if points == 0:
            # Each coordinate is right to its own rounding, but for what float32 loses before.
            sizes = solution.flatten(1).abs().amax(1).reshape(-1, *[1] * (h.dim() - 1))
            allowed = rounding * solution.abs() + 1e-6 * sizes + subnormal
            assert ((out.double() - solution).abs() <= allowed).all()


@implementations
@operators
@grids
@precise
def test_one_radius_and_one_sigma_per_row_or_for_all(
    op: MetricOperator, points: int, dtype: torch.dtype, implementation: str, seed: int
) -> None:
    h, grad, sigma = draw(seed, (24, 7), dtype)
    radius = torch.linspace(0.5, 4.0, 24, dtype=dtype)
    shared = sigma[3].clone()
    for gamma in (1.0, 1.5, math.inf):
        out = run(implementation, op, h, grad, sigma, 0.25, radius, gamma, points)
        solution = exact(op, h, grad, sigma, 0.25, radius, gamma)
        assert (shell_error(out, sigma, radius, gamma) <= tight(dtype, implementation)).all()
        if points == 0:
            assert (relative_error(out, solution) <= 10 * tight(dtype, implementation)).all()
        for index in (0, 11, 23):  # a number does what the same number in a tensor does
            one = slice(index, index + 1)
            number = float(radius[index])
            alone = run(
                implementation, op, h[one], grad[one], sigma[one], 0.25, number, gamma, points
            )
            assert torch.equal(alone, out[one])
        expected = run(
            implementation, op, h, grad, shared.expand(24, 7), 0.25, radius, gamma, points
        )
        dense = shared.repeat(24, 1)
        for same in (shared, dense):
            actual = run(implementation, op, h, grad, same, 0.25, radius, gamma, points)
            assert torch.equal(actual, expected)


# ---- contrived rows ----------------------------------------------------------------------------


def _clustered(sigma: Tensor, share: Tensor) -> Tensor:
    """A share of the coordinates within a few ulp of the largest, some exactly there."""
    eps = torch.finfo(sigma.dtype).eps
    ulps = torch.randint(0, 8, sigma.shape).to(sigma.dtype)
    top = sigma.amax(1, keepdim=True)
    return torch.where(share, top * (1 - ulps * eps), 0.1 * sigma)


@implementations
@precise
@pytest.mark.parametrize("features", [2, 3, 10, 100])
def test_contrived_sigmas(
    features: int, dtype: torch.dtype, implementation: str, seed: int
) -> None:
    """Near ties and exact ties at the maximum, also where h is 0 there; zeros; 60 decades."""
    torch.manual_seed(seed)
    h, _, sigma = draw(seed, (150, features), dtype)
    share = torch.rand(150, features) < 0.5
    holes = torch.where(torch.rand(150, features) < 0.3, 0.0, h).to(dtype)
    top = sigma.amax(1, keepdim=True)
    decades = (10.0 ** (60 * torch.rand(150, features).double() - 30)).to(dtype)
    fitted = torch.randn(150, features).double()
    fitted *= (lengths(h, sigma) / lengths(fitted, decades))[:, None]
    rows = {
        "clustered": (h, _clustered(sigma, share)),
        "clustered, zeros in h": (holes, _clustered(sigma, share)),
        "tied": (h, torch.where(share, top, 0.1 * sigma)),
        "tied, zeros in h": (holes, torch.where(share, top, 0.1 * sigma)),
        "zeros": (h, torch.where(share, 0.0, sigma).to(dtype)),
        "60 decades": (fitted.to(dtype), decades),
    }
    for name, (d, metric) in rows.items():
        for gamma in (1.0, 2.0):
            print(name, gamma)
            solution = exact(PROJECT, d, None, metric, 0.0, 1.75, gamma)
            out = run(implementation, PROJECT, d, None, metric, 0.0, 1.75, gamma)
            # Where the others nearly reach the shell, what a hard row misses is a difference.
            condition = 1000.0 if "zeros in h" in name and dtype == torch.float64 else 1.0
            assert_nearest(out, solution, metric, 1.75, gamma, condition, implementation)


@implementations
@precise
@pytest.mark.parametrize("ties", [1, 2])
@pytest.mark.parametrize("size", [0.0, 1e-40, 1e-37, 1e-30, 1e-20, 1e-10, 1e-3])
def test_hard_rows_and_their_vicinity(
    ties: int, size: float, dtype: torch.dtype, implementation: str, seed: int
) -> None:
    """Almost nothing on the coordinates of largest sigma; the others can not reach the shell."""
    h, _, sigma = draw(seed, (60, 6), dtype, ratios=(1e-3, 0.3))
    sigma = 0.3 * sigma / sigma.amax(1, keepdim=True)
    sigma[:, -ties:] = 1.0
    h[:, -ties:] = 0.0
    h[:, -1] = size
    solution = exact(PROJECT, h, None, sigma, 0.0, 1.75, 2.0)
    out = run(implementation, PROJECT, h, None, sigma, 0.0, 1.75, 2.0)
    assert_nearest(out, solution, sigma, 1.75, 2.0, implementation=implementation)


@implementations
@precise
@pytest.mark.parametrize("ratio", [1e-4, 1e-6, 1e-8, 1e-10, 1e-16])
def test_a_tiny_multiplier_keeps_its_digits(
    ratio: float, dtype: torch.dtype, implementation: str
) -> None:
    """One coordinate makes up the length, another has next to no sigma and must not move.

    1 + (F / Q) (sqrt(F) - 1) at t = 1 then cancels to the ratio: a start right of the root.
    """
    sigma = torch.tensor([1.7, 1e-38], dtype=dtype)
    h = torch.ones(100, 2, dtype=dtype)
    h[:, 0] = ratio * torch.linspace(1, 2, 100)
    solution = exact(PROJECT, h, None, sigma, 0.0, 1.75, 2.0)
    out = run(implementation, PROJECT, h, None, sigma, 0.0, 1.75, 2.0)
    # A coordinate of its own each: lengths would hide what happens to the second.
    error = (out.double() / solution - 1).abs().amax(0)
    allowed = 1e-11 if dtype == torch.float64 else tight(dtype, implementation)
    assert (error <= allowed).all(), error


def _times(t: Tensor, power: float) -> Tensor:
    """t * 10^power, where 10^power alone may overflow."""
    half = 10.0 ** (power / 2)
    return (t.double() * half * half).to(t.dtype)


@implementations
@pytest.mark.parametrize("power", [-35, -20, -10, 10, 20, 35])
def test_float32_rows_of_any_size(power: int, implementation: str, seed: int) -> None:
    """h, sigma or both far from 1, the radius at 1 or of their size: all within float32's range."""
    h, _, sigma = draw(seed, (60, 7), torch.float32)
    radius = float(torch.tensor(1.75 * 10.0**power))
    for rows, metric, bound in (
        (_times(h, power), sigma, 1.75),
        (_times(h, power), sigma, radius),
        (h, _times(sigma, power), 1.75),
        (_times(h, -power / 2), _times(sigma, power), 1.75),
        (_times(h, power), _times(sigma, -power), 1.75),
    ):
        solution = exact(PROJECT, rows, None, metric, 0.0, bound, 2.0)
        out = run(implementation, PROJECT, rows, None, metric, 0.0, bound, 2.0)
        assert_nearest(out, solution, metric, bound, 2.0, implementation=implementation)


@implementations
@pytest.mark.parametrize("power", [-300, -150, -100, 100, 150, 300])
def test_float64_rows_of_any_size(power: int, implementation: str, seed: int) -> None:
    h, _, sigma = draw(seed, (60, 7))
    radius = float(_times(torch.tensor([1.75], dtype=torch.float64), power))
    for rows, metric, bound in (
        (_times(h, power), sigma, radius),
        (h, _times(sigma, power), 1.75),
        (_times(h, -power / 2), _times(sigma, power), 1.75),
    ):
        solution = exact(PROJECT, rows, None, metric, 0.0, bound, 2.0)
        out = run(implementation, PROJECT, rows, None, metric, 0.0, bound, 2.0)
        assert_nearest(out, solution, metric, bound, 2.0, implementation=implementation)


@implementations
@grids
@pytest.mark.parametrize("side", ["near", "far"])
def test_ratios_beyond_float64_are_nan_or_right(
    side: str, points: int, implementation: str, seed: int
) -> None:
    """||h||_S / radius from 1e-600 to 1e450: what can not be computed must not look computed."""
    h, _, sigma = draw(seed, (20, 5))
    powers = {"near": ((-300, -300), (-310, 0), (-310, -310)), "far": ((150, 150), (300, 0))}
    for power, lift in (*powers[side], (300, 300) if side == "far" else (-150, -150)):
        rows, metric = _times(h, power), _times(sigma, lift)
        solution = exact(PROJECT, rows, None, metric, 0.0, 1.75, 2.0)
        out = run(implementation, PROJECT, rows, None, metric, 0.0, 1.75, 2.0, points)
        nan = out.isnan().all(1)
        print(power, lift, int(nan.sum()), "NaN")
        in_shell = shell_error(out, metric, 1.75, 2.0) < 1e-6
        right = (relative_error(out, solution) <= 1e-13) if points == 0 else in_shell
        assert (nan | (in_shell & right)).all()


# ---- long rows, norms, threads -----------------------------------------------------------------


@pytest.fixture(scope="module", params=["normal", "constant", "one large"])
def long_rows(request: pytest.FixtureRequest) -> tuple[Any, ...]:
    """h, grad, sigma, and what PROJECT and STEP give: long in the making, so made once."""
    h, grad, sigma = draw(new_seed(), (2, 150528), torch.float32, 1.5, (0.2, 5.0))
    if request.param == "constant":
        h = h[:, :1].expand_as(h).contiguous()
        sigma = sigma[:, :1].expand_as(sigma).contiguous()
        h = (h / lengths(h, sigma)[:, None] * torch.tensor([[0.4], [9.0]])).float()
    elif request.param == "one large":
        sigma[:, 7] = 1e4
    operators = (PROJECT, STEP) if request.param == "normal" else (PROJECT,)
    solutions = {op: exact(op, h, grad, sigma, 0.25, 1.75, 2.0) for op in operators}
    return h, grad, sigma, solutions


@implementations
def test_long_rows(long_rows: tuple[Any, ...], implementation: str) -> None:
    h, grad, sigma, solutions = long_rows
    for op, solution in solutions.items():
        out = run(implementation, op, h, grad, sigma, 0.25, 1.75, 2.0)
        assert (shell_error(out, sigma, 1.75, 2.0) <= 1e-6).all()
        assert (relative_error(out, solution) <= 1e-6).all()
    norms = norm_of(implementation, h, sigma)
    assert ((norms.double() / lengths(h, sigma) - 1).abs() < 1e-6).all()


@implementations
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced", "misaligned"])
def test_norms(dtype: torch.dtype, layout: str, implementation: str, seed: int) -> None:
    h, _, sigma = draw(seed, (17, 37), dtype, ratios=(1e-2, 1e2))
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    for metric in (sigma, sigma[0]):
        norms = norm_of(implementation, lay_out(h, layout), lay_out(metric, "contiguous"))
        assert norms.shape == (17,) and norms.dtype == compute
        wanted = lengths(h, metric)
        assert (norms.double() - wanted).abs().le(2 * torch.finfo(compute).eps * wanted).all()
    powers = (1e-20, 1e20) if dtype == torch.bfloat16 else (1e-20, 1e18)
    for size in powers if dtype != torch.float16 else ():
        rows = (h.double() * size).to(dtype)
        norms = norm_of(implementation, rows, sigma)
        torch.testing.assert_close(norms.double(), lengths(rows, sigma), rtol=1e-6, atol=0)
