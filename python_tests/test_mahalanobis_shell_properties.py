"""What holds for every projection onto the Mahalanobis shell, and the paper's grid."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from cases import EVERY_IMPLEMENTATION, IMPLEMENTATIONS
from hypothesis import given, settings
from hypothesis import strategies as st
from mahalanobis_cases import (
    GRIDS,
    OPERATORS,
    PROJECT,
    STEP,
    MetricOperator,
    draw,
    exact,
    lengths,
    relative_error,
    run,
    shell_error,
    tight,
    undecided,
)
from torch import Tensor

import drocc_ext
from drocc_ext import ops

implementations = pytest.mark.parametrize("implementation", EVERY_IMPLEMENTATION)
operators = pytest.mark.parametrize("op", OPERATORS, ids=str)
grids = pytest.mark.parametrize("points", GRIDS)
RADIUS = 1.75

problems = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**31 - 1),
        "shape": st.tuples(st.integers(1, 6), st.integers(1, 20)),
        "dtype": st.sampled_from([torch.float32, torch.float64]),
        "spread": st.sampled_from([0.0, 1e-6, 0.5, 3.0, 9.0]),
        "gamma": st.one_of(st.just(1.0), st.just(math.inf), st.floats(1.0, 4.0)),
        "holes": st.booleans(),
    }
)


def _draw(problem: dict) -> tuple[Tensor, Tensor, Tensor, float]:
    """Rows of a problem; with holes, some of h are zero and some sigma zero or tied."""
    arguments = (problem["seed"], problem["shape"], problem["dtype"], problem["spread"])
    h, grad, sigma = draw(*arguments, ratios=(1e-2, 1e2))
    if problem["holes"]:
        generator = torch.Generator().manual_seed(problem["seed"])
        pick = torch.rand(h.shape, generator=generator)
        h = torch.where(pick < 0.2, 0.0, h).to(h.dtype)
        sigma = torch.where(pick > 0.8, sigma.amax(1, keepdim=True), sigma)
        sigma = torch.where((pick > 0.4) & (pick < 0.5), 0.0, sigma).to(h.dtype)
    return h, grad, sigma, problem["gamma"]


def _inside(h: Tensor, sigma: Tensor, gamma: float) -> Tensor:
    """Rows inside the shell whatever is rounded how."""
    length = lengths(h, sigma)
    return (length > RADIUS * (1 + 1e-6)) & (length < gamma * RADIUS * (1 - 1e-6))


@implementations
@grids
@settings(max_examples=60, deadline=None)
@given(problem=problems)
def test_in_the_shell_idempotent_and_inside_unchanged(
    points: int, implementation: str, problem: dict
) -> None:
    h, _, sigma, gamma = _draw(problem)
    once = run(implementation, PROJECT, h, None, sigma, 0.0, RADIUS, gamma, points)
    assert (shell_error(once, sigma, RADIUS, gamma) <= tight(h.dtype, implementation)).all()
    twice = run(implementation, PROJECT, once, None, sigma, 0.0, RADIUS, gamma, points)
    if points == 0:
        # What rounding left just outside moves by as much, or, in a hard row, by its root.
        rounding = tight(h.dtype, implementation)
        allowed = 30 * (math.sqrt(rounding) if problem["holes"] else rounding)
        assert (relative_error(twice, once) <= allowed).all()
    else:  # such a row takes a whole step of the grid
        settled = _inside(once, sigma, gamma)
        assert torch.equal(twice[settled], once[settled])
    inside = _inside(h, sigma, gamma) | (sigma == 0).all(1)
    assert torch.equal(once[inside], h[inside])
    unmoved = sigma == 0
    assert torch.equal(once[unmoved], h[unmoved])


@implementations
@grids
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_coordinates_without_sigma_keep_every_bit(
    points: int, dtype: torch.dtype, implementation: str, seed: int
) -> None:
    h, _, sigma = draw(seed, (300, 5), dtype)
    sigma[:, [1, 4]] = 0.0
    out = run(implementation, PROJECT, h, None, sigma, 0.0, RADIUS, 2.0, points)
    assert not torch.equal(out[:, 0], h[:, 0])
    assert torch.equal(out[:, [1, 4]], h[:, [1, 4]])


@implementations
@settings(max_examples=60, deadline=None)
@given(problem=problems)
def test_no_feasible_sample_is_nearer(implementation: str, problem: dict) -> None:
    h, _, sigma, gamma = _draw(problem | {"dtype": torch.float64})
    projected = run(implementation, PROJECT, h, None, sigma, 0.0, RADIUS, gamma)
    generator = torch.Generator().manual_seed(problem["seed"])
    size = projected.norm(dim=1, keepdim=True)
    noise = torch.randn(96, *h.shape, generator=generator, dtype=torch.float64)
    samples = torch.cat([projected + 0.1 * size * noise[:32], projected + 1e-4 * size * noise[32:]])
    length = (sigma * samples**2).sum(2).sqrt()
    wanted = length.clamp(RADIUS, gamma * RADIUS)
    samples = samples * torch.where(sigma > 0, (wanted / length)[..., None], 1.0)
    distance = (projected - h).norm(dim=1)
    usable = samples.isfinite().all(2)
    nearer = (samples - h).norm(dim=2) < distance * (1 - 1e-11) - 1e-14 * h.norm(dim=1)
    assert not (nearer & usable).any()


@implementations
@settings(max_examples=60, deadline=None)
@given(problem=problems)
def test_one_multiplier_explains_every_coordinate(implementation: str, problem: dict) -> None:
    """x_j (1 + tau sigma_j) = d_j, with tau >= -1 / max sigma below the shell and >= 0 above."""
    d, _, sigma, gamma = _draw(problem | {"dtype": torch.float64})
    x = run(implementation, PROJECT, d, None, sigma, 0.0, RADIUS, gamma)
    size = (x * sigma).abs()
    at = size.argmax(1, keepdim=True)
    tau = ((d - x).gather(1, at) / (x * sigma).gather(1, at)).nan_to_num(0.0)
    residual = (x * (1 + tau * sigma) - d).abs()
    assert (residual <= 1e-12 * (x.abs() + (tau * sigma * x).abs() + d.abs())).all()
    near = lengths(d, sigma)[:, None] < RADIUS
    least = torch.where(near, -1.0, 0.0).double() - 1e-12
    assert (tau * sigma.amax(1, keepdim=True) >= least).all()
    assert (tau[near] <= 1e-12).all()


@implementations
@operators
@grids
@settings(max_examples=25, deadline=None)
@given(problem=problems, power=st.integers(-4, 4))
def test_symmetries(
    op: MetricOperator, points: int, implementation: str, problem: dict, power: int
) -> None:
    h, grad, sigma, gamma = _draw(problem | {"holes": False})
    # float32 sums of other rows of a near tie could choose another grid point.
    tolerance = 1e-5 if h.dtype == torch.float32 else 1e-11

    def call(h: Tensor, grad: Tensor, sigma: Tensor, unit: float = 1.0, root: float = 1.0):
        radius = RADIUS * unit * root
        return run(implementation, op, h, grad, sigma, 0.25 * unit, radius, gamma, points)

    out = call(h, grad, sigma)
    generator = torch.Generator().manual_seed(problem["seed"])

    rows = torch.randperm(h.shape[0], generator=generator)
    assert torch.equal(call(h[rows], grad[rows], sigma[rows]), out[rows])

    signs = torch.rand(h.shape, generator=generator).sub(0.5).sign().to(h.dtype)
    assert torch.equal(call(h * signs, grad * signs, sigma), out * signs)

    if points == 0:
        columns = torch.randperm(h.shape[1], generator=generator)
        permuted = call(h[:, columns], grad[:, columns], sigma[:, columns])
        assert (relative_error(permuted, out[:, columns]) <= tolerance).all()

    unit = 2.0**power  # changes no rounding
    scaled = call(h * unit, grad, sigma, unit)
    assert (relative_error(scaled, out * unit) <= tolerance).all()
    metric = call(h, grad, sigma * unit**2, root=unit)
    assert (relative_error(metric, out) <= tolerance).all()
    longer = call(h, grad * unit, sigma)
    assert (relative_error(longer, out) <= tolerance).all()


@implementations
@operators
@grids
@pytest.mark.parametrize("value", [1.0, 0.3, 7e8])
def test_equal_sigma_is_the_l2_shell(
    op: MetricOperator, points: int, value: float, implementation: str, seed: int
) -> None:
    """On the grid, whose end meets the outer bound, far rows only."""
    h, grad, _ = draw(seed, (40, 9), spread=0.0)
    sigma = torch.full_like(h, value)
    arguments = (RADIUS * math.sqrt(value), 2.0, points)
    out = run(implementation, op, h, grad, sigma, 0.25, *arguments)
    with drocc_ext.use_backend("eager"):
        if op is STEP:
            expected = ops.l2_shell_step(h, grad, 0.25, RADIUS, 2.0)
        else:
            expected = ops.project_l2_shell(h, RADIUS, 2.0)
    same = relative_error(out, expected) <= tight(h.dtype, implementation)
    far = expected.norm(dim=1) > 1.5 * RADIUS
    assert far.any() and not far.all()
    assert same[far].all()
    assert points or same.all()


# ---- the paper's grid --------------------------------------------------------------------------


@implementations
@operators
@pytest.mark.parametrize("points", [2, 3, 17, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_grid_is_the_exhaustive_search(
    op: MetricOperator, points: int, dtype: torch.dtype, implementation: str, seed: int
) -> None:
    """Ratios from 0.003 to 300: on most rows below the shell no point is feasible, then Newton."""
    h, grad, sigma = draw(seed, (200, 7), dtype, 1.5, (3e-3, 3e2))
    step = 0.25 if op is STEP else 0.0
    moved = exact(op, h, grad, sigma, step, RADIUS, 1e9) * 0 + h.double()
    if op is STEP:
        moved = moved + step * grad.double() / grad.double().norm(dim=1, keepdim=True)
    for gamma in (1.0, 1.05, 2.0, math.inf):
        close, without = undecided(moved, sigma, RADIUS, gamma, points)
        out = run(implementation, op, h, grad, sigma, step, RADIUS, gamma, points)
        solution = exact(op, h, grad, sigma, step, RADIUS, gamma, points)
        error = relative_error(out, solution)
        # 1e-5: the rounding of h + step may grow on the way to the shell.
        tolerance = tight(dtype, implementation)
        if op is STEP and dtype == torch.float32:
            tolerance = 1e-5
        assert (error[~close] <= tolerance).all(), error[~close].max()
        assert close.double().mean() < 0.1, "nearly all rows are compared"
        assert (shell_error(out, sigma, RADIUS, gamma) <= tight(dtype, implementation)).all()

        newton = run(implementation, op, h, grad, sigma, step, RADIUS, gamma)
        assert torch.equal(out[without & ~close], newton[without & ~close])
        assert without.any(), "the draw has rows without a feasible point"
        farther = (out.double() - moved).norm(dim=1) - (newton.double() - moved).norm(dim=1)
        assert (farther >= -1e-6 * (moved.norm(dim=1) + newton.double().norm(dim=1))).all()
        if points == 3 and gamma == 2.0:
            assert (farther > 0.01 * moved.norm(dim=1)).any(), "no grid point is exact"


def test_grid_of_rows_far_away_is_the_same_everywhere(seed: int) -> None:
    """Where distances to h agree to rounding, the last feasible point is the nearest still."""
    h, _, sigma = draw(seed, (80, 7), ratios=(1e6, 1e30))
    results = [run(name, PROJECT, h, None, sigma, 0.0, RADIUS, 2.0, 17) for name in IMPLEMENTATIONS]
    for out in results:
        assert (shell_error(out, sigma, RADIUS, 2.0) <= 2e-14).all()
    assert (relative_error(*results) <= 1e-13).all()


@implementations
def test_more_points_come_nearer(implementation: str, seed: int) -> None:
    h, _, sigma = draw(seed, (200, 7), ratios=(0.3, 30))
    distances = [
        (run(implementation, PROJECT, h, None, sigma, 0.0, RADIUS, 3.0, points) - h).norm(dim=1)
        for points in (3, 5, 9, 17, 1025, 0)  # each holds the points of the one before
    ]
    # Where the coarsest has a feasible point, so that none gives Newton's answer instead; and
    # gamma is large enough that no point ends below the shell.
    far = (lengths(h, sigma) > 3.0 * RADIUS) & ~undecided(h, sigma, RADIUS, 3.0, 3)[1]
    assert far.sum() > 10
    for coarse, fine in pairwise(distances):
        assert (fine <= coarse * (1 + 1e-12))[far].all()
    assert ((distances[-2] / distances[-1] - 1)[far] < 0.01).all()
    assert ((distances[0] / distances[-1] - 1)[far] > 0.01).any()
