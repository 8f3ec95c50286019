"""The Mahalanobis operators under opcheck, torch.compile, torch.func and autocast."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import IMPLEMENTATIONS, lay_out
from mahalanobis_cases import (
    GRIDS,
    OPERATORS,
    PROJECT,
    STEP,
    MetricOperator,
    draw,
    norm_of,
    run,
)
from torch import Tensor

from drocc_ext import ops

operators = pytest.mark.parametrize("op", OPERATORS, ids=str)
grids = pytest.mark.parametrize("points", GRIDS)
shared_or_not = pytest.mark.parametrize("shared", [False, True])
backends = pytest.mark.parametrize("implementation", ["eager", "auto"])
native_only = pytest.mark.skipif("native" not in IMPLEMENTATIONS, reason="no native library")


def _draw(seed: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Any:
    return draw(seed, shape, dtype, ratios=(0.2, 5))


# ---- opcheck -----------------------------------------------------------------------------------


def _schema_arguments(
    name: str, layout: str, dtype: torch.dtype, per_row: bool, shared: bool, seed: int
) -> tuple[Any, ...]:
    """Arguments of the registered operator `name`, in the order of its schema."""
    h, grad, sigma = (lay_out(t, layout) for t in _draw(seed, (4, 3, 4, 5), dtype))
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    upstream = torch.randn(4, 1, 1, 1, dtype=compute).to(dtype).expand(4, 3, 4, 5)
    if name == "_mahalanobis_norm_backward":
        upstream = torch.randn(1, dtype=compute).expand(4)
    values = {
        "grad_out": upstream,
        "h": h,
        "grad": grad,
        "sigma": sigma[1] if shared else sigma,
        "step_size": 0.25,
        "radius": 1.75,
        "radius_rows": torch.full((4,), 1.75, dtype=compute) if per_row else None,
        "gamma": 2.0,
        "grid_points": 17 if per_row else 0,
    }
    schema = getattr(torch.ops.drocc, name).default._schema
    return tuple(values[argument.name] for argument in schema.arguments)


NAMES = [
    "mahalanobis_norm",
    "_mahalanobis_norm_backward",
    *(name for op in map(str, OPERATORS) for name in (op, f"{op}_", f"_{op}_backward")),
]


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "channels_last", "sliced"])
@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name: str, layout: str, seed: int) -> None:
    """Schema, fake (shapes, dtypes, strides) and autograd registration, in every layout."""
    dtype, per_row, shared = {
        "contiguous": (torch.float64, True, False),
        "transposed": (torch.bfloat16, False, True),
        "channels_last": (torch.float32, True, True),
        "sliced": (torch.float16, False, False),
    }[layout]
    arguments = _schema_arguments(name, layout, dtype, per_row, shared, seed)
    tests = ["test_schema", "test_autograd_registration", "test_faketensor"]
    torch.library.opcheck(getattr(torch.ops.drocc, name).default, arguments, test_utils=tests)


@shared_or_not
@pytest.mark.parametrize("name", NAMES)
def test_opcheck_of_the_traced_graph(name: str, shared: bool, seed: int) -> None:
    """AOT autograd with dynamic shapes; with gradients where the operator has them."""
    arguments = _schema_arguments(name, "channels_last", torch.float32, True, shared, seed)
    if not name.startswith("_") and not name.endswith("_"):
        arguments = tuple(
            a.detach().requires_grad_() if isinstance(a, Tensor) else a for a in arguments
        )
    torch.library.opcheck(
        getattr(torch.ops.drocc, name).default, arguments, test_utils="test_aot_dispatch_dynamic"
    )


def test_opcheck_of_an_empty_batch() -> None:
    h, native = torch.empty(0, 5), torch.ops.drocc
    for operator, arguments in (
        (native.mahalanobis_norm, (h, h)),
        (native.project_mahalanobis_shell, (h, h, 1.0, None, 2.0, 0)),
        (native.mahalanobis_shell_step, (h, h, torch.ones(5), 1.0, 1.0, None, 2.0, 17)),
    ):
        torch.library.opcheck(operator.default, arguments, test_utils="test_faketensor")


# ---- compile -----------------------------------------------------------------------------------


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _compiled(function: Callable[..., Tensor], backend: str) -> Callable[..., Tensor]:
    return torch.compile(function, fullgraph=True, backend=backend)


@pytest.mark.usefixtures("_fresh_compiler")
@operators
@grids
@pytest.mark.parametrize("in_place", [False, True])
def test_compile(op: MetricOperator, points: int, in_place: bool, seed: int) -> None:
    """One graph for several shapes, with what surrounds the operator in it."""

    def step(h: Tensor, grad: Tensor, sigma: Tensor, radius: Any) -> Tensor:
        h = h * 1.0 if in_place else h
        arguments = (h, grad, sigma * 1.0, 0.25, radius, 2.0, points)
        return run("auto", op, *arguments, in_place=in_place) + 0.0

    compiled = _compiled(step, "aot_eager")
    for shape in ((5, 37), (8, 21)):
        h, grad, sigma = _draw(seed, shape)
        for metric, radius in ((sigma, 1.75), (sigma[0], torch.full(shape[:1], 1.75))):
            expected = step(h, grad, metric, radius)
            actual = compiled(h, grad, metric, radius)
            torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("in_place", [False, True])
def test_compile_of_the_eager_operator(in_place: bool, seed: int) -> None:
    """Traced without reading values: a fixed number of Newton steps, a long graph, so few cases."""
    h, grad, sigma = _draw(seed, (5, 37))
    arguments = (h, grad, sigma, 0.25, 1.75, 2.0, 3)
    expected = run("eager", STEP, *arguments)
    compiled = _compiled(lambda *a: run("eager", STEP, *a, in_place=in_place), "eager")
    torch.testing.assert_close(compiled(*arguments), expected, rtol=1e-6, atol=1e-6)


# Minutes where nothing is compiled yet; the l2 shell has such a test in the quick tier.
@pytest.mark.slow
@pytest.mark.usefixtures("_fresh_compiler")
def test_compile_with_inductor(seed: int) -> None:
    """A short search: in place on a fresh tensor, then a functional step with gradients."""

    def search(h: Tensor, grad: Tensor, sigma: Tensor, radius: Tensor) -> Tensor:
        with torch.no_grad():
            start = ops.project_mahalanobis_shell_(h.detach() * 2.0, sigma.detach(), 1.0, 2.0)
            ops.mahalanobis_shell_step_(start, grad.detach(), sigma.detach(), 0.5, 1.0, 2.0, "grid")
        out = ops.mahalanobis_shell_step(h + start, grad, sigma, 0.5, radius, 1.5)
        return out.square().sum() + ops.mahalanobis_norm(out, sigma).sum()

    compiled = _compiled(search, "inductor")
    h, grad, sigma = _draw(seed, (4, 9))
    leaves = [t.requires_grad_() for t in (h, grad, sigma, torch.rand(4) + 0.5)]
    results = [function(*leaves) for function in (compiled, search)]
    gradients = [torch.autograd.grad(result, leaves) for result in results]
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("_fresh_compiler")
@operators
def test_compiled_in_place_writes_its_input(op: MetricOperator, seed: int) -> None:
    """h comes from outside: the caller sees the update, and so does autograd."""

    def step(h: Tensor, grad: Tensor, sigma: Tensor) -> Tensor:
        return run("auto", op, h, grad, sigma, 0.25, 1.75, 1.5, in_place=True)

    compiled = _compiled(step, "aot_eager")
    for shape in ((5, 37), (8, 21)):
        h, grad, sigma = _draw(seed, shape)
        expected = run("auto", op, h, grad, sigma, 0.25, 1.75, 1.5)
        version = h._version
        assert compiled(h, grad, sigma) is h
        assert torch.equal(h, expected) and h._version > version


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("in_place", [False, True])
def test_compiled_calls_refuse_bad_arguments(in_place: bool) -> None:
    function = getattr(ops, PROJECT.name + "_" * in_place)
    compiled = _compiled(lambda h, s: function(h, s, 1.0, 0.5), "eager")
    with pytest.raises(Exception, match=r"project_mahalanobis_shell_?: gamma must be >= 1"):
        compiled(torch.ones(2, 3), torch.ones(3))


# ---- torch.func --------------------------------------------------------------------------------


@native_only
@operators
@grids
@shared_or_not
def test_function_transforms_run_the_eager_operator(
    op: MetricOperator, points: int, shared: bool, seed: int
) -> None:
    """For registered operators torch refuses the one and drops the tangent of the other."""
    h, grad, sigma = _draw(seed, (6, 7), torch.float64)
    plain = (h, grad, sigma[0] if shared else sigma, torch.full((6,), 1.75).double())
    tangents = tuple(torch.randn_like(t) for t in plain)

    def call(name: str, *args: Tensor) -> Tensor:
        return run(name, op, *args[:3], 0.25, args[3], 2.0, points)

    leaves = [t.clone().requires_grad_() for t in plain]
    taken = (0, 1, 2, 3) if op is STEP else (0, 2, 3)
    loss = call("eager", *leaves).sin().sum()
    expected = torch.autograd.grad(loss, [leaves[i] for i in taken])
    for name in ("native", "eager"):
        found = torch.func.grad(lambda *a, n=name: call(n, *a).sin().sum(), taken)(*plain)
        torch.testing.assert_close(found, expected)
        out, slope = torch.func.jvp(lambda *a, n=name: call(n, *a).sin().sum(), plain, tangents)
        along = sum((g * tangents[i]).sum() for g, i in zip(expected, taken, strict=True))
        torch.testing.assert_close(out, loss.detach())
        torch.testing.assert_close(slope, along)
        assert along.abs() > 0


@backends
def test_function_transforms_of_the_norm(implementation: str, seed: int) -> None:
    h, _, sigma = _draw(seed, (6, 7), torch.float64)
    leaves = [h.clone().requires_grad_(), sigma.clone().requires_grad_()]
    expected = torch.autograd.grad(norm_of("eager", *leaves).sum(), leaves)

    def total(h: Tensor, sigma: Tensor) -> Tensor:
        return norm_of(implementation, h, sigma).sum()

    torch.testing.assert_close(torch.func.grad(total, (0, 1))(h, sigma), expected)
    slope = torch.func.jvp(total, (h, sigma), (h, sigma))[1]
    torch.testing.assert_close(slope, (expected[0] * h).sum() + (expected[1] * sigma).sum())


# ---- autocast ----------------------------------------------------------------------------------


@backends
@operators
@grids
def test_autocast_runs_in_float32(
    op: MetricOperator, points: int, implementation: str, seed: int
) -> None:
    """Mixed types meet under autocast (a float32 h, a bfloat16 metric)."""
    wide, half = torch.float32, torch.bfloat16
    for dtypes in ((wide, half, half), (half, half, half), (half, wide, wide), (wide, wide, half)):
        tensors = [t.to(d) for t, d in zip(_draw(seed, (5, 37)), dtypes, strict=True)]
        floats = [t.float() for t in tensors]
        expected = run(implementation, op, *floats, 0.25, 1.75, 2.0, points)
        norms = norm_of(implementation, floats[0], floats[2])
        tensors[0].requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            out = run(implementation, op, *tensors, 0.25, 1.75, 2.0, points)
            norm = norm_of(implementation, tensors[0], tensors[2])
        assert out.dtype == norm.dtype == torch.float32
        torch.testing.assert_close(out, expected, rtol=0, atol=0)
        torch.testing.assert_close(norm, norms, rtol=0, atol=0)
        (out.sum() + norm.sum()).backward()
        assert tensors[0].grad is not None and tensors[0].grad.dtype == dtypes[0]


@backends
@operators
def test_autocast_leaves_float64_alone(op: MetricOperator, implementation: str, seed: int) -> None:
    h, grad, sigma = _draw(seed, (5, 37), torch.float64)
    expected = run(implementation, op, h, grad, sigma, 0.25, 1.75, 2.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(run(implementation, op, h, grad, sigma, 0.25, 1.75, 2.0), expected)
        with pytest.raises(TypeError, match="sigma must have the dtype of h"):
            run(implementation, op, h, grad, sigma.float(), 0.25, 1.75, 2.0)


@backends
@operators
def test_in_place_refuses_other_dtypes_under_autocast(
    op: MetricOperator, implementation: str
) -> None:
    """A cast copy would take the update away from h."""
    h, sigma = torch.ones(2, 3), torch.ones(3, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        match = rf"{op}_: sigma must have the dtype of h, torch.float32"
        with pytest.raises(TypeError, match=match):
            run(implementation, op, h, h, sigma, 1.0, 2.0, 1.5, in_place=True)
        assert torch.equal(h, torch.ones(2, 3))
        run(implementation, op, h, h.clone(), sigma.float(), 1.0, 2.0, 1.5, in_place=True)
    assert h.dtype == torch.float32 and not torch.equal(h, torch.ones(2, 3))
