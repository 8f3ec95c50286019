"""Values of the l2 shell operators: against exact loops, brute force, and known properties."""

from __future__ import annotations

import math

import pytest
import torch
from cases import (
    CASES,
    DTYPES,
    EVERY_IMPLEMENTATION,
    IMPLEMENTATIONS,
    OPERATORS,
    RELATIVE,
    SHELL_OPERATORS,
    Case,
    Operator,
    assert_close,
    bits,
    exact_step,
    lay_out,
    run,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

implementations = pytest.mark.parametrize("implementation", EVERY_IMPLEMENTATION)
operators = pytest.mark.parametrize("op", OPERATORS, ids=str)
shell_operators = pytest.mark.parametrize("op", SHELL_OPERATORS, ids=str)
PROJECT = OPERATORS[1]


@implementations
@operators
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values(op: Operator, case: Case, implementation: str, seed: int) -> None:
    inputs = case.build(seed)
    h, grad = inputs.h.clone(), inputs.grad.clone()
    arguments = (inputs.step_size, inputs.radius, inputs.gamma)
    exact, sizes = exact_step(op, h, grad, *arguments)

    out = run(implementation, op, inputs.h, inputs.grad, *arguments)
    assert out.dtype == h.dtype
    assert_close(out, exact, sizes)
    assert torch.equal(inputs.h, h) and torch.equal(inputs.grad, grad), "inputs were changed"

    target = inputs.h
    returned = run(implementation, op, target, inputs.grad, *arguments, in_place=True)
    assert returned is target
    assert_close(target, exact, sizes)
    assert torch.equal(inputs.grad, grad), "grad was changed"


@implementations
@shell_operators
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_with_one_radius_per_row(
    op: Operator, dtype: torch.dtype, implementation: str, seed: int
) -> None:
    torch.manual_seed(seed)
    inputs = Case((64, 37), dtype).build(seed)
    radius = inputs.radius * (0.2 + 5 * torch.rand(64, dtype=torch.float64))
    radius = radius if dtype == torch.float64 else radius.float()
    for gamma in (1.0, 1.5, math.inf):
        exact, sizes = exact_step(op, inputs.h, inputs.grad, inputs.step_size, radius, gamma)
        for rows in (radius, radius.repeat_interleave(2)[::2]):
            out = run(implementation, op, inputs.h, inputs.grad, inputs.step_size, rows, gamma)
            assert_close(out, exact, sizes)
        target = inputs.h.clone()
        run(implementation, op, target, inputs.grad, inputs.step_size, radius, gamma, in_place=True)
        assert_close(target, exact, sizes)


@implementations
@pytest.mark.parametrize("layout", ["transposed", "channels_last", "sliced"])
def test_values_when_h_and_grad_lie_differently(
    layout: str, implementation: str, seed: int
) -> None:
    inputs = Case((4, 3, 8, 8)).build(seed)
    arguments = (inputs.step_size, inputs.radius, inputs.gamma)
    exact, sizes = exact_step(OPERATORS[2], inputs.h, inputs.grad, *arguments)
    for h_layout, grad_layout in ((layout, "contiguous"), ("contiguous", layout)):
        h, grad = lay_out(inputs.h, h_layout), lay_out(inputs.grad, grad_layout)
        assert_close(run(implementation, OPERATORS[2], h, grad, *arguments), exact, sizes)
        run(implementation, OPERATORS[2], h, grad, *arguments, in_place=True)
        assert_close(h, exact, sizes)


def test_results_keep_the_layout_of_h(seed: int) -> None:
    inputs = Case((4, 3, 8, 8), layout="channels_last").build(seed)
    arguments = (inputs.step_size, inputs.radius, inputs.gamma)
    for implementation in IMPLEMENTATIONS:
        out = run(implementation, OPERATORS[2], inputs.h, inputs.grad, *arguments)
        assert out.stride() == inputs.h.stride()


@implementations
@pytest.mark.parametrize("fill", ["normal", "uniform", "constant", "one large"])
def test_long_rows_are_accurate_to_1e_6(fill: str, implementation: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (3, 150528)
    grad = {
        "normal": torch.randn(shape, generator=generator),
        "uniform": torch.rand(shape, generator=generator),
        "constant": torch.rand(3, 1, generator=generator).expand(shape) + 0.1,
        "one large": torch.randn(shape, generator=generator).index_fill(1, torch.tensor([7]), 3e3),
    }[fill].contiguous()
    zeros = torch.zeros(shape)
    ascent = run(implementation, OPERATORS[0], zeros, grad, 3.0, 1.0, 1.0)
    projected = run(implementation, PROJECT, grad, None, 0.0, 2.5, 1.0)
    both = run(implementation, OPERATORS[2], grad, grad, 3.0, 2.5, 1.0)
    for out, length in ((ascent, 3.0), (projected, 2.5), (both, 2.5)):
        norms = out.double().norm(dim=1)
        assert ((norms / length - 1).abs() < 1e-6).all(), norms / length - 1


@implementations
@operators
def test_h_may_be_its_own_gradient(op: Operator, implementation: str, seed: int) -> None:
    inputs = Case((3, 37)).build(seed)
    arguments = (inputs.step_size, inputs.radius, inputs.gamma)
    exact, sizes = exact_step(op, inputs.h, inputs.h, *arguments)
    assert_close(run(implementation, op, inputs.h, inputs.h, *arguments), exact, sizes)
    run(implementation, op, inputs.h, inputs.h, *arguments, in_place=True)
    assert_close(inputs.h, exact, sizes)


@implementations
def test_h_may_be_its_own_gradient_transposed(implementation: str, seed: int) -> None:
    square = Case((9, 9)).build(seed).h
    exact, sizes = exact_step(OPERATORS[2], square, square.t(), 1.0, 2.0, 1.5)
    run(implementation, OPERATORS[2], square, square.t(), 1.0, 2.0, 1.5, in_place=True)
    assert_close(square, exact, sizes)


@implementations
@pytest.mark.parametrize("dims", [2, 3])
def test_projection_is_the_nearest_point_by_brute_force(
    dims: int, implementation: str, seed: int
) -> None:
    """A dense grid over the shell: no grid point is nearer, and some is nearly as near."""
    generator = torch.Generator().manual_seed(seed)
    count = 4000 if dims == 2 else 60000
    directions = torch.randn(count, dims, generator=generator, dtype=torch.float64)
    directions /= directions.norm(dim=1, keepdim=True)
    lengths = torch.linspace(1.5, 1.5 * 1.8, 8, dtype=torch.float64)
    grid = (directions[:, None] * lengths[None, :, None]).reshape(-1, dims)
    h = torch.randn(12, dims, generator=generator, dtype=torch.float64)
    h *= torch.linspace(0.01, 5, 12, dtype=torch.float64)[:, None]
    projected = run(implementation, PROJECT, h, None, 0.0, 1.5, 1.8)
    distance = (h - projected).norm(dim=1)
    best = torch.cdist(h, grid).amin(1)
    assert (distance <= best + 1e-12).all()
    inside = (h.norm(dim=1) > 1.5) & (h.norm(dim=1) < 2.7)
    # Where h is all but on the shell, the grid is as far as its points are from each other.
    assert (best - distance)[~inside].max() < 0.1
    assert torch.equal(projected[inside], h[inside])


problems = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**31 - 1),
        "batch": st.integers(1, 5),
        "features": st.integers(1, 40),
        "dtype": st.sampled_from(DTYPES),
        "exponent": st.integers(-3, 3),
        "gamma": st.one_of(st.just(1.0), st.just(math.inf), st.floats(1.0, 4.0)),
        # Where a step leaves the range of sums a row is done in another way, with other roundings.
        "step": st.floats(-4.0, 4.0).map(lambda step: step if abs(step) > 1e-9 else 0.0),
    }
)


def _draw(problem: dict) -> tuple[Tensor, Tensor, float]:
    generator = torch.Generator().manual_seed(problem["seed"])
    shape = (problem["batch"], problem["features"])
    spread = torch.rand((shape[0], 1), generator=generator) * 5
    h = torch.randn(shape, generator=generator) * spread
    grad = torch.randn(shape, generator=generator)
    scale = 2.0 ** problem["exponent"]
    radius = 1.3 * math.sqrt(shape[1]) * scale
    return (h * scale).to(problem["dtype"]), grad.to(problem["dtype"]), radius


def _norms(t: Tensor) -> Tensor:
    return t.double().flatten(1).norm(dim=1)


def _slack(dtype: torch.dtype, features: int) -> tuple[float, float]:
    """How far rounding may carry a row off the shell: relative, absolute."""
    return RELATIVE[dtype], 2.0**-25 * math.sqrt(features) if dtype == torch.float16 else 0.0


@implementations
@shell_operators
@settings(max_examples=50, deadline=None)
@given(problem=problems)
def test_results_lie_in_the_shell(op: Operator, implementation: str, problem: dict) -> None:
    h, grad, radius = _draw(problem)
    out = run(implementation, op, h, grad, problem["step"] * radius, radius, problem["gamma"])
    relative, absolute = _slack(h.dtype, h.shape[1])
    assert (_norms(out) >= radius * (1 - relative) - absolute).all()
    assert (_norms(out) <= problem["gamma"] * radius * (1 + relative) + absolute).all()


@implementations
@settings(max_examples=50, deadline=None)
@given(problem=problems)
def test_projection_is_idempotent_and_keeps_rows_inside(implementation: str, problem: dict) -> None:
    h, _, radius = _draw(problem)
    gamma = problem["gamma"]
    once = run(implementation, PROJECT, h, None, 0.0, radius, gamma)
    twice = run(implementation, PROJECT, once, None, 0.0, radius, gamma)
    relative, absolute = _slack(h.dtype, h.shape[1])
    torch.testing.assert_close(twice, once, rtol=3 * relative, atol=3 * absolute)
    inside = (_norms(h) > radius * (1 + 1e-6)) & (_norms(h) < gamma * radius * (1 - 1e-6))
    assert torch.equal(once[inside], h[inside])


@implementations
@settings(max_examples=50, deadline=None)
@given(problem=problems)
def test_no_feasible_sample_is_nearer(implementation: str, problem: dict) -> None:
    h = _draw(problem)[0].double()
    radius = _draw(problem)[2]
    gamma = min(problem["gamma"], 10.0)
    projected = run(implementation, PROJECT, h, None, 0.0, radius, gamma)
    generator = torch.Generator().manual_seed(problem["seed"])
    # Samples around the answer and everywhere, each brought into the shell by its length alone.
    near = projected + 0.1 * radius * torch.randn(64, *h.shape, generator=generator).double()
    samples = torch.cat([near, torch.randn(64, *h.shape, generator=generator).double()])
    lengths = radius * (
        1 + (gamma - 1) * torch.rand(128, h.shape[0], 1, generator=generator).double()
    )
    samples *= lengths / samples.norm(dim=2, keepdim=True)
    # Differences of nearly equal points keep the rounding of the points.
    allowed = 1e-12 * (projected - h).norm(dim=1) + 1e-14 * (projected.norm(dim=1) + h.norm(dim=1))
    assert ((samples - h).norm(dim=2) >= (projected - h).norm(dim=1) - allowed).all()


@implementations
@operators
@settings(max_examples=30, deadline=None)
@given(problem=problems, power=st.integers(-4, 4))
def test_rows_permute_and_scale(
    op: Operator, implementation: str, problem: dict, power: int
) -> None:
    h, grad, radius = _draw(problem)
    step, gamma = problem["step"] * radius, problem["gamma"]
    out = run(implementation, op, h, grad, step, radius, gamma)

    order = torch.randperm(h.shape[0], generator=torch.Generator().manual_seed(problem["seed"]))
    permuted = run(implementation, op, h[order], grad[order], step, radius, gamma)
    assert torch.equal(bits(permuted), bits(out[order]))

    # Lengths in another unit: a power of two changes no rounding (but where float16 runs out).
    if h.dtype != torch.float16:
        unit = 2.0**power
        scaled = run(implementation, op, h * unit, grad, step * unit, radius * unit, gamma)
        assert torch.equal(bits(scaled), bits(out * unit))
        # The length of a gradient does not matter.
        longer = run(implementation, op, h, grad * unit, step, radius, gamma)
        assert torch.equal(bits(longer), bits(out))
