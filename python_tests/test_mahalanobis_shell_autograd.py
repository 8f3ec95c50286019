"""Derivatives of the Mahalanobis operators: gradcheck, hard rows, edge rows, second order."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from cases import DTYPES, EVERY_IMPLEMENTATION, IMPLEMENTATIONS, PUBLIC, bits
from mahalanobis_cases import (
    GRIDS,
    OPERATORS,
    PROJECT,
    STEP,
    MetricOperator,
    draw,
    lengths,
    norm_of,
    run,
)
from torch import Tensor

import drocc_ext
from drocc_ext import ops
from drocc_ext.ops import _library
from drocc_ext.ops.eager import mahalanobis_shell as reference

implementations = pytest.mark.parametrize("implementation", EVERY_IMPLEMENTATION)
operators = pytest.mark.parametrize("op", OPERATORS, ids=str)
grids = pytest.mark.parametrize("points", GRIDS)
shared_or_not = pytest.mark.parametrize("shared", [False, True])
native_only = pytest.mark.skipif(_library.cpu_error is not None, reason="no native library")

Function = Callable[..., Tensor]


def _leaves(
    op: MetricOperator, seed: int, gamma: float = 1.8, shared: bool = False, points: int = 0
) -> tuple[list[Tensor], Callable[[str], Function]]:
    """Float64 leaves (h, grad, sigma, radius), rows near, inside, far and near, no row at a bound.

    The second result maps implementation -> function of the leaves the operator takes.
    """
    h, grad, sigma = draw(seed, (4, 6), spread=0.7)
    sigma = sigma[0].clone() if shared else sigma
    # A step of 0.05 moves ||h||_S by at most 0.05 sqrt(2.02): no row can cross a bound.
    wanted = torch.tensor([0.5, 1.35, 3.0, 0.75], dtype=torch.float64)
    h = h * (wanted / lengths(h, sigma))[:, None]
    radius = torch.ones(4, dtype=torch.float64)
    chosen = [h, *([3 * grad] if op is STEP else []), sigma, radius]

    def function(implementation: str) -> Function:
        def call(h: Tensor, *rest: Tensor) -> Tensor:
            grad = rest[0] if op is STEP else None
            return run(implementation, op, h, grad, rest[-2], 0.05, rest[-1], gamma, points)

        return call

    return [leaf.requires_grad_() for leaf in chosen], function


@implementations
@operators
@shared_or_not
@pytest.mark.parametrize("gamma", [1.0, 1.8, math.inf])
def test_gradcheck(
    op: MetricOperator, shared: bool, gamma: float, implementation: str, seed: int
) -> None:
    leaves, function = _leaves(op, seed, gamma, shared)
    call = function(implementation)
    assert torch.autograd.gradcheck(call, leaves)
    # Each argument on its own, the others constants: the gradient that it has among all.
    upstream = torch.randn_like(leaves[0])
    together = torch.autograd.grad(call(*leaves), leaves, upstream)
    for only, expected in enumerate(together):
        alone = [t if i == only else t.detach() for i, t in enumerate(leaves)]
        (found,) = torch.autograd.grad(call(*alone), leaves[only], upstream)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@implementations
@shared_or_not
def test_gradcheck_of_the_norm(shared: bool, implementation: str, seed: int) -> None:
    (h, sigma, _), _ = _leaves(PROJECT, seed, shared=shared)
    assert torch.autograd.gradcheck(lambda h, s: norm_of(implementation, h, s), (h, sigma))


@implementations
def test_gradcheck_with_feature_dimensions_in_any_order(implementation: str, seed: int) -> None:
    h, grad, sigma = draw(seed, (2, 3, 2, 2), spread=0.7, ratios=(0.3, 4.0))
    last = torch.channels_last
    leaves = [h.contiguous(memory_format=last), grad, sigma.contiguous(memory_format=last)]
    for metric in (leaves[2], sigma[0].transpose(0, 2).contiguous().transpose(0, 2)):
        arguments = [t.detach().requires_grad_() for t in (*leaves[:2], metric)]
        assert torch.autograd.gradcheck(
            lambda h, g, s: run(implementation, STEP, h, g, s, 0.05, 1.75, 2.0), arguments
        )


@operators
@shared_or_not
def test_gradgradcheck_in_eager(op: MetricOperator, shared: bool, seed: int) -> None:
    leaves, function = _leaves(op, seed, shared=shared)
    assert torch.autograd.gradgradcheck(function("eager"), leaves, fast_mode=True)
    if op is PROJECT:
        leaves = leaves[:2]
        assert torch.autograd.gradgradcheck(lambda h, s: norm_of("eager", h, s), leaves)


@native_only
@operators
@grids
def test_native_second_derivatives_are_refused(op: MetricOperator, points: int, seed: int) -> None:
    leaves, function = _leaves(op, seed, points=points)
    calls = [(function("native"), leaves)]
    calls.append((lambda h, s: norm_of("native", h, s), [leaves[0], leaves[-2]]))
    for call, arguments in calls:
        for leaf in arguments:
            out = call(*arguments).sin().sum()
            (first,) = torch.autograd.grad(out, leaf, create_graph=True)
            with pytest.raises(RuntimeError, match="second derivatives are not available; use the"):
                first.sum().backward()


@operators
@grids
@shared_or_not
def test_backward_formulas_are_those_autograd_finds(
    op: MetricOperator, points: int, shared: bool, seed: int
) -> None:
    """Eager autograd, the written formulas and the kernels: three derivations of the same thing.

    Not so on the grid, whose formulas are those of the exact solution at the grid's multiplier.
    """
    leaves, function = _leaves(op, seed, shared=shared, points=points)
    upstream = torch.randn(4, 6, dtype=torch.float64)
    found = {
        name: torch.autograd.grad(function(name)(*leaves), leaves, upstream)
        for name in IMPLEMENTATIONS
    }
    plain = [leaf.detach() for leaf in leaves]
    step = (0.05,) if op is STEP else ()
    written = list(
        getattr(reference, f"{op}_backward")(upstream, *plain[:-1], *step, plain[-1], 1.8, points)
    )
    if shared:
        written[-2] = written[-2].sum(0)
    for name, gradients in found.items():
        if points and name == "eager":
            continue
        for actual, expected in zip(gradients, written, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-11)
            assert actual.abs().max() > 0


# ---- hard rows ---------------------------------------------------------------------------------


def _hard(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows whose coordinate 2, alone of largest sigma, is 0, and below the shell without it."""
    h, _, sigma = draw(seed, (3, 5), spread=0.5, ratios=(0.1, 0.3))
    sigma = 0.4 * sigma / sigma.amax(1, keepdim=True)
    sigma[:, 2] = torch.tensor([1.0, 1.3, 0.8])
    h[:, 2] = 0.0
    return h, sigma, torch.full((3,), 1.75, dtype=torch.float64)


@implementations
def test_gradients_of_hard_rows_are_one_sided_derivatives(implementation: str, seed: int) -> None:
    """Up on the coordinate that is 0 (its result jumps below), numerically to second order."""
    leaves = _hard(seed)
    upstream = torch.randn(3, 5, dtype=torch.float64)

    def value(*arguments: Tensor) -> Tensor:
        h, sigma, radius = arguments
        out = run(implementation, PROJECT, h, None, sigma, 0.0, radius, 2.0)
        return (out * upstream).sum(1)

    tracked = [leaf.clone().requires_grad_() for leaf in leaves]
    gradients = torch.autograd.grad(value(*tracked).sum(), tracked)
    small = 1e-5
    for which, gradient in enumerate(gradients):
        columns = range(5) if which < 2 else [...]
        for column in columns:
            moved = []
            for times in (0, 1, 2):
                arguments = [leaf.clone() for leaf in leaves]
                arguments[which][..., column] += times * small
                moved.append(value(*arguments))
            slope = (-3 * moved[0] + 4 * moved[1] - moved[2]) / (2 * small)
            torch.testing.assert_close(gradient[..., column], slope, rtol=1e-6, atol=1e-6)


@native_only
@grids
def test_gradients_of_hard_rows_with_ties_agree(points: int, seed: int) -> None:
    """Ties, at 0 and below the smallest normal: eager autograd, formulas, kernels."""
    h, sigma, radius = _hard(seed)
    sigma[:, 0] = sigma[:, 2]
    h[0, 0], h[1, 0], h[2, 0] = 0.0, 3e-320, -4e-310
    h[2, 2] = 3e-310
    upstream = torch.randn(3, 5, dtype=torch.float64)
    results = []
    for name in ("eager", "native"):
        leaves = [t.clone().requires_grad_() for t in (h, sigma, radius)]
        out = run(name, PROJECT, leaves[0], None, *leaves[1:2], 0.0, leaves[2], 2.0, points)
        results.append(torch.autograd.grad(out, leaves, upstream))
    results.append(
        reference.project_mahalanobis_shell_backward(upstream, h, sigma, radius, 2.0, points)
    )
    for found in zip(*results, strict=True):
        torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(found[2], found[0], rtol=1e-9, atol=1e-10)
        assert found[0].isfinite().all() and found[0].abs().max() > 0


# ---- edge rows ---------------------------------------------------------------------------------


@implementations
@operators
@grids
def test_gradients_of_edge_rows(
    op: MetricOperator, points: int, implementation: str, seed: int
) -> None:
    """Rows: near, far, inside, zero gradient, no sigma, origin, NaN h, inf grad, bad sigma."""
    torch.manual_seed(seed)
    h, grad, sigma = draw(seed, (9, 7), spread=0.7, ratios=(1.0, 1.0))
    h = h * torch.tensor([0.4, 5.0, 1.4, 0.4, 0.4, 0.0, 1.0, 1.0, 1.0]).double()[:, None]
    grad[[3, 5]], sigma[4], h[6, 5], grad[7, 6], sigma[8, 0] = 0.0, 0.0, math.nan, math.inf, -1.0
    radius = torch.full((9,), 1.75, dtype=torch.float64)
    upstream = torch.randn_like(h)

    def gradients(rows: Tensor) -> list[Tensor]:
        leaves = [t[rows].clone().requires_grad_() for t in (h, grad, sigma, radius)]
        out = run(implementation, op, *leaves[:3], 0.05, leaves[3], 2.0, points)
        out.backward(upstream[rows])
        return [torch.zeros_like(t) if t.grad is None else t.grad for t in leaves]

    grad_h, grad_grad, grad_sigma, grad_radius = every = gradients(torch.arange(9))
    assert all(t[:6].isfinite().all() for t in every)
    for row in (2, 4):  # inside, and without a metric: g, 0, 0
        assert torch.equal(grad_h[row], upstream[row])
        assert not grad_sigma[row].any() and not grad_radius[row]
    for row in (0, 1):
        assert grad_h[row].all() and grad_sigma[row].all()
        # Eager autograd takes the multiplier of a grid point for a constant, so its radius too.
        assert grad_radius[row] or (points and implementation == "eager")
    # The origin takes R / sqrt(max sigma) on one coordinate.
    first = sigma[5].argmax()
    assert grad_radius[5].item() == pytest.approx(
        (upstream[5, first] / sigma[5, first].sqrt()).item()
    )
    assert not grad_h[5, first]
    expected = -0.5 * upstream[5, first] * 1.75 * sigma[5, first] ** -1.5
    assert grad_sigma[5, first].item() == pytest.approx(expected.item())
    assert grad_sigma[5].count_nonzero() == 1
    if op is STEP:
        assert not grad_grad[[3, 5]].any(), "no ascent happened"
        assert grad_grad[[0, 1, 2, 4]].all()
    bad = [6, 8, 7] if op is STEP else [6, 8]
    for row in bad:
        assert grad_h[row].isnan().all()
        for t in (grad_sigma[row], grad_radius[row]):  # eager: no gradient beside the NaN of h
            assert t.isnan().all() or (implementation == "eager" and not t.any())
    # The bad rows touch no other: the good ones alone give the same bits.
    for t, alone in zip(every, gradients(torch.arange(6)), strict=True):
        assert torch.equal(bits(t[:6]), bits(alone))


@implementations
def test_gradients_of_the_norm_where_weights_are_zero(implementation: str, seed: int) -> None:
    """d||h||_S / d sigma_j = h_j^2 / (2 ||h||_S), for sigma_j = 0 too."""
    h, _, sigma = draw(seed, (5, 6))
    sigma[:, ::2] = 0.0
    leaves = [h.requires_grad_(), sigma.requires_grad_()]
    norm = norm_of(implementation, *leaves)
    norm.sum().backward()
    exact = h.detach().square() / (2 * lengths(h, sigma)[:, None])
    torch.testing.assert_close(sigma.grad, exact, rtol=1e-12, atol=0)
    torch.testing.assert_close(norm.detach(), lengths(h, sigma), rtol=1e-12, atol=0)
    assert not h.grad[:, ::2].any() and h.grad[:, 1::2].all()


@implementations
def test_gradients_of_the_norm_on_edge_rows(implementation: str, seed: int) -> None:
    """Rows: ordinary, origin, no sigma, NaN, negative sigma; and any size."""
    h, _, sigma = draw(seed, (5, 4), ratios=(1.0, 1.0))
    h[1], sigma[2], h[3, 0], sigma[4, 1] = 0.0, 0.0, math.nan, -1.0
    leaves = [h.requires_grad_(), sigma.requires_grad_()]
    norm_of(implementation, *leaves).sum().backward()
    for leaf in leaves:
        assert leaf.grad[0].all() and leaf.grad[0].isfinite().all()
        assert not leaf.grad[1:3].any()
        bad = leaf.grad[3:]  # eager: no gradient, but for the NaN coordinate
        assert bad.isnan().all() or (implementation == "eager" and not bad.nan_to_num().any())
    for size in (1e-200, 1e-100, 1e100):  # the gradient of h does not depend on its length
        rows = (h.detach()[:1] * size).requires_grad_()
        norm_of(implementation, rows, sigma.detach()[:1]).sum().backward()
        torch.testing.assert_close(rows.grad, h.grad[:1], rtol=1e-12, atol=0)


@implementations
@operators
@grids
@pytest.mark.parametrize("dtype", DTYPES[:1] + DTYPES[2:], ids=str)
@shared_or_not
def test_gradients_in_each_dtype(
    op: MetricOperator,
    points: int,
    dtype: torch.dtype,
    shared: bool,
    implementation: str,
    seed: int,
) -> None:
    """Against the same implementation in float64 on the same values."""
    torch.manual_seed(seed)
    h, grad, sigma = draw(seed, (12, 37), dtype, 1.0, (0.2, 5.0))
    sigma = sigma[0].clone() if shared else sigma
    radius = 1.75 * torch.linspace(0.8, 1.2, 12)
    upstream = torch.randn(12, 37).to(dtype)

    def gradients(to: torch.dtype) -> tuple[Tensor, ...]:
        rows = radius.double() if to == torch.float64 else radius
        leaves = [t.to(to) for t in (h, grad, sigma)] + [rows]
        leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
        out = run(implementation, op, *leaves[:3], 0.25, leaves[3], 2.0, points)
        leaves = leaves if op is STEP else [leaves[0], *leaves[2:]]
        return torch.autograd.grad(out, leaves, upstream.to(to))

    relative = {torch.float32: 2e-5, torch.float16: 2.0**-9, torch.bfloat16: 2.0**-6}[dtype]
    for actual, wide in zip(gradients(dtype), gradients(torch.float64), strict=True):
        assert actual.dtype == dtype or actual.dim() == 1
        atol = relative * float(wide.abs().max())
        torch.testing.assert_close(actual.double(), wide, rtol=relative, atol=atol)


@implementations
@operators
@grids
def test_expanded_upstream_gradients(
    op: MetricOperator, points: int, implementation: str, seed: int
) -> None:
    """`sum().backward()` hands the operators one element with stride 0."""
    leaves, function = _leaves(op, seed, points=points)
    out = function(implementation)(*leaves)
    column = torch.arange(6.0).double()[None].expand(4, 6)
    for upstream in (torch.ones((), dtype=torch.float64).expand(4, 6), column):
        given = torch.autograd.grad(out, leaves, upstream, retain_graph=True)
        dense = torch.autograd.grad(out, leaves, upstream.clone(), retain_graph=True)
        for a, b in zip(given, dense, strict=True):
            assert torch.equal(a, b)


@implementations
@operators
@shared_or_not
def test_is_grads_batched(op: MetricOperator, shared: bool, implementation: str, seed: int) -> None:
    torch.manual_seed(seed)
    leaves, function = _leaves(op, seed, shared=shared)
    out = function(implementation)(*leaves)
    upstream = torch.randn(5, *out.shape, dtype=torch.float64)
    batched = torch.autograd.grad(out, leaves, upstream, is_grads_batched=True, retain_graph=True)
    one_by_one = [torch.autograd.grad(out, leaves, g, retain_graph=True) for g in upstream]
    for index, result in enumerate(batched):
        torch.testing.assert_close(result, torch.stack([grads[index] for grads in one_by_one]))


@pytest.mark.parametrize("implementation", PUBLIC)
@operators
def test_radius_may_have_another_precision(
    op: MetricOperator, implementation: str, seed: int
) -> None:
    h, grad, sigma = draw(seed, (3, 37), torch.bfloat16, ratios=(0.2, 5.0))
    radius = torch.full((3,), 1.75, dtype=torch.float64, requires_grad=True)
    run(implementation, op, h, grad, sigma, 0.25, radius, 2.0).float().sum().backward()
    assert radius.grad is not None and radius.grad.dtype == torch.float64
    assert radius.grad[0] and radius.grad[2]


@native_only
def test_only_what_is_needed_is_saved() -> None:
    """The backward keeps the inputs and nothing else."""
    tensors = [torch.rand(4, 100).requires_grad_() for _ in range(3)]
    saved = []
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t),
        drocc_ext.use_backend("native"),
    ):
        ops.mahalanobis_shell_step(*tensors, 1.0, 3.0, 2.0)
    assert saved and {t.data_ptr() for t in saved} <= {t.data_ptr() for t in tensors}
