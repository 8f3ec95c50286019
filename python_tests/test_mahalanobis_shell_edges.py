"""Edge rows and refusals of the Mahalanobis shell operators, the same in every implementation."""

from __future__ import annotations

import faulthandler
import math
from collections.abc import Iterator

import pytest
import torch
from cases import (
    DTYPES,
    EVERY_IMPLEMENTATION,
    TRITON_ONLY,
    assert_close,
    bits,
)
from mahalanobis_cases import (
    GRIDS,
    OPERATORS,
    PROJECT,
    STEP,
    MetricOperator,
    ascended,
    draw,
    exact,
    lengths,
    norm_of,
    relative_error,
    run,
)
from processes import HANG

implementations = pytest.mark.parametrize("implementation", EVERY_IMPLEMENTATION)
operators = pytest.mark.parametrize("op", OPERATORS, ids=str)
grids = pytest.mark.parametrize("points", GRIDS)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


@pytest.fixture(autouse=True)
def _no_hanging() -> Iterator[None]:
    """A loop that never ends in a kernel can only be ended with its process."""
    faulthandler.dump_traceback_later(HANG, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@implementations
@operators
@dtypes
@pytest.mark.parametrize("shape", [(0, 8), (0, 3, 4), (0, 0)])
def test_empty_batch(
    op: MetricOperator, dtype: torch.dtype, shape: tuple[int, ...], implementation: str
) -> None:
    h = torch.empty(shape, dtype=dtype)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    for sigma in (torch.empty(shape, dtype=dtype), torch.ones(shape[1:], dtype=dtype)):
        for radius in (1.0, torch.empty(0, dtype=compute)):
            for points in GRIDS:
                out = run(implementation, op, h, h, sigma, 1.0, radius, 2.0, points)
                assert out.shape == shape and out.dtype == dtype
                arguments = (h, h.clone(), sigma, 1.0, radius, 2.0, points)
                assert run(implementation, op, *arguments, in_place=True) is h
        norms = norm_of(implementation, h, sigma)
        assert norms.shape == (0,) and norms.dtype == compute


@implementations
@operators
@grids
@dtypes
def test_one_row_of_one_feature(
    op: MetricOperator, points: int, dtype: torch.dtype, implementation: str
) -> None:
    sigma, grad = torch.tensor([[4.0]], dtype=dtype), torch.tensor([[-3.0]], dtype=dtype)
    for value, expected in ((0.25, 0.5), (-0.25, -0.5), (5.0, 1.0), (-0.75, -0.75), (0.0, 0.5)):
        h = torch.tensor([[value]], dtype=dtype)
        out = run(implementation, op, h, grad, sigma, 0.0, 1.0, 2.0, points)
        if points and value == 0.25:
            expected = float(out)  # a point of the grid: in the shell, no more is promised
            assert 0.5 <= expected <= 1.0
        assert out.item() == expected, value
        norm = norm_of(implementation, h, sigma).item()
        assert norm == pytest.approx(2 * abs(value), rel=1e-7 if dtype != torch.float64 else 1e-15)


@implementations
@grids
@dtypes
def test_a_zero_gradient_does_not_move_its_row(
    points: int, dtype: torch.dtype, implementation: str, seed: int
) -> None:
    h, grad, sigma = draw(seed, (6, 9), dtype, ratios=(0.1, 10))
    grad[1], grad[4] = 0.0, -0.0
    out = run(implementation, STEP, h, grad, sigma, 3.0, 1.75, 2.0, points)
    still = run(implementation, PROJECT, h, None, sigma, 0.0, 1.75, 2.0, points)
    for row in (1, 4):
        assert_close(out[row], still[row].double())
    assert not torch.equal(out[0], still[0])


@implementations
@operators
@grids
@dtypes
@pytest.mark.parametrize("shape", [(2, 5), (2, 5, 2, 3)])
def test_the_origin_goes_to_the_first_coordinate_of_largest_sigma(
    op: MetricOperator, points: int, dtype: torch.dtype, shape: tuple[int, ...], implementation: str
) -> None:
    """First in the order of indices, also where memory has another order."""
    h, sigma = torch.zeros(shape, dtype=dtype), torch.ones(shape, dtype=dtype)
    rows = sigma.view(2, -1)
    rows[0, [3, 4]] = 4.0
    rows[1, [2, 4]] = 16.0
    rows[:, 1] = 0.0
    expected = torch.zeros(shape, dtype=dtype)
    expected.view(2, -1)[0, 3], expected.view(2, -1)[1, 2] = 1.5, 0.75
    inputs = [(h, sigma)]
    if len(shape) == 4:
        rows[0, 10] = 4.0  # channel 1: first in the memory of channels_last, later in order
        last = torch.channels_last
        inputs.append((h.contiguous(memory_format=last), sigma.contiguous(memory_format=last)))
    for zeros, metric in inputs:
        out = run(implementation, op, zeros, torch.zeros_like(zeros), metric, 1.0, 3.0, 2.0, points)
        assert torch.equal(out, expected)


@implementations
@grids
@dtypes
def test_hard_rows(points: int, dtype: torch.dtype, implementation: str) -> None:
    """The tied coordinates share what is missing: by hand, all numbers representable."""
    below = torch.finfo(dtype).tiny / 4
    below = 2.0**-24 if dtype == torch.float16 else below
    sigma = torch.tensor([4.0, 1.0, 4.0, 0.0], dtype=dtype)
    # x_1 = d_1 / (1 - 1/4); ||x||_S^2 = 9 = x_1^2 + 4 X^2.
    h = torch.tensor([[0, 1.5, 0, 7], [0, 1.5, below, 7], [-below, 1.5, 0, 7]], dtype=dtype)
    missing = math.sqrt(5) / 2
    expected = torch.tensor([[missing, 2, 0, 7], [0, 2, missing, 7], [-missing, 2, 0, 7]])
    out = run(implementation, PROJECT, h, None, sigma, 0.0, 3.0, 2.0)
    rounding = 1e-3 if dtype == torch.float16 else 5e-3 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(out.double(), expected.double(), rtol=rounding, atol=1e-6)
    on_grid = run(implementation, PROJECT, h, None, sigma, 0.0, 3.0, 2.0, points)
    assert torch.equal(on_grid, out), "no point of the grid is feasible"
    # Both tied coordinates tiny: along them.
    both = torch.tensor([[3 * below, 1.5, -4 * below, 7]], dtype=dtype)
    out = run(implementation, PROJECT, both, None, sigma, 0.0, 3.0, 2.0)
    expected = torch.tensor([[0.6 * missing, 2, -0.8 * missing, 7]], dtype=torch.float64)
    torch.testing.assert_close(out.double(), expected, rtol=rounding, atol=1e-6)


@implementations
@grids
@dtypes
def test_an_all_zero_sigma_leaves_the_row(
    points: int, dtype: torch.dtype, implementation: str, seed: int
) -> None:
    h, grad, sigma = draw(seed, (4, 9), dtype, ratios=(0.1, 10))
    sigma[1] = 0.0
    sigma[2] = -0.0
    still = run(implementation, PROJECT, h, None, sigma, 0.0, 1.75, 2.0, points)
    assert torch.equal(still[1:3], h[1:3]) and not torch.equal(still[0], h[0])
    out = run(implementation, STEP, h, grad, sigma, 0.5, 1.75, 2.0, points)
    size = h.double().abs() + 0.5
    assert_close(out[1:3], ascended(h, grad, 0.5)[1:3], size[1:3])
    assert torch.equal(norm_of(implementation, h, sigma)[1:3].double(), torch.zeros(2).double())


NOT_FINITE = (math.nan, math.inf, -math.inf)


@implementations
@operators
@grids
@dtypes
@pytest.mark.parametrize("value", [*NOT_FINITE, -1e-3], ids=str)
def test_a_bad_shared_sigma_spoils_every_row(
    op: MetricOperator,
    points: int,
    dtype: torch.dtype,
    value: float,
    implementation: str,
    seed: int,
) -> None:
    h, grad, sigma = draw(seed, (5, 37), dtype, ratios=(0.2, 5))
    sigma[0, -1] = value
    out = run(implementation, op, h, grad, sigma[0], 0.25, 1.75, 2.0, points)
    assert out.isnan().all() and norm_of(implementation, h, sigma[0]).isnan().all()


@implementations
@grids
@dtypes
@pytest.mark.parametrize(
    "op, where, value",
    [
        *((op, "h", value) for op in OPERATORS for value in NOT_FINITE),
        *((STEP, "grad", value) for value in NOT_FINITE),
        *((op, "sigma", value) for op in OPERATORS for value in (*NOT_FINITE, -1e-3)),
    ],
    ids=str,
)
def test_a_bad_row_is_nan_and_its_neighbours_keep_every_bit(
    op: MetricOperator,
    points: int,
    dtype: torch.dtype,
    where: str,
    value: float,
    implementation: str,
    seed: int,
) -> None:
    h, grad, sigma = draw(seed, (5, 37), dtype, ratios=(0.2, 5))
    tensors = {"h": h, "grad": grad, "sigma": sigma}
    clean = run(implementation, op, h, grad, sigma, 0.25, 1.75, 2.0, points)
    norms = norm_of(implementation, h, sigma)
    tensors[where][2, -1] = value
    good = torch.tensor([0, 1, 3, 4])
    if where != "grad":
        bad_norms = norm_of(implementation, h, sigma)
        assert bad_norms[2].isnan() and torch.equal(bad_norms[good], norms[good])
    out = run(implementation, op, h, grad, sigma, 0.25, 1.75, 2.0, points)
    run(implementation, op, h, grad, sigma, 0.25, 1.75, 2.0, points, in_place=True)
    for result in (out, h):
        assert result[2].isnan().all()
        assert torch.equal(bits(result[good]), bits(clean[good]))


@implementations
@operators
@grids
@dtypes
def test_a_bad_radius_spoils_its_row_only(
    op: MetricOperator, points: int, dtype: torch.dtype, implementation: str, seed: int
) -> None:
    h, grad, sigma = draw(seed, (7, 9), dtype, ratios=(0.2, 5))
    sigma[5] = 0.0  # a row without a length is no better
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    radius = torch.full((7,), 1.75, dtype=compute)
    clean = run(implementation, op, h, grad, sigma, 0.25, radius, 2.0, points)
    radius[1:6] = torch.tensor([0.0, -1.0, math.nan, math.inf, math.nan])
    out = run(implementation, op, h, grad, sigma, 0.25, radius, 2.0, points)
    assert out[1:6].isnan().all()
    assert torch.equal(bits(out[[0, 6]]), bits(clean[[0, 6]]))


@implementations
@operators
@grids
def test_gamma_of_one_and_of_infinity(
    op: MetricOperator, points: int, implementation: str, seed: int
) -> None:
    h, grad, sigma = draw(seed, (40, 9))
    sphere = run(implementation, op, h, grad, sigma, 0.0, 1.75, 1.0, points)
    assert (lengths(sphere, sigma) / 1.75 - 1).abs().max() < 2e-14
    for gamma in (math.inf, 1e300):
        out = run(implementation, op, h, grad, sigma, 0.0, 1.75, gamma, points)
        beyond = lengths(h, sigma) > 1.75
        assert torch.equal(out[beyond], h[beyond])
        assert (lengths(out, sigma)[~beyond] >= 1.75 * (1 - 2e-14)).all()


@implementations
@grids
def test_any_bit_pattern_ends(points: int, implementation: str, seed: int) -> None:
    """float32 rows of random bits: NaN exactly where an input is bad, else the exact solution."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randint(-(2**31), 2**31, (3, 300, 4), generator=generator).int()
    h, sigma, radii = (p.contiguous().view(torch.float32) for p in patterns)
    sigma, radius = sigma.abs(), radii[:, 0].abs().contiguous()
    out = run(implementation, PROJECT, h, None, sigma, 0.0, radius, 2.0, points)
    good = h.isfinite().all(1) & sigma.isfinite().all(1) & radius.isfinite() & (radius > 0)
    assert out[~good].isnan().all()
    solution = exact(PROJECT, h[good], None, sigma[good], 0.0, radius[good], 2.0)
    # What float32 holds with all its digits, in every coordinate that counts.
    biggest = solution.abs().amax(1)
    held = (biggest < 3e38) & (biggest > 1e-30)
    if TRITON_ONLY:
        # Computed in float32: what leaves its range on the way is NaN, and never wrong.
        held &= ~out[good].isnan().all(1)
    assert held.sum() > 50
    assert out[good][held].isfinite().all()
    if points == 0:
        assert (relative_error(out[good][held], solution[held]) < 1e-6).all()
