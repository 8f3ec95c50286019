"""`influence`: values, edge rows, derivatives and transforms."""

from __future__ import annotations

import math
import re

import pytest
import torch
from cases import (
    BACKENDS,
    CASES,
    DTYPES,
    EVERY_IMPLEMENTATION,
    Case,
    assert_close,
    bits,
    on_cuda,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import drocc_ext
from drocc_ext import ops
from drocc_ext.ops import _library

implementations = pytest.mark.parametrize("implementation", EVERY_IMPLEMENTATION)
backends = pytest.mark.parametrize("implementation", BACKENDS)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
native_only = pytest.mark.skipif(_library.cpu_error is not None, reason="no native library")


def influence(implementation: str, grad: Tensor) -> Tensor:
    if implementation == "cuda":
        return influence("native", on_cuda(grad)[0]).cpu()
    if implementation == "operator":
        result: Tensor = torch.ops.drocc.influence(grad)
        return result
    with drocc_ext.use_backend(implementation):
        return ops.influence(grad)


def exact_influence(grad: Tensor) -> Tensor:
    """|g| / mean |g| by loops, with sums rounded once (`math.fsum`)."""
    rows = []
    for row in grad.double().flatten(1).tolist():
        largest = max(map(abs, row))
        magnitudes = [abs(g) / largest if largest else 1.0 for g in row]
        mean = math.fsum(magnitudes) / len(row)
        rows.append([magnitude / mean for magnitude in magnitudes])
    if not rows:
        return torch.empty(grad.shape, dtype=torch.float64)
    return torch.tensor(rows, dtype=torch.float64).reshape(grad.shape)


@implementations
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values(case: Case, implementation: str, seed: int) -> None:
    grad = case.build(seed).grad
    before = grad.clone()
    sigma = influence(implementation, grad)
    assert sigma.dtype == case.dtype and torch.equal(grad, before)
    assert_close(sigma, exact_influence(grad))


@implementations
@pytest.mark.parametrize("fill", ["uniform", "constant"])
def test_long_rows_have_mean_one_to_1e_6(fill: str, implementation: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    grad = torch.rand(3, 150528, generator=generator) + 0.1
    grad = grad if fill == "uniform" else grad[:, :1].expand_as(grad).contiguous()
    sigma = influence(implementation, grad)
    assert ((sigma.double().mean(1) - 1).abs() < 1e-6).all()


@implementations
def test_no_chain_of_additions_grows_with_the_row(implementation: str, seed: int) -> None:
    """Equal numbers: every addition of a chain errs the same way. 1e-13 is some 1200 of them."""
    generator = torch.Generator().manual_seed(seed)
    value = torch.rand(8, 1, generator=generator, dtype=torch.float64) + 0.1
    grad = value.expand(8, 150528).contiguous()
    grad[:, 0] = 2.0  # or the rows would be in units of their value, which is exact
    sigma = influence(implementation, grad)
    mean = value.double() * (150527 / 150528) + 2.0 / 150528
    exact = (grad / mean)[:, [0, -1]]
    assert ((sigma[:, [0, -1]] / exact - 1).abs() <= 1e-13).all()


problems = {
    "seed": st.integers(0, 2**31 - 1),
    "batch": st.integers(1, 5),
    "features": st.integers(1, 40),
    "dtype": st.sampled_from(DTYPES[:2]),
}


@implementations
@settings(max_examples=40, deadline=None)
@given(**problems)
def test_properties(
    implementation: str, seed: int, batch: int, features: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    grad = torch.randn(batch, features, generator=generator, dtype=dtype)
    sigma = influence(implementation, grad)
    assert (sigma >= 0).all()
    torch.testing.assert_close(sigma.mean(1), torch.ones(batch, dtype=dtype))
    # Neither sign nor a power of two matters; rows and columns permute along.
    assert torch.equal(influence(implementation, -grad * 2.0**9), sigma)
    rows = torch.randperm(batch, generator=generator)
    assert torch.equal(influence(implementation, grad[rows]), sigma[rows])
    columns = torch.randperm(features, generator=generator)
    torch.testing.assert_close(influence(implementation, grad[:, columns]), sigma[:, columns])


@implementations
@dtypes
def test_edge_rows(dtype: torch.dtype, implementation: str, seed: int) -> None:
    grad = Case((6, 37), dtype).build(seed).grad
    clean = influence(implementation, grad)
    grad[1] = 0.0
    grad[2, 5] = math.nan
    grad[4, -1] = math.inf
    sigma = influence(implementation, grad)
    assert (sigma[1] == 1.0).all()
    assert sigma[[2, 4]].isnan().all()
    good = [0, 3, 5]
    assert torch.equal(bits(sigma[good]), bits(clean[good]))


@implementations
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_tiny_and_huge_rows(dtype: torch.dtype, implementation: str) -> None:
    limits = torch.finfo(dtype)
    smallest = limits.smallest_normal * limits.eps
    pattern = torch.tensor([[1.0, -2.0, 0.0, 5.0]], dtype=torch.float64)
    for size in (smallest, limits.smallest_normal, 1e-30, 1e30, limits.max / 8):
        grad = (pattern * size).to(dtype)
        assert_close(influence(implementation, grad), exact_influence(grad))


@implementations
@dtypes
@pytest.mark.parametrize("shape", [(0, 8), (0, 2, 3)])
def test_empty_batch(shape: tuple[int, ...], dtype: torch.dtype, implementation: str) -> None:
    assert influence(implementation, torch.empty(shape, dtype=dtype)).shape == shape


@backends
def test_bad_arguments(implementation: str) -> None:
    for grad, error, message in (
        ("g", TypeError, "influence: grad must be a tensor, got str"),
        (torch.ones(2, 3).long(), TypeError, "influence: grad must be float32, float64, float16"),
        (torch.ones(3), ValueError, "influence: grad must have shape [B, *]"),
        (torch.ones(2, 0), ValueError, "influence: grad must have at least one feature"),
    ):
        with pytest.raises(error, match=re.escape(message)):
            influence(implementation, grad)


@native_only
def test_the_native_operator_checks_for_itself() -> None:
    for grad, message in (
        (torch.ones(3), "influence: grad must have a batch and at least one feature dimension"),
        (torch.ones(2, 0), "influence: grad must have at least one feature"),
        (torch.ones(2, 3).int(), "influence: grad must be float32, float64, float16 or bfloat16"),
    ):
        with pytest.raises(RuntimeError, match=re.escape(message)):
            torch.ops.drocc.influence(grad)


# ---- derivatives -------------------------------------------------------------------------------


def _leaf(seed: int) -> Tensor:
    """Away from 0, where |g| has a kink."""
    generator = torch.Generator().manual_seed(seed)
    grad = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    return (grad + 0.1 * grad.sign()).requires_grad_()


@implementations
def test_gradcheck(implementation: str, seed: int) -> None:
    assert torch.autograd.gradcheck(lambda g: influence(implementation, g), _leaf(seed))


def test_second_order(seed: int) -> None:
    assert torch.autograd.gradgradcheck(lambda g: influence("eager", g), _leaf(seed))


@native_only
def test_native_refusals(seed: int) -> None:
    leaf = _leaf(seed)
    (first,) = torch.autograd.grad(influence("native", leaf).sin().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="_influence_backward: second derivatives are not avail"):
        first.sum().backward()


@native_only
def test_function_transforms_run_the_eager_operator(seed: int) -> None:
    """For registered operators torch refuses the one and drops the tangent of the other."""
    plain = _leaf(seed).detach()
    tangent = torch.randn_like(plain)
    for transform in (
        lambda name: torch.func.grad(lambda g: influence(name, g).sin().sum())(plain),
        lambda name: torch.func.jvp(lambda g: influence(name, g), (plain,), (tangent,))[1],
    ):
        torch.testing.assert_close(transform("native"), transform("eager"))
        assert transform("native").abs().max() > 0


@implementations
def test_gradients_of_edge_rows(implementation: str, seed: int) -> None:
    torch.manual_seed(seed)
    grad = _leaf(seed).detach().clone()
    grad[1] = 0.0
    grad[2, 0] = math.nan
    leaf = grad.clone().requires_grad_()
    upstream = torch.randn_like(grad)
    influence(implementation, leaf).backward(upstream)
    assert not leaf.grad[1].any(), "a zero row gives ones whatever happens around it"
    alone = grad[[0, 1, 3]].requires_grad_()
    influence(implementation, alone).backward(upstream[[0, 1, 3]])
    assert torch.equal(leaf.grad[[0, 1, 3]], alone.grad)


@implementations
def test_expanded_and_batched_upstream_gradients(implementation: str, seed: int) -> None:
    torch.manual_seed(seed)
    leaf = _leaf(seed)
    sigma = influence(implementation, leaf)
    column = torch.arange(6.0).double()[None]
    (given,) = torch.autograd.grad(sigma, leaf, column.expand(4, 6), retain_graph=True)
    (dense,) = torch.autograd.grad(sigma, leaf, column.repeat(4, 1), retain_graph=True)
    assert torch.equal(given, dense)
    upstream = torch.randn(3, 4, 6, dtype=torch.float64)
    (batched,) = torch.autograd.grad(
        sigma, leaf, upstream, is_grads_batched=True, retain_graph=True
    )
    for result, one in zip(batched, upstream, strict=True):
        torch.testing.assert_close(
            result, torch.autograd.grad(sigma, leaf, one, retain_graph=True)[0]
        )


# ---- transforms --------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "channels_last", "sliced"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_opcheck(dtype: torch.dtype, layout: str, seed: int) -> None:
    torch.manual_seed(seed)
    grad = Case((4, 3, 4, 5), dtype, layout).build(seed).grad
    upstream = torch.randn(4, 1, 1, 1).to(dtype).expand(4, 3, 4, 5)
    tests = ["test_schema", "test_autograd_registration", "test_faketensor"]
    torch.library.opcheck(torch.ops.drocc.influence.default, (grad,), test_utils=tests)
    arguments = (upstream, grad)
    torch.library.opcheck(torch.ops.drocc._influence_backward.default, arguments, test_utils=tests)


def test_opcheck_of_the_traced_graph(seed: int) -> None:
    grad = Case((4, 3, 4, 5), layout="channels_last").build(seed).grad
    test = "test_aot_dispatch_dynamic"
    backward = torch.ops.drocc._influence_backward.default
    torch.library.opcheck(backward, (grad, grad), test_utils=test)
    forward = torch.ops.drocc.influence.default
    torch.library.opcheck(forward, (grad.requires_grad_(),), test_utils=test)


@backends
def test_compile(implementation: str, seed: int) -> None:
    torch.manual_seed(seed)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda g: influence(implementation, g * 2.0), fullgraph=True, backend="aot_eager"
    )
    for shape in ((5, 37), (8, 21)):
        grad = Case(shape).build(seed).grad.requires_grad_()
        sigma = compiled(grad)
        assert_close(sigma, exact_influence(grad.detach()))
        plain = influence(implementation, grad)
        upstream = torch.randn_like(plain)
        torch.testing.assert_close(
            torch.autograd.grad(sigma, grad, upstream), torch.autograd.grad(plain, grad, upstream)
        )
    torch._dynamo.reset()


@backends
@pytest.mark.parametrize("dim", [0, 1, 3])
def test_vmap(dim: int, implementation: str, seed: int) -> None:
    grad = Case((4, 3, 8, 8)).build(seed).grad
    mapped = torch.vmap(lambda g: influence(implementation, g), dim)(grad)
    for index in range(grad.shape[dim]):
        one = influence(implementation, grad.select(dim, index))
        torch.testing.assert_close(mapped[index], one)
    nested = torch.vmap(torch.vmap(lambda g: influence(implementation, g)))(grad)
    torch.testing.assert_close(nested[1, 2], influence(implementation, grad[1, 2]))


@backends
def test_autocast_and_inference_mode(implementation: str, seed: int) -> None:
    grad = Case((5, 37), torch.bfloat16).build(seed).grad
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        sigma = influence(implementation, grad)
        assert influence(implementation, grad.double()).dtype == torch.float64
    assert sigma.dtype == torch.float32
    assert_close(sigma, exact_influence(grad))
