"""Side effects of the l2 shell operators: aliasing, autograd's bookkeeping, allocations."""

from __future__ import annotations

import pytest
import torch
from cases import (
    ASCENT_OPERATORS,
    BACKENDS,
    DTYPES,
    EVERY_IMPLEMENTATION,
    IMPLEMENTATIONS,
    OPERATORS,
    Case,
    Operator,
    assert_close,
    exact_step,
    run,
)
from torch import Tensor

import drocc_ext
from drocc_ext import ops
from drocc_ext.ops import _table

implementations = pytest.mark.parametrize("implementation", EVERY_IMPLEMENTATION)
operators = pytest.mark.parametrize("op", OPERATORS, ids=str)
ascent_operators = pytest.mark.parametrize("op", ASCENT_OPERATORS, ids=str)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
needs_native = pytest.mark.skipif("native" not in IMPLEMENTATIONS, reason="no native library")


def _h(*shape: int) -> Tensor:
    return torch.ones(shape)


@needs_native
@ascent_operators
def test_partial_overlap_is_refused_and_interleaving_is_not(op: Operator, seed: int) -> None:
    memory = Case((5, 8)).build(seed).h.flatten()
    h, grad = memory[:32].view(4, 8), memory[4:36].view(4, 8)
    with pytest.raises(RuntimeError, match=f"{op}_: h and grad must not partly share memory"):
        run("native", op, h, grad, 1.0, 1.0, 2.0, in_place=True)
    # Two halves of every row lie between one another without sharing an element.
    h, grad = memory.view(5, 8)[:, :4], memory.view(5, 8)[:, 4:]
    exact, sizes = exact_step(op, h, grad, 1.0, 1.0, 2.0)
    before = grad.clone()
    run("native", op, h, grad, 1.0, 1.0, 2.0, in_place=True)
    assert_close(h, exact, sizes)
    assert torch.equal(grad, before)


@operators
@pytest.mark.parametrize("in_place", [False, True])
def test_inference_mode(op: Operator, in_place: bool, seed: int) -> None:
    inputs = Case((3, 37)).build(seed)
    arguments = (inputs.step_size, inputs.radius, inputs.gamma)
    exact, sizes = exact_step(op, inputs.h, inputs.grad, *arguments)
    for implementation in BACKENDS:
        with torch.inference_mode():
            out = run(
                implementation, op, inputs.h.clone(), inputs.grad, *arguments, in_place=in_place
            )
        assert_close(out, exact, sizes)


@needs_native
@operators
@dtypes
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_in_place_allocates_nothing(
    op: Operator, dtype: torch.dtype, layout: str, seed: int
) -> None:
    inputs = Case((4, 3, 8, 8), dtype, layout).build(seed)
    arguments = (inputs.h, inputs.grad, inputs.step_size, inputs.radius, inputs.gamma)
    assert _allocations(lambda: run("native", op, *arguments)), "the profiler sees no memory"
    assert not _allocations(lambda: run("native", op, *arguments, in_place=True))


def _allocations(call: object) -> list[int]:
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        call()
    events = profile.profiler.kineto_results.events()
    return [e.nbytes() for e in events if e.name() == "[memory]" and e.nbytes() > 0]


def test_every_operator_is_public() -> None:
    assert {name for name in _table.SCHEMAS if not name.startswith("_")} == set(ops.__all__)
    assert drocc_ext.ops is ops


@implementations
@pytest.mark.parametrize("op", [op for op in OPERATORS if op.projects], ids=str)
def test_radii_that_are_a_view_of_h(op: Operator, implementation: str, seed: int) -> None:
    torch.manual_seed(seed)
    h, grad = 0.1 + torch.rand(64, 64), torch.randn(64, 64)
    for radii in (lambda t: t[0], lambda t: t.view(-1)[7:71], lambda t: t[:, 5]):
        written = h.clone()
        expected = run(implementation, op, h, grad, 0.2, radii(h).clone(), 1.5)
        run(implementation, op, written, grad, 0.2, radii(written), 1.5, in_place=True)
        assert torch.equal(written, expected)
