"""The Triton kernels on a real GPU: exact values, the native CUDA kernels, graph capture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import CASES, DTYPES, OPERATORS, Case, Operator, assert_close, exact_step, run
from torch import Tensor

import drocc_ext
from drocc_ext import ops
from drocc_ext.ops import _library

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(_library.triton_missing is not None, reason=str(_library.triton_missing)),
]
needs_native = pytest.mark.skipif(
    _library.native_error("cuda") is not None, reason="no native CUDA library to compare with"
)


def _metric(h: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = 10 ** (2 * torch.rand(h.shape, generator=generator, dtype=torch.float64) - 1)
    return values.to(h)


@pytest.mark.parametrize("op", OPERATORS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values(op: Operator, case: Case, seed: int) -> None:
    inputs = case.build(seed, "cuda")
    arguments = (inputs.step_size, inputs.radius, inputs.gamma)
    exact, sizes = exact_step(op, inputs.h.cpu(), inputs.grad.cpu(), *arguments)
    out = run("triton", op, inputs.h, inputs.grad, *arguments)
    assert_close(out.cpu(), exact, sizes)
    run("triton", op, inputs.h, inputs.grad, *arguments, in_place=True)
    assert_close(inputs.h.cpu(), exact, sizes)


def _calls(h: Tensor, grad: Tensor, sigma: Tensor, radius: float) -> dict[str, Any]:
    step = 0.1 * radius
    return {
        "ascent": lambda: ops.normalized_ascent(h, grad, step),
        "project": lambda: ops.project_l2_shell(h, radius, 2.0),
        "step": lambda: ops.l2_shell_step(h, grad, step, radius, 2.0),
        "influence": lambda: ops.influence(grad),
        "norm": lambda: ops.mahalanobis_norm(h, sigma),
        "metric": lambda: ops.project_mahalanobis_shell(h, sigma, radius, 1.5),
        "metric step": lambda: ops.mahalanobis_shell_step(h, grad, sigma, step, radius, 1.5),
        "grid": lambda: ops.mahalanobis_shell_step(
            h, grad, sigma, step, radius, 1.5, solver="grid"
        ),
    }


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(64, 6), (64, 274), (33, 3072), (5, 9000), (3, 150528)], ids=str)
def test_native_and_triton_agree(shape: tuple[int, int], dtype: torch.dtype, seed: int) -> None:
    inputs = Case(shape, dtype).build(seed, "cuda")
    sigma = _metric(inputs.h, seed)
    tolerance = {8: 1e-12, 4: 1e-5, 2: 2.0**-7}[dtype.itemsize]
    leaves = [t.requires_grad_() for t in (inputs.h, inputs.grad, sigma)]
    for name, call in _calls(*leaves, inputs.radius).items():
        results = []
        for backend in ("native", "triton"):
            with drocc_ext.use_backend(backend):
                out = call()
                upstream = torch.ones_like(out)
                grads = torch.autograd.grad(out, leaves, upstream, allow_unused=True)
            results.append([out, *(g for g in grads if g is not None)])
        for native, triton in zip(*results, strict=True):
            atol = tolerance * float(native.abs().max())
            torch.testing.assert_close(triton, native, rtol=tolerance, atol=atol, msg=name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(256, 6), (64, 3072), (4, 150528)], ids=str)
def test_graph_capture(shape: tuple[int, int], dtype: torch.dtype, seed: int) -> None:
    """Captured after one warm-up call, replayed on other values."""
    inputs = Case(shape, dtype).build(seed, "cuda")
    sigma, start = _metric(inputs.h, seed), inputs.h.clone()

    def search() -> None:
        for _ in range(3):
            ops.l2_shell_step_(inputs.h, inputs.grad, inputs.step_size, inputs.radius, 2.0)
            ops.mahalanobis_shell_step_(
                inputs.h, inputs.grad, sigma, inputs.step_size, inputs.radius, 2.0
            )

    with drocc_ext.use_backend("triton"):
        search()
        expected = inputs.h.clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            search()
        inputs.h.copy_(start)
        graph.replay()
    assert torch.equal(inputs.h, expected)


def test_compiled_with_inductor(seed: int) -> None:
    inputs = Case((64, 3072)).build(seed, "cuda")

    def step(h: Tensor, grad: Tensor) -> Tensor:
        moved = ops.l2_shell_step(h * 1.0, grad, 0.5, inputs.radius, 2.0)
        return ops.mahalanobis_shell_step(moved, grad, grad.abs(), 0.5, inputs.radius, 2.0) + 0.0

    with drocc_ext.use_backend("triton"):
        expected = step(inputs.h, inputs.grad)
        out = torch.compile(step, fullgraph=True)(inputs.h, inputs.grad)
    torch.testing.assert_close(out, expected)
    torch._dynamo.reset()


def test_rows_beyond_two_to_the_thirty_one_elements() -> None:
    if torch.cuda.get_device_properties(0).total_memory < 24 * 2**30:
        pytest.skip("needs 24 GiB of device memory")
    h = torch.full((2**20 + 1, 2056), 2.0, dtype=torch.bfloat16, device="cuda")
    with drocc_ext.use_backend("triton"):
        ops.project_l2_shell_(h, 1.0, 1.0)
    assert abs(float(h[-1].float().norm()) - 1) < 2.0**-7 and not bool(h[-1].isnan().any())
