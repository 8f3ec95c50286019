"""The l2 shell operators under opcheck, torch.compile, vmap and autocast."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import (
    BACKENDS,
    IMPLEMENTATIONS,
    OPERATORS,
    Case,
    Operator,
    assert_close,
    exact_step,
    lay_out,
    run,
)
from torch import Tensor

from drocc_ext import ops

operators = pytest.mark.parametrize("op", OPERATORS, ids=str)
implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
backends = pytest.mark.parametrize("implementation", BACKENDS)
STEP = OPERATORS[2]


# ---- opcheck -----------------------------------------------------------------------------------


def _schema_arguments(
    name: str, layout: str, dtype: torch.dtype, per_row: bool, seed: int
) -> tuple[Any, ...]:
    """Arguments of the registered operator `name`, in the order of its schema."""
    inputs = Case((4, 3, 4, 5), dtype, layout).build(seed)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    rows = torch.full((4,), inputs.radius, dtype=compute) if per_row else None
    upstream = torch.randn(4, 1, 1, 1, dtype=compute).to(dtype).expand(4, 3, 4, 5)
    values = {
        "grad_out": upstream,
        "h": inputs.h,
        "grad": inputs.grad,
        "step_size": inputs.step_size,
        "radius": inputs.radius,
        "radius_rows": rows,
        "gamma": inputs.gamma,
    }
    schema = getattr(torch.ops.drocc, name).default._schema
    return tuple(values[argument.name] for argument in schema.arguments)


NAMES = [
    name
    for op in map(str, OPERATORS)
    for name in (op, f"{op}_", f"_{op}_backward")  # functional, in place, derivative
]


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "channels_last", "sliced"])
@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name: str, layout: str, seed: int) -> None:
    """Schema, fake (shapes, dtypes, strides) and autograd registration, in every layout."""
    dtype, per_row = {
        "contiguous": (torch.float64, True),
        "transposed": (torch.bfloat16, False),
        "channels_last": (torch.float32, True),
        "sliced": (torch.float16, False),
    }[layout]
    operator = getattr(torch.ops.drocc, name).default
    arguments = _schema_arguments(name, layout, dtype, per_row, seed)
    tests = ["test_schema", "test_autograd_registration", "test_faketensor"]
    torch.library.opcheck(operator, arguments, test_utils=tests)


@pytest.mark.parametrize("name", NAMES)
def test_opcheck_of_the_traced_graph(name: str, seed: int) -> None:
    """AOT autograd with dynamic shapes; with gradients where the operator has them."""
    arguments = _schema_arguments(name, "channels_last", torch.float32, True, seed)
    if not name.startswith("_") and not name.endswith("_"):
        arguments = tuple(
            a.requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a
            for a in arguments
        )
    torch.library.opcheck(
        getattr(torch.ops.drocc, name).default, arguments, test_utils="test_aot_dispatch_dynamic"
    )


@operators
def test_opcheck_of_an_empty_batch(op: Operator) -> None:
    arguments = op.arguments(torch.empty(0, 5), torch.empty(0, 5), 1.0, 1.0, 2.0)
    if op.projects:
        arguments.insert(-1, None)
    torch.library.opcheck(
        getattr(torch.ops.drocc, op.name).default, tuple(arguments), test_utils="test_faketensor"
    )


# ---- compile -----------------------------------------------------------------------------------


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _compiled(function: Callable[..., Tensor], backend: str) -> Callable[..., Tensor]:
    return torch.compile(function, fullgraph=True, backend=backend)


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("implementation", [b for b in BACKENDS if b != "eager"])
@operators
@pytest.mark.parametrize("in_place", [False, True])
def test_compile(op: Operator, in_place: bool, implementation: str, seed: int) -> None:
    """One graph for several shapes, with what surrounds the operator in it."""
    check_compiled(op, in_place, implementation, seed)


@pytest.mark.usefixtures("_fresh_compiler")
def test_compile_of_one_eager_operator(seed: int) -> None:
    """The quick tier's share of the next test: all of an operator's lines are in its graph."""
    check_compiled(STEP, True, "eager", seed)


@pytest.mark.slow
@pytest.mark.usefixtures("_fresh_compiler")
@operators
@pytest.mark.parametrize("in_place", [False, True])
def test_compile_of_the_eager_operators(op: Operator, in_place: bool, seed: int) -> None:
    check_compiled(op, in_place, "eager", seed)


def check_compiled(op: Operator, in_place: bool, implementation: str, seed: int) -> None:
    def step(h: Tensor, grad: Tensor, size: float, radius: Any, gamma: float) -> Tensor:
        h = h * 1.0 if in_place else h
        return run(implementation, op, h, grad, size, radius, gamma, in_place=in_place) + 0.0

    compiled = _compiled(step, "aot_eager")
    for shape in ((5, 37), (8, 21), (3, 40)):
        inputs = Case(shape).build(seed)
        for radius in (inputs.radius, torch.full(shape[:1], inputs.radius)):
            arguments = (inputs.step_size, radius, inputs.gamma)
            exact, sizes = exact_step(op, inputs.h, inputs.grad, *arguments)
            assert_close(compiled(inputs.h, inputs.grad, *arguments), exact, sizes)


@pytest.mark.usefixtures("_fresh_compiler")
def test_compile_with_inductor(seed: int) -> None:
    """A short search: in place on a fresh tensor, then a functional step with gradients."""

    def search(h: Tensor, grad: Tensor, radius: Tensor) -> Tensor:
        with torch.no_grad():
            start = ops.project_l2_shell_(h.detach() * 2.0, 1.0, 2.0)
            ops.normalized_ascent_(start, grad.detach(), 0.5)
        return ops.l2_shell_step(h + start, grad, 0.5, radius, 1.5).square().sum()

    compiled = _compiled(search, "inductor")
    for shape in ((4, 9), (6, 13)):
        generator = torch.Generator().manual_seed(seed)
        leaves = [
            torch.randn(shape, generator=generator).requires_grad_(),
            torch.randn(shape, generator=generator).requires_grad_(),
            torch.rand(shape[0], generator=generator).add(0.5).requires_grad_(),
        ]
        results = [function(*leaves) for function in (compiled, search)]
        gradients = [torch.autograd.grad(result, leaves) for result in results]
        torch.testing.assert_close(*results)
        torch.testing.assert_close(*gradients)


@pytest.mark.usefixtures("_fresh_compiler")
@operators
def test_compiled_in_place_writes_its_input(op: Operator, seed: int) -> None:
    """h comes from outside: the caller sees the update, and so does autograd."""

    def step(h: Tensor, grad: Tensor) -> Tensor:
        return run(BACKENDS[-1], op, h, grad, 0.5, 2.0, 1.5, in_place=True)

    compiled = _compiled(step, "aot_eager")
    for shape in ((5, 37), (8, 21)):
        inputs = Case(shape).build(seed)
        exact, sizes = exact_step(op, inputs.h, inputs.grad, 0.5, 2.0, 1.5)
        version = inputs.h._version
        assert compiled(inputs.h, inputs.grad) is inputs.h
        assert_close(inputs.h, exact, sizes)
        assert inputs.h._version > version


@pytest.mark.usefixtures("_fresh_compiler")
def test_compiled_calls_refuse_bad_arguments() -> None:
    compiled = _compiled(lambda h: ops.project_l2_shell(h, 1.0, 0.5), "eager")
    with pytest.raises(Exception, match=r"project_l2_shell: gamma must be >= 1, got 0.5"):
        compiled(torch.ones(2, 3))


# ---- vmap --------------------------------------------------------------------------------------


def _stacked(seed: int, count: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    inputs = Case((count * 4, 5, 6)).build(seed)
    radius = inputs.radius * torch.linspace(0.5, 2, count * 4)
    return (t.reshape(count, 4, *t.shape[1:]).clone() for t in (inputs.h, inputs.grad, radius))


IN_DIMS = [(0, 0, 0), (0, None, None), (None, 0, None), (0, None, 0), (1, 0, 1), (2, 3, None)]


@backends
@operators
@pytest.mark.parametrize("in_dims", IN_DIMS, ids=str)
def test_vmap(
    op: Operator, in_dims: tuple[int | None, ...], implementation: str, seed: int
) -> None:
    h, grad, radius = _stacked(seed)

    def step(h: Tensor, grad: Tensor, radius: Tensor) -> Tensor:
        return run(implementation, op, h, grad, 1.0, radius, 1.5)

    moved = [
        t[0] if dim is None else t.movedim(0, dim).contiguous()
        for t, dim in zip((h, grad, radius), in_dims, strict=True)
    ]
    out = torch.vmap(step, in_dims)(*moved)
    for index in range(3):
        one = [
            t if dim is None else t.select(dim, index)
            for t, dim in zip(moved, in_dims, strict=True)
        ]
        torch.testing.assert_close(out[index], step(*one), rtol=1e-6, atol=1e-6)


@backends
@operators
@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (1, 0), (2, 3), (3, None)], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "sliced", "transposed"])
def test_vmap_in_place(
    op: Operator, in_dims: tuple[int | None, ...], layout: str, implementation: str, seed: int
) -> None:
    h, grad, _ = _stacked(seed)
    target = lay_out(h.clone().movedim(0, in_dims[0]).contiguous(), layout)
    moved = grad[0] if in_dims[1] is None else grad.movedim(0, in_dims[1])

    def step(h: Tensor, grad: Tensor) -> Tensor:
        return run(implementation, op, h, grad, 1.0, 2.0, 1.5, in_place=True)

    version = target._version
    torch.vmap(step, in_dims)(target, moved)
    assert target._version > version
    for index in range(3):
        g = grad[0] if in_dims[1] is None else grad[index]
        expected = run(implementation, op, h[index], g, 1.0, 2.0, 1.5)
        actual = target.select(in_dims[0], index)
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("op", [OPERATORS[0], STEP], ids=str)
def test_vmap_in_place_refuses_an_unbatched_h(op: Operator, seed: int) -> None:
    h, grad, _ = _stacked(seed)
    step = torch.vmap(
        lambda h, g: run(BACKENDS[-1], op, h, g, 1.0, 2.0, 1.5, in_place=True), in_dims=(None, 0)
    )
    with pytest.raises(RuntimeError, match=r"h must be mapped too|vmap: .*in-place"):
        step(h[0].clone(), grad)


@backends
@operators
def test_nested_vmap_and_empty_batches(op: Operator, implementation: str, seed: int) -> None:
    h, grad, radius = _stacked(seed)

    def step(h: Tensor, grad: Tensor, radius: Tensor) -> Tensor:
        return run(implementation, op, h, grad, 1.0, radius, 1.5)

    quads = [t.reshape(3, 2, 2, *t.shape[2:]) for t in (h, grad, radius)]
    nested = torch.vmap(torch.vmap(step))(*quads)
    flat = step(h.flatten(0, 1), grad.flatten(0, 1), radius.flatten())
    torch.testing.assert_close(nested.reshape(flat.shape), flat)
    empty = torch.vmap(step)(h[:, :0], grad[:, :0], radius[:, :0])
    assert empty.shape == (3, 0, 5, 6)


@operators
def test_gradients_through_vmap(op: Operator, seed: int) -> None:
    h, grad, radius = (t.requires_grad_() for t in _stacked(seed))

    def step(h: Tensor, grad: Tensor, radius: Tensor) -> Tensor:
        return run(BACKENDS[-1], op, h, grad, 1.0, radius, 1.5)

    leaves = op.arguments(h, grad, None, radius, None)
    leaves = [leaf for leaf in leaves if leaf is not None]
    mapped = torch.autograd.grad(torch.vmap(step)(h, grad, radius).sin().sum(), leaves)
    stacked = torch.stack([step(*one) for one in zip(h, grad, radius, strict=True)])
    torch.testing.assert_close(mapped, torch.autograd.grad(stacked.sin().sum(), leaves))


# ---- autocast ----------------------------------------------------------------------------------


@backends
@operators
def test_autocast_runs_in_float32(op: Operator, implementation: str, seed: int) -> None:
    """Mixed types meet under autocast (a float32 h, a bfloat16 gradient); norms need float32."""
    for dtypes in ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16)):
        inputs = Case((5, 37)).build(seed)
        h, grad = inputs.h.to(dtypes[0]), inputs.grad.to(dtypes[1])
        arguments = (inputs.step_size, inputs.radius, inputs.gamma)
        exact, sizes = exact_step(op, h, grad, *arguments)
        h.requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            out = run(implementation, op, h, grad, *arguments)
        assert out.dtype == torch.float32
        assert_close(out, exact, sizes)
        out.sum().backward()
        assert h.grad is not None and h.grad.dtype == dtypes[0]


@backends
@operators
def test_autocast_leaves_float64_alone(op: Operator, implementation: str, seed: int) -> None:
    inputs = Case((5, 37), torch.float64).build(seed)
    arguments = (inputs.step_size, inputs.radius, inputs.gamma)
    with torch.autocast("cpu", torch.bfloat16):
        out = run(implementation, op, inputs.h, inputs.grad, *arguments)
        with pytest.raises(TypeError, match="grad must have the dtype of h"):
            run(implementation, STEP, inputs.h, inputs.grad.float(), *arguments)
    assert_close(out, *exact_step(op, inputs.h, inputs.grad, *arguments))


@backends
@pytest.mark.parametrize("op", [OPERATORS[0], STEP], ids=str)
def test_in_place_refuses_other_dtypes_under_autocast(op: Operator, implementation: str) -> None:
    """A cast copy would take the update away from h."""
    h, grad = torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(
            TypeError, match=rf"{op}_: grad must have the dtype of h, torch.float32"
        ):
            run(implementation, op, h, grad, 1.0, 2.0, 1.5, in_place=True)
        run(implementation, op, h, grad.float(), 1.0, 2.0, 1.5, in_place=True)
    assert h.dtype == torch.float32 and not torch.equal(h, torch.ones(2, 3))
