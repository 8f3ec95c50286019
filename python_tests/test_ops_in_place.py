"""Side effects of every operator: inference mode, allocations, memory shared by its arguments."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from cases import (
    ASCENT_OPERATORS,
    BACKENDS,
    DTYPES,
    EVERY_IMPLEMENTATION,
    IMPLEMENTATIONS,
    SHELL_OPERATORS,
    Case,
    Operator,
    assert_close,
    bits,
    exact_step,
    lay_out,
    run,
)
from mahalanobis_cases import draw
from processes import python

import drocc_ext
from drocc_ext import ops
from drocc_ext.ops import _table

needs_native = pytest.mark.skipif("native" not in IMPLEMENTATIONS, reason="no native library")
NEWTON = ("normalized_ascent", "project_l2_shell", "l2_shell_step")
METRIC = ("project_mahalanobis_shell", "mahalanobis_shell_step")
CALLS = [
    *((name, "newton") for name in (*NEWTON, *METRIC)),
    *((name, "grid") for name in METRIC),
]
calls = pytest.mark.parametrize("name, solver", CALLS)


def arguments(
    name: str,
    solver: str,
    seed: int,
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
) -> dict[str, Any]:
    """What an operator takes, of rows on both sides of the shell."""
    tensors = draw(seed, shape, dtype, ratios=(0.2, 5))
    given = dict(zip(("h", "grad", "sigma"), (lay_out(t, layout) for t in tensors), strict=True))
    given |= {"step_size": 0.25, "radius": 1.75, "gamma": 2.0, "solver": solver, "grid_points": 17}
    taken = inspect.signature(getattr(ops, name)).parameters
    return {argument: value for argument, value in given.items() if argument in taken}


def test_every_operator_is_public() -> None:
    assert {name for name in _table.SCHEMAS if not name.startswith("_")} == set(ops.__all__)
    assert drocc_ext.ops is ops


@calls
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("in_place", [False, True])
def test_inference_mode_and_repeats(
    name: str, solver: str, in_place: bool, backend: str, seed: int
) -> None:
    given = arguments(name, solver, seed, (16, 37))
    with drocc_ext.use_backend(backend):
        expected = getattr(ops, name)(**given)
        for _ in range(3):
            with torch.inference_mode():
                again = given | {"h": given["h"].clone()}
                out = getattr(ops, name + "_" * in_place)(**again)
            assert torch.equal(bits(out), bits(expected))


@needs_native
@calls
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_in_place_allocates_nothing(
    name: str, solver: str, dtype: torch.dtype, layout: str, seed: int
) -> None:
    given = arguments(name, solver, seed, (4, 3, 8, 8), dtype, layout)
    assert _allocations(name, given), "the profiler sees no memory"
    assert not _allocations(f"{name}_", given)


def _allocations(name: str, given: dict[str, Any]) -> list[int]:
    activities = [torch.profiler.ProfilerActivity.CPU]
    with (
        drocc_ext.use_backend("native"),
        torch.profiler.profile(activities=activities, profile_memory=True) as profile,
    ):
        getattr(ops, name)(**given)
    events = profile.profiler.kineto_results.events()
    return [e.nbytes() for e in events if e.name() == "[memory]" and e.nbytes() > 0]


@needs_native
@pytest.mark.parametrize("op", ASCENT_OPERATORS, ids=str)
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


@pytest.mark.parametrize("implementation", EVERY_IMPLEMENTATION)
@pytest.mark.parametrize("op", SHELL_OPERATORS, ids=str)
def test_radii_that_are_a_view_of_h(op: Operator, implementation: str, seed: int) -> None:
    torch.manual_seed(seed)
    h, grad = 0.1 + torch.rand(64, 64), torch.randn(64, 64)
    for radii in (lambda t: t[0], lambda t: t.view(-1)[7:71], lambda t: t[:, 5]):
        written = h.clone()
        expected = run(implementation, op, h, grad, 0.2, radii(h).clone(), 1.5)
        run(implementation, op, written, grad, 0.2, radii(written), 1.5, in_place=True)
        assert torch.equal(written, expected)


def test_threads_do_not_change_a_bit() -> None:
    """In a process of its own: torch is slow to change its mind about threads."""
    code = """
import torch
from drocc_ext import ops
torch.manual_seed(1)
h, g, s = torch.randn(700, 301), torch.randn(700, 301), torch.rand(700, 301)
r = torch.rand(700).mul(30).requires_grad_()
results = []
for threads in (1, 2):
    torch.set_num_threads(threads)
    leaves = [t.clone().requires_grad_() for t in (h, g, s)]
    sigma = ops.influence(leaves[1])
    outs = [sigma, ops.l2_shell_step(*leaves[:2], 1.0, r, 1.5), ops.mahalanobis_norm(h, s[0])]
    for solver in ("newton", "grid"):
        outs.append(ops.mahalanobis_shell_step(*leaves, 1.0, r, 1.5, solver))
    for out in (outs[0], outs[1], *outs[3:]):
        outs += torch.autograd.grad(out, (*leaves, r), h, allow_unused=True)
    results.append([out for out in outs if out is not None])
assert len(results[0]) == 17
assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
"""
    python("-c", code, OMP_NUM_THREADS="2")
