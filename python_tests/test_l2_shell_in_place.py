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
    PUBLIC,
    SHELL_OPERATORS,
    Case,
    Operator,
    assert_close,
    exact_step,
    run,
)
from torch import Tensor

import drocc_ext
from drocc_ext import ops
from drocc_ext.ops import _library

implementations = pytest.mark.parametrize("implementation", EVERY_IMPLEMENTATION)
operators = pytest.mark.parametrize("op", OPERATORS, ids=str)
ascent_operators = pytest.mark.parametrize("op", ASCENT_OPERATORS, ids=str)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
needs_native = pytest.mark.skipif("native" not in IMPLEMENTATIONS, reason="no native library")


def _h(*shape: int) -> Tensor:
    return torch.ones(shape)


@pytest.mark.parametrize("implementation", PUBLIC)
@operators
def test_an_expanded_h_is_refused(op: Operator, implementation: str) -> None:
    h = _h(1, 3).expand(2, 3)
    with pytest.raises(ValueError, match=rf"{op}_: h must not be an expanded tensor"):
        run(implementation, op, h, _h(2, 3), 1.0, 1.0, 2.0, in_place=True)


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


@pytest.mark.parametrize(
    "op, which",
    [
        *((op, "h") for op in OPERATORS),
        *((op, "grad") for op in ASCENT_OPERATORS),
        *((op, "radius") for op in SHELL_OPERATORS),
    ],
    ids=str,
)
def test_tensors_that_require_grad_are_refused_in_place(op: Operator, which: str) -> None:
    tensors = {"h": _h(2, 3), "grad": _h(2, 3), "radius": torch.ones(2)}
    tensors[which].requires_grad_()
    for implementation in BACKENDS:
        arguments = (tensors["h"], tensors["grad"], 1.0, tensors["radius"], 2.0)
        with pytest.raises(RuntimeError, match=rf"{op}_: an argument requires grad; .* use {op} "):
            run(implementation, op, *arguments, in_place=True)
        with torch.no_grad():
            run(implementation, op, *arguments, in_place=True)


@operators
def test_autograd_notices_the_write(op: Operator) -> None:
    for implementation in BACKENDS:
        x = _h(2, 3).requires_grad_()
        h = _h(2, 3) * 2
        loss = (x * h).sum()  # saves h for its backward
        version = h._version
        run(implementation, op, h, _h(2, 3), 1.0, 1.0, 2.0, in_place=True)
        assert h._version > version
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


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
    names = {schema.partition("(")[0] for schema in _library.SCHEMAS}
    assert {name for name in names if not name.startswith("_")} == set(ops.__all__)
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


@pytest.mark.skipif("operator" in IMPLEMENTATIONS, reason="the check is that of the functions")
def test_negated_views(seed: int) -> None:
    torch.manual_seed(seed)
    view = torch.randn(4, 3, dtype=torch.complex64).conj().imag
    with pytest.raises(ValueError, match="project_l2_shell_: h must not be a lazily negated view"):
        ops.project_l2_shell_(view, 1.0, 2.0)
    h = torch.randn(4, 3)
    expected = ops.normalized_ascent(h, view.resolve_neg(), 2.0)
    assert torch.equal(ops.normalized_ascent_(h, view, 2.0), expected)
