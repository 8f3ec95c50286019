"""Memory of the Mahalanobis shell operators: layouts, aliasing, autograd's bookkeeping."""

from __future__ import annotations

import pytest
import torch
from cases import DTYPES, EVERY_IMPLEMENTATION, IMPLEMENTATIONS, LAYOUTS, lay_out
from mahalanobis_cases import (
    GRIDS,
    OPERATORS,
    STEP,
    MetricOperator,
    draw,
    norm_of,
    run,
)
from torch import Tensor

implementations = pytest.mark.parametrize("implementation", EVERY_IMPLEMENTATION)
operators = pytest.mark.parametrize("op", OPERATORS, ids=str)
grids = pytest.mark.parametrize("points", GRIDS)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
needs_native = pytest.mark.skipif("native" not in IMPLEMENTATIONS, reason="no native library")


def _draw(
    seed: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    return draw(seed, shape, dtype, ratios=(0.2, 5))


def _h(*shape: int) -> Tensor:
    return torch.ones(shape)


# ---- layouts -----------------------------------------------------------------------------------


@implementations
@operators
@grids
@dtypes
@pytest.mark.parametrize("shape", [(5, 37), (4, 3, 8, 8)])
def test_layouts(
    op: MetricOperator,
    points: int,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    implementation: str,
    seed: int,
) -> None:
    """Each tensor on its own, and all, in each layout: what contiguous ones give."""
    eps = torch.finfo(dtype).eps
    # Torch's operators take any layout: in eager it is h's alone that can go wrong.
    each = ({0}, {0, 1, 2}) if implementation == "eager" else ({0}, {1}, {2}, {0, 1, 2})
    for layout in LAYOUTS[1:]:
        h, grad, sigma = _draw(seed, shape, dtype)
        grad, sigma = (lay_out(t, layout, expand=True) for t in (grad, sigma))
        shared = sigma[1]  # of sigma's layout, without the rows
        for metric in (sigma, shared):
            dense = [h, grad.contiguous(), metric.contiguous()]
            expected = run(implementation, op, *dense, 0.25, 1.75, 2.0, points)
            for laid in each:
                choice = [lay_out(h.clone(), layout), grad, metric]
                arguments = [choice[i] if i in laid else dense[i].clone() for i in range(3)]
                before = [t.clone() for t in arguments]
                out = run(implementation, op, *arguments, 0.25, 1.75, 2.0, points)
                torch.testing.assert_close(out, expected, rtol=4 * eps, atol=4 * eps)
                assert all(torch.equal(a, b) for a, b in zip(arguments, before, strict=True))
                rest = (0.25, 1.75, 2.0, points)
                target = run(implementation, op, *arguments, *rest, in_place=True)
                assert target is arguments[0]
                torch.testing.assert_close(target, expected, rtol=4 * eps, atol=4 * eps)
                assert all(
                    torch.equal(a, b) for a, b in zip(arguments[1:], before[1:], strict=True)
                )


@implementations
@operators
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "channels_last", "sliced"])
def test_results_keep_the_layout_of_h(
    op: MetricOperator,
    layout: str,
    implementation: str,
    seed: int,
) -> None:
    h, grad, sigma = _draw(seed, (4, 3, 8, 8))
    out = run(implementation, op, lay_out(h, layout), grad, sigma, 0.25, 1.75, 2.0)
    assert out.stride() == torch.empty_like(lay_out(h, layout)).stride()


@implementations
def test_norm_of_other_layouts(implementation: str, seed: int) -> None:
    h, _, sigma = _draw(seed, (4, 3, 8, 8))
    expected = norm_of(implementation, h, sigma)
    for layout in LAYOUTS[:-1]:
        for metric in (sigma, lay_out(sigma, layout)):
            norms = norm_of(implementation, lay_out(h, layout), metric)
            torch.testing.assert_close(norms, expected, rtol=1e-6, atol=0)
    expanded = norm_of(implementation, h[:1].expand(4, 3, 8, 8), sigma[:1].expand(4, 3, 8, 8))
    torch.testing.assert_close(expanded, expected[:1].expand(4))


# ---- aliasing ----------------------------------------------------------------------------------


@implementations
@grids
def test_h_may_be_its_own_gradient_and_metric(points: int, implementation: str, seed: int) -> None:
    h = _draw(seed, (6, 6))[0].abs() + 0.01
    arguments = (0.25, 1.75, 2.0, points)
    for grad, sigma in (
        (lambda t: t, lambda t: t),
        (lambda t: t.t(), lambda t: t.t()),
        (lambda t: t, lambda t: t[2]),
        (lambda t: t.t(), lambda t: t[:, 3]),
    ):
        expected = run(
            implementation, STEP, h.clone(), grad(h).clone(), sigma(h).clone(), *arguments
        )
        assert torch.equal(run(implementation, STEP, h, grad(h), sigma(h), *arguments), expected)
        target = h.clone()
        run(implementation, STEP, target, grad(target), sigma(target), *arguments, in_place=True)
        torch.testing.assert_close(target, expected, rtol=1e-6, atol=1e-7)


@implementations
@operators
@grids
def test_sigma_and_radius_may_be_views_of_h(
    op: MetricOperator, points: int, implementation: str, seed: int
) -> None:
    torch.manual_seed(seed)
    h, grad, plain = 0.1 + torch.rand(64, 64), torch.randn(64, 64), 0.1 + torch.rand(64)
    for sigma in (lambda t: t[0], lambda t: t[:, 5], lambda t: t.view(-1)[7:71], lambda t: plain):
        for radius in (lambda t: t[9], lambda t: t[:, 2], lambda t: t.view(-1)[7:71]):
            written = h.clone()
            metric, radii = sigma(h).clone(), radius(h).clone()
            expected = run(implementation, op, h, grad, metric, 0.2, radii, 1.5, points)
            arguments = (written, grad, sigma(written), 0.2, radius(written), 1.5, points)
            run(implementation, op, *arguments, in_place=True)
            assert torch.equal(written, expected)


@implementations
@operators
def test_a_sigma_that_overlaps_h_in_part(
    op: MetricOperator, implementation: str, seed: int
) -> None:
    """Rows of the one beside rows of the other: a written row must not become a later metric."""
    torch.manual_seed(seed)
    memory, grad = 0.1 + torch.rand(40), torch.randn(4, 8)
    h, sigma = memory[8:].view(4, 8), memory[:32].view(4, 8)
    expected = run(implementation, op, h.clone(), grad, sigma.clone(), 0.2, 1.75, 1.5)
    run(implementation, op, h, grad, sigma, 0.2, 1.75, 1.5, in_place=True)
    assert torch.equal(h, expected)


@needs_native
def test_a_gradient_that_overlaps_h_in_part_is_refused(seed: int) -> None:
    memory = torch.rand(40)
    h, grad = memory[:32].view(4, 8), memory[4:36].view(4, 8)
    with pytest.raises(RuntimeError, match=f"{STEP}_: h and grad must not partly share memory"):
        run("native", STEP, h, grad, _h(8), 1.0, 1.0, 2.0, in_place=True)
