"""Edge rows and refusals of the l2 shell operators, the same in every implementation."""

from __future__ import annotations

import math

import pytest
import torch
from cases import (
    ASCENT_OPERATORS,
    DTYPES,
    EVERY_IMPLEMENTATION,
    OPERATORS,
    SHELL_OPERATORS,
    Case,
    Operator,
    assert_close,
    bits,
    exact_step,
    run,
)

implementations = pytest.mark.parametrize("implementation", EVERY_IMPLEMENTATION)
operators = pytest.mark.parametrize("op", OPERATORS, ids=str)
shell_operators = pytest.mark.parametrize("op", SHELL_OPERATORS, ids=str)
ascent_operators = pytest.mark.parametrize("op", ASCENT_OPERATORS, ids=str)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
ASCENT, PROJECT, STEP = OPERATORS


@implementations
@operators
@dtypes
@pytest.mark.parametrize("shape", [(0, 8), (0, 3, 4), (0, 0)])
def test_empty_batch(
    op: Operator, dtype: torch.dtype, shape: tuple[int, ...], implementation: str
) -> None:
    h, grad = torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    for radius in (1.0, torch.empty(0, dtype=compute)):
        out = run(implementation, op, h, grad, 1.0, radius, 2.0)
        assert out.shape == shape and out.dtype == dtype
        assert run(implementation, op, h, grad, 1.0, radius, 2.0, in_place=True) is h


@implementations
@ascent_operators
@dtypes
def test_a_zero_gradient_does_not_move_its_row(
    op: Operator, dtype: torch.dtype, implementation: str, seed: int
) -> None:
    inputs = Case((6, 37), dtype).build(seed)
    inputs.grad[1] = 0.0
    inputs.grad[4] = -0.0
    out = run(implementation, op, inputs.h, inputs.grad, 3.0, inputs.radius, 2.0)
    still = run(implementation, PROJECT, inputs.h, None, 0.0, inputs.radius, 2.0)
    for row in (1, 4):
        expected = still[row] if op.projects else inputs.h[row]
        assert_close(out[row], expected.double())
    assert not torch.equal(out[0], still[0])


TINY = {
    torch.float32: (1e-30, 1e-38, 1e-44, 2e-45),
    torch.float64: (1e-30, 1e-180, 1e-310, 5e-324),
    torch.float16: (1e-4, 6e-8),
    torch.bfloat16: (1e-30, 1e-38, 1e-40),
}
HUGE = {
    torch.float32: (1e19, 1e30, 3e38),
    torch.float64: (1e19, 1e200, 1.7e308),
    torch.float16: (6e4,),
    torch.bfloat16: (1e19, 1e30, 3e38),
}


@implementations
@ascent_operators
@dtypes
def test_gradients_of_any_size_are_normalized_exactly(
    op: Operator, dtype: torch.dtype, implementation: str, seed: int
) -> None:
    torch.manual_seed(seed)
    inputs = Case((1, 19), dtype).build(seed)
    shape = torch.randn(19).sign() * torch.randint(1, 5, (19,))
    for size in TINY[dtype] + HUGE[dtype]:
        grad = (shape.double() / 4 * size).to(dtype)[None] if size > 1 else (shape.double() * size)
        grad = grad.reshape(1, 19).to(dtype)
        assert grad.any() and torch.isfinite(grad).all()
        exact, sizes = exact_step(op, inputs.h, grad, 2.0, inputs.radius, 1.5)
        assert_close(run(implementation, op, inputs.h, grad, 2.0, inputs.radius, 1.5), exact, sizes)
    # A gradient with a single coordinate steps exactly.
    one = torch.zeros(1, 19, dtype=dtype)
    one[0, 3] = TINY[dtype][-1]
    moved = run(implementation, ASCENT, torch.zeros_like(one), one, 1.0, 1.0, 1.0)
    assert moved[0, 3] == 1.0 and moved.count_nonzero() == 1


@implementations
@shell_operators
@dtypes
def test_rows_of_any_size_are_projected(
    op: Operator, dtype: torch.dtype, implementation: str, seed: int
) -> None:
    torch.manual_seed(seed)
    row = torch.randn(37, dtype=torch.float64).clamp(-1, 1)
    for size in TINY[dtype] + HUGE[dtype]:
        h = (row * size).to(dtype)[None]
        if not h.any():
            continue
        for gamma in (1.0, 3.0):
            exact, sizes = exact_step(op, h, h, 0.0, 2.0, gamma)
            assert_close(run(implementation, op, h, h, 0.0, 2.0, gamma), exact, sizes)
        unbounded = run(implementation, op, h, h, 0.0, 1e-3, math.inf)
        if size > 1:
            assert torch.equal(unbounded, h)


@implementations
@operators
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("features", [7, 300])
def test_every_order_of_magnitude(
    op: Operator, dtype: torch.dtype, features: int, implementation: str, seed: int
) -> None:
    """One row per power of ten: wherever an implementation changes its arithmetic, it is right."""
    torch.manual_seed(seed)
    bounds = (-322, 306, 4) if dtype == torch.float64 else (-44, 37)
    decades = torch.arange(*bounds).double()
    powers = 10 ** decades.clamp_min(-300) * 10 ** (decades + 300).clamp_max(0)
    rows = torch.randn(len(powers), features).double() * powers[:, None]
    sized, plain = rows.to(dtype), torch.randn(len(powers), features).to(dtype)
    for h, grad in ((sized, plain), (plain, sized), (sized, sized.flip(0))):
        for step, radius in ((1.0, 2.0), (1e-25, 1e27), (1e12, 1e-10), (1e-9, 1e-30)):
            exact, sizes = exact_step(op, h, grad, step, radius, 1.5)
            out = run(implementation, op, h, grad, step, radius, 1.5)
            finite = torch.isfinite(sizes) & (exact.abs() < torch.finfo(dtype).max)
            finite = finite.all(1)
            assert_close(out[finite], exact[finite], sizes[finite])


@implementations
@shell_operators
@dtypes
@pytest.mark.parametrize("shape", [(3, 7), (3, 2, 4, 5)])
def test_the_origin_goes_to_the_first_coordinate(
    op: Operator, dtype: torch.dtype, shape: tuple[int, ...], implementation: str
) -> None:
    h = torch.zeros(shape, dtype=dtype)
    if len(shape) == 4:
        h = h.contiguous(memory_format=torch.channels_last)
    out = run(implementation, op, h, torch.zeros_like(h), 1.0, 1.5, 2.0).flatten(1)
    assert (out[:, 0] == 1.5).all() and out.count_nonzero() == 3


@implementations
@shell_operators
@dtypes
def test_a_step_that_cancels_h(
    op: Operator, dtype: torch.dtype, implementation: str, seed: int
) -> None:
    """h = -step * grad / ||grad||, exactly and nearly: the result is on the shell, never NaN."""
    inputs = Case((8, 37), dtype).build(seed)
    direction = inputs.grad.double() / inputs.grad.double().norm(dim=1, keepdim=True)
    for step in (1.0, 0.3, 17.0):
        for nearly in (0.0, 1e-7, 1e-4, 1e-2):
            h = (-step * (1 + nearly) * direction).to(dtype)
            out = run(implementation, op, h, inputs.grad, step, 2.0, 2.0)
            norms = out.double().norm(dim=1)
            loose = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-10
            loose = loose if dtype.itemsize == 2 else 1e-5
            assert (norms >= 2 * (1 - loose)).all() and (norms <= 4 * (1 + loose)).all()
    # Where h and the step are representable the sum is exactly zero: the origin's rule.
    h = torch.tensor([[0.0, 0.0, -3.0], [0.0, 2.0, 0.0]], dtype=dtype)
    grad = torch.tensor([[0.0, 0.0, 0.5], [0.0, 1.0, 0.0]], dtype=dtype)
    out = run(implementation, STEP, h, grad, 3.0, 2.0, 2.0)
    assert out[0].tolist() == [2.0, 0.0, 0.0] and out[1].tolist() == [0.0, 4.0, 0.0]


@implementations
def test_a_nearly_cancelling_step_keeps_its_direction(implementation: str, seed: int) -> None:
    """What is left of h decides the direction; float32 sums of the three norms would lose it."""
    generator = torch.Generator().manual_seed(seed)
    grad = torch.zeros(4, 16)
    grad[:, 0] = 1.0
    h = torch.zeros(4, 16)
    h[:, 0] = -5.0
    h[:, 1:] = 1e-4 * torch.randn(4, 15, generator=generator)
    exact, _ = exact_step(STEP, h, grad, 5.0, 2.0, 2.0)
    out = run(implementation, STEP, h, grad, 5.0, 2.0, 2.0)
    torch.testing.assert_close(out.double(), exact, rtol=1e-6, atol=1e-6)


@implementations
@dtypes
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("shape", [(5, 37), (5, 700)])
@pytest.mark.parametrize(
    "op, where",
    [*((op, "h") for op in OPERATORS), *((op, "grad") for op in ASCENT_OPERATORS)],
    ids=str,
)
def test_a_bad_row_is_nan_and_its_neighbours_keep_every_bit(
    op: Operator,
    dtype: torch.dtype,
    value: float,
    shape: tuple[int, int],
    where: str,
    implementation: str,
    seed: int,
) -> None:
    inputs = Case(shape, dtype).build(seed)
    arguments = (inputs.step_size, inputs.radius, inputs.gamma)
    clean = run(implementation, op, inputs.h, inputs.grad, *arguments)
    getattr(inputs, where)[2, -1] = value
    good = torch.tensor([0, 1, 3, 4])
    out = run(implementation, op, inputs.h, inputs.grad, *arguments)
    run(implementation, op, inputs.h, inputs.grad, *arguments, in_place=True)
    for result in (out, inputs.h):
        assert result[2].isnan().all()
        assert torch.equal(bits(result[good]), bits(clean[good]))


@implementations
@shell_operators
@dtypes
def test_a_bad_radius_spoils_its_row_only(
    op: Operator, dtype: torch.dtype, implementation: str, seed: int
) -> None:
    inputs = Case((6, 37), dtype).build(seed)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    radius = torch.full((6,), inputs.radius, dtype=compute)
    clean = run(implementation, op, inputs.h, inputs.grad, 1.0, radius, 2.0)
    radius[1:5] = torch.tensor([0.0, -1.0, math.nan, math.inf])
    out = run(implementation, op, inputs.h, inputs.grad, 1.0, radius, 2.0)
    assert out[1:5].isnan().all()
    assert torch.equal(bits(out[[0, 5]]), bits(clean[[0, 5]]))


@implementations
@shell_operators
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_radius_outside_float32_spoils_every_row(
    op: Operator, dtype: torch.dtype, implementation: str
) -> None:
    """As the same value in a tensor of radii would; float64 has room for both."""
    h = torch.ones(2, 5, dtype=dtype)
    for radius in (1e39, 1e-50):
        assert run(implementation, op, h, h, 1.0, radius, 2.0).isnan().all()
        assert run(implementation, op, h.double(), h.double(), 1.0, radius, 2.0).isfinite().all()


@implementations
def test_numbers_beyond_float32(implementation: str) -> None:
    """Huge finite steps and gammas are numbers like others; a zero gradient still does not move."""
    by_name = {op.name: op for op in OPERATORS}
    h, grad = torch.tensor([[3.0, 4.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    step, ascent = by_name["l2_shell_step"], by_name["normalized_ascent"]
    still = run(implementation, ascent, h, torch.zeros_like(h), 1e39, 1.0, 2.0)
    assert torch.equal(still, h)
    along = torch.tensor([[1e-5, 1.0, 0.0]])
    away = run(implementation, ascent, h, along, 1e40, 1.0, 2.0)
    torch.testing.assert_close(away, torch.tensor([[1e35, math.inf, 0.0]]), rtol=1e-5, atol=0)
    strided = run(implementation, ascent, h.T.contiguous().T, along, 1e40, 1.0, 2.0)
    assert torch.equal(strided, away)
    assert run(implementation, ascent, h[:0], along[:0], 1e40, 1.0, 2.0).shape == (0, 3)
    half = run(implementation, ascent, h.half(), along.half(), 1e40, 1.0, 2.0)
    assert half.dtype == torch.float16 and half.tolist() == [[math.inf, math.inf, 0.0]]
    far = run(implementation, step, h, grad, 1e300, 1.0, 2.0)
    torch.testing.assert_close(far, torch.tensor([[2.0, 0.0, 0.0]]))
    inside = run(implementation, by_name["project_l2_shell"], h, None, 0.0, 1.0, 1e39)
    assert torch.equal(inside, h)


@implementations
def test_ends_of_float64(implementation: str) -> None:
    by_name = {op.name: op for op in OPERATORS}
    h = torch.tensor([[1.7e308, 4.0]], dtype=torch.float64)
    grad = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    over = run(implementation, by_name["normalized_ascent"], h, grad, 1.7e308, 1.0, 2.0)
    assert over.tolist() == [[float("inf"), 4.0]]
    tiny = torch.tensor([[5e-324, 0.0]], dtype=torch.float64)
    out = run(implementation, by_name["project_l2_shell"], tiny, None, 0.0, 1.5e308, 2.0)
    torch.testing.assert_close(out, torch.tensor([[1.5e308, 0.0]], dtype=torch.float64))


@implementations
@pytest.mark.parametrize("in_place", [False, True])
def test_steps_near_the_end_of_float32(in_place: bool, implementation: str, seed: int) -> None:
    """Between ascent and projection, and in the bound, numbers may be beyond the type's range."""
    torch.manual_seed(seed)
    end = torch.finfo(torch.float32).max
    h, grad = end * (2 * torch.rand(64, 5) - 1), torch.randn(64, 5)
    radius = end * torch.rand(64).clamp(min=1e-3)
    radius[::4] = torch.rand(16)
    step = OPERATORS[-1]
    for step_size, gamma in ((0.9 * end, 1.5), (-0.5 * end, 1.0), (1.0, 4.0), (0.3 * end, 1e3)):
        exact, sizes = exact_step(step, h, grad, step_size, radius, gamma)
        out = run(implementation, step, h.clone(), grad, step_size, radius, gamma, in_place)
        fits = exact.abs() < end * (1 - 1e-5)
        assert fits[::4].all() or gamma == 1e3
        assert_close(out[fits], exact[fits], sizes[fits])
        beyond = exact.abs() > end * (1 + 1e-5)
        assert torch.equal(out[beyond], exact[beyond].sign().float() * torch.inf)
