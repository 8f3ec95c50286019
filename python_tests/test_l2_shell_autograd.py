"""Derivatives of the l2 shell operators: gradcheck, closed forms, edge rows, second order."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from cases import (
    ASCENT_OPERATORS,
    DTYPES,
    EVERY_IMPLEMENTATION,
    OPERATORS,
    PUBLIC,
    SHELL_OPERATORS,
    Case,
    Operator,
    bits,
    lay_out,
    run,
)
from torch import Tensor

from drocc_ext import ops
from drocc_ext.ops import _library

implementations = pytest.mark.parametrize("implementation", EVERY_IMPLEMENTATION)
operators = pytest.mark.parametrize("op", OPERATORS, ids=str)
native_only = pytest.mark.skipif(_library.cpu_error is not None, reason="no native library")
ASCENT, PROJECT, STEP = OPERATORS


def _leaves(op: Operator, seed: int, gamma: float = 1.8) -> tuple[list[Tensor], Callable]:
    """Float64 leaves (h, grad, radius) with rows near, inside and far, none at a boundary.

    The second result maps implementation -> function of the leaves the operator takes.
    """
    generator = torch.Generator().manual_seed(seed)
    unit = torch.nn.functional.normalize(
        torch.randn(4, 6, generator=generator, dtype=torch.float64), dim=1
    )
    # A step of 0.1 cannot carry these lengths over 1.0 or 1.8, whatever its direction.
    h = unit * torch.tensor([0.5, 1.4, 3.0, 0.02 if not op.ascends else 0.6]).double()[:, None]
    grad = torch.randn(4, 6, generator=generator, dtype=torch.float64) * 3
    radius = torch.ones(4, dtype=torch.float64)
    chosen = [h, *([grad] if op.ascends else []), *([radius] if op.projects else [])]

    def function(implementation: str) -> Callable[..., Tensor]:
        def call(h: Tensor, *rest: Tensor) -> Tensor:
            grad = rest[0] if op.ascends else None
            rows = rest[-1] if op.projects else 1.0
            return run(implementation, op, h, grad, 0.1, rows, gamma)

        return call

    return [leaf.requires_grad_() for leaf in chosen], function


@implementations
@operators
@pytest.mark.parametrize("gamma", [1.0, 1.8, math.inf])
def test_gradcheck(op: Operator, gamma: float, implementation: str, seed: int) -> None:
    leaves, function = _leaves(op, seed, gamma)
    assert torch.autograd.gradcheck(function(implementation), leaves)
    # Each argument on its own: the others are then constants.
    for only in range(len(leaves)):
        alone = [t if i == only else t.detach() for i, t in enumerate(leaves)]
        assert torch.autograd.gradcheck(function(implementation), alone)


@implementations
def test_gradcheck_with_feature_dimensions_in_any_order(implementation: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(2, 3, 2, 2, generator=generator, dtype=torch.float64)
    grad = torch.randn(2, 3, 2, 2, generator=generator, dtype=torch.float64)
    h = lay_out(h, "channels_last").requires_grad_()
    assert torch.autograd.gradcheck(
        lambda h, g: run(implementation, STEP, h, g, 0.1, 20.0, 2.0), (h, grad.requires_grad_())
    )


@operators
def test_gradgradcheck_in_eager(op: Operator, seed: int) -> None:
    leaves, function = _leaves(op, seed)
    assert torch.autograd.gradgradcheck(function("eager"), leaves)


@native_only
@operators
def test_native_second_derivatives_are_refused(op: Operator, seed: int) -> None:
    leaves, function = _leaves(op, seed)
    last = leaves[-1]
    (first,) = torch.autograd.grad(function("native")(*leaves).sin().sum(), last, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not available; use the eager"):
        first.sum().backward()


@native_only
@operators
def test_function_transforms_run_the_eager_operator(op: Operator, seed: int) -> None:
    """For registered operators torch refuses the one and drops the tangent of the other."""
    leaves, function = _leaves(op, seed)
    plain = tuple(leaf.detach() for leaf in leaves)
    tangents = tuple(torch.randn_like(leaf) for leaf in plain)
    every = tuple(range(len(plain)))
    for transform in (
        lambda name: torch.func.grad(lambda *a: function(name)(*a).sin().sum(), every)(*plain),
        lambda name: torch.func.jvp(function(name), plain, tangents)[1:],
    ):
        for native, eager in zip(transform("native"), transform("eager"), strict=True):
            torch.testing.assert_close(native, eager)
            assert native.abs().max() > 0


@implementations
@operators
@pytest.mark.parametrize("dtype", DTYPES[:1] + DTYPES[2:], ids=str)
def test_gradients_in_each_dtype(
    op: Operator, dtype: torch.dtype, implementation: str, seed: int
) -> None:
    """Against eager float64 on the same values."""
    torch.manual_seed(seed)
    inputs = Case((9, 370), dtype).build(seed)
    radius = torch.full((9,), inputs.radius) * torch.linspace(0.8, 1.2, 9)
    upstream = torch.randn(9, 370).to(dtype)

    def gradients(to: torch.dtype, implementation: str) -> list[Tensor]:
        rows = radius.double() if to == torch.float64 else radius
        leaves = [inputs.h.to(to), inputs.grad.to(to), rows]
        leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
        out = run(implementation, op, *leaves[:2], inputs.step_size, leaves[2], 2.0)
        grads = torch.autograd.grad(out, leaves, upstream.to(to), allow_unused=True)
        return [g for g in grads if g is not None]

    relative = {torch.float32: 5e-6, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}[dtype]
    for actual, exact in zip(
        gradients(dtype, implementation), gradients(torch.float64, "eager"), strict=True
    ):
        atol = relative * float(exact.abs().max())
        torch.testing.assert_close(actual.double(), exact, rtol=relative, atol=atol)


@pytest.mark.parametrize("implementation", PUBLIC)
@pytest.mark.parametrize("op", SHELL_OPERATORS, ids=str)
def test_radius_may_have_another_precision(op: Operator, implementation: str, seed: int) -> None:
    inputs = Case((3, 37), torch.bfloat16).build(seed)
    radius = torch.full((3,), 2 * inputs.radius, dtype=torch.float64, requires_grad=True)
    run(implementation, op, inputs.h, inputs.grad, 1.0, radius, 2.0).float().sum().backward()
    assert radius.grad is not None and radius.grad.dtype == torch.float64
    assert (radius.grad.count_nonzero() == 2 and radius.grad[2] == 0) or radius.grad.all()


@implementations
@operators
def test_gradients_of_edge_rows(op: Operator, implementation: str, seed: int) -> None:
    """Rows: ordinary, zero gradient, origin, NaN in h, infinite gradient."""
    torch.manual_seed(seed)
    inputs = Case((5, 37), torch.float64).build(seed)
    h, grad = inputs.h, inputs.grad
    grad[1] = 0
    h[2] = 0
    if op is STEP:
        grad[2] = 0
    h[3, 5] = math.nan
    grad[4, 6] = math.inf
    upstream = torch.randn_like(h)
    radius = torch.full((5,), inputs.radius, dtype=torch.float64)
    leaves = [t.clone().requires_grad_() for t in (h, grad, radius)]
    out = run(implementation, op, leaves[0], leaves[1], 1.0, leaves[2], 2.0)
    out.backward(upstream)
    grad_h, grad_grad, grad_radius = (leaf.grad for leaf in leaves)
    assert grad_h.isfinite()[:3].all()
    if op.ascends:
        assert not grad_grad[1].any(), "no ascent happened"
        assert grad_grad[[0, 2]].isfinite().all() and grad_grad[4].isnan().all()
    if op.projects:
        assert not grad_h[2].any(), "every direction is equally near the origin"
        assert grad_radius[2] == upstream[2, 0]
        assert grad_h[3].isnan().all()
        assert grad_radius[3].isnan() or grad_radius[3] == 0

    # The bad rows touch no other: the good ones alone give the same bits.
    good = [0, 1, 2]
    alone = [t[good].clone().requires_grad_() for t in (h, grad, radius)]
    run(implementation, op, alone[0], alone[1], 1.0, alone[2], 2.0).backward(upstream[good])
    for leaf, other in zip(leaves, alone, strict=True):
        if other.grad is not None:
            assert torch.equal(bits(leaf.grad[good]), bits(other.grad))


@implementations
@pytest.mark.parametrize("op", ASCENT_OPERATORS, ids=str)
@pytest.mark.parametrize("size", [1e-30, 1e-180, 1e180])
def test_gradients_of_tiny_and_huge_directions(
    op: Operator, size: float, implementation: str, seed: int
) -> None:
    """The ascent depends on the direction alone: its derivative scales as 1 / size."""
    torch.manual_seed(seed)
    inputs = Case((3, 12), torch.float64).build(seed)
    upstream = torch.randn(3, 12, dtype=torch.float64)
    results = []
    for factor in (1.0, size):
        grad = (inputs.grad * factor).requires_grad_()
        run(implementation, op, inputs.h, grad, 1.0, inputs.radius, 2.0).backward(upstream)
        results.append(grad.grad * factor)
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-12)


@implementations
@operators
def test_expanded_upstream_gradients(op: Operator, implementation: str, seed: int) -> None:
    """`sum().backward()` hands the operators one element with stride 0."""
    leaves, function = _leaves(op, seed)
    out = function(implementation)(*leaves)
    expanded = torch.autograd.grad(out.sum(), leaves, retain_graph=True)
    column = torch.arange(6.0).double()[None].expand(4, 6)
    for upstream, given in ((torch.ones(4, 6).double(), expanded), (column, None)):
        given = given or torch.autograd.grad(out, leaves, column, retain_graph=True)
        dense = torch.autograd.grad(out, leaves, upstream.clone(), retain_graph=True)
        for a, b in zip(given, dense, strict=True):
            assert torch.equal(a, b)


@implementations
@operators
def test_is_grads_batched(op: Operator, implementation: str, seed: int) -> None:
    torch.manual_seed(seed)
    leaves, function = _leaves(op, seed)
    out = function(implementation)(*leaves)
    upstream = torch.randn(5, *out.shape, dtype=torch.float64)
    batched = torch.autograd.grad(out, leaves, upstream, is_grads_batched=True, retain_graph=True)
    one_by_one = [torch.autograd.grad(out, leaves, g, retain_graph=True) for g in upstream]
    for index, result in enumerate(batched):
        torch.testing.assert_close(result, torch.stack([grads[index] for grads in one_by_one]))


@native_only
def test_only_what_is_needed_is_saved() -> None:
    """The backward keeps the inputs and nothing else."""
    h, grad = torch.randn(4, 100, requires_grad=True), torch.randn(4, 100, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        ops.l2_shell_step(h, grad, 1.0, 3.0, 2.0)
    assert {t.data_ptr() for t in saved} <= {h.data_ptr(), grad.data_ptr()}
