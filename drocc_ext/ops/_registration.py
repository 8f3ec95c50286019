"""Registers what follows from an operator's row in `_table`.

That is its fake, fallback, derivative, autocast and vmap. The operators stand in two namespaces:
`drocc` has the native kernels and the eager fallbacks, `drocc_triton` the Triton kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.functional_tensor import FunctionalTensorMode

from drocc_ext.ops import _triton
from drocc_ext.ops._checks import compute_dtype
from drocc_ext.ops._table import OPERATORS, SCHEMAS, Arguments, Operator

NAMESPACES = ("drocc", "drocc_triton")

REFUSAL = (
    "{name}: second derivatives are not available; use the eager backend "
    '(drocc_ext.use_backend("eager")), whose operators torch differentiates any number of times'
)

Rule = Callable[..., Any]


def register() -> None:
    """Register every operator, once a process.

    A second import of this package, in a process that has dropped the first, uses what the first
    registered: torch neither defines an operator twice nor keeps it longer than its library object.
    """
    for namespace in NAMESPACES:
        operators = getattr(torch.ops, namespace)
        if "_registered" in vars(operators):
            continue
        library: Any = torch.library.Library(namespace, "FRAGMENT")  # type: ignore[no-untyped-call]
        for name, schema in SCHEMAS.items():
            if not hasattr(operators, name):  # the native library has not defined it
                library.define(schema)
        for operator in OPERATORS.values():
            _register(operator, library)
        operators._registered = library


def _register(operator: Operator, library: Any) -> None:
    name, backward = operator.name, f"_{operator.name}_backward"
    rules: dict[str, tuple[Rule, Rule]] = {
        name: (_fake(operator), _fallback(operator)),
        backward: (_fake_backward(operator), _fallback_backward(operator)),
    }
    if operator.in_place:
        rules[operator.twin] = (_fake_in_place(operator), _fallback_in_place(operator))
    for each, (fake, fallback) in rules.items():
        qualified = f"{library.ns}::{each}"
        torch.library.register_fake(qualified, fake, lib=library)
        torch.library.register_vmap(qualified, _vmap(operator, each, library.ns), lib=library)
        if library.ns == "drocc_triton":
            fallback = _triton.implementation(operator.module, each)
            rule = _triton.decomposition(operator.module, each)
            mode = FunctionalTensorMode
            torch.library.register_torch_dispatch(qualified, mode, rule, lib=library)
        # For devices without kernels: everywhere, if the native libraries are missing.
        library.impl(each, fallback, "CompositeExplicitAutograd")
    # At the dispatcher, so that callers of `torch.ops` have the derivative too.
    torch.library.register_autograd(
        f"{library.ns}::{name}",
        _derivative(operator, library.ns),
        setup_context=_save_inputs(operator),
        lib=library,
    )
    refusal = _refusal(f"{library.ns}::{backward}")
    torch.library.register_autograd(f"{library.ns}::{backward}", refusal, lib=library)
    # float32, in which torch runs norms too: half-precision norms lose the shell.
    for device_type in ("cpu", "cuda"):
        torch.library.register_autocast(
            f"{library.ns}::{name}", device_type, torch.float32, lib=library
        )


# ---- fakes: shapes, dtypes and strides of results ----------------------------------------------


def _row_values_like(h: Tensor) -> Tensor:
    return h.new_empty(h.shape[0], dtype=compute_dtype(h.dtype))


def _sigma_rows_like(h: Tensor) -> Tensor:
    """Gradients of every row's sigma, `[B, D]`, in the compute type: they may be summed later."""
    return h.new_empty((h.shape[0], math.prod(h.shape[1:])), dtype=compute_dtype(h.dtype))


def _fake(operator: Operator) -> Rule:
    def fake(*arguments: Any) -> Tensor:
        operator.check(operator.name, *operator.public(arguments))
        like = _row_values_like if operator.per_row else torch.empty_like
        return like(arguments[0])

    return fake


def _fake_in_place(operator: Operator) -> Rule:
    def fake(*arguments: Any) -> None:
        operator.check(operator.twin, *operator.public(arguments))

    return fake


def _fake_backward(operator: Operator) -> Rule:
    saved = operator.saved()

    def fake(grad_out: Tensor, *arguments: Any) -> Any:
        h, gradients = arguments[0], []
        for (name, kind), value in zip(saved.items(), arguments, strict=True):
            if name == "radius_rows":
                gradients.append(_row_values_like(h))
            elif name == "sigma":
                gradients.append(_sigma_rows_like(h))
            elif kind == "Tensor":
                contiguous = torch.contiguous_format
                gradients.append(torch.empty_like(value, memory_format=contiguous))
        return tuple(gradients) if len(gradients) > 1 else gradients[0]

    return fake


# ---- fallbacks: eager PyTorch ------------------------------------------------------------------


def _checked_forward(operator: Operator, name: str, arguments: Arguments) -> Tensor:
    # As kernels do: `call_in_place` and callers of `torch.ops` rely on it.
    return operator.forward(*operator.public(operator.check(name, *operator.public(arguments))))


def _fallback(operator: Operator) -> Rule:
    def forward(*arguments: Any) -> Tensor:
        result = _checked_forward(operator, operator.name, arguments)
        if operator.per_row:
            return result
        laid_out = torch.empty_like(arguments[0])  # as the kernels make it
        return result if result.stride() == laid_out.stride() else laid_out.copy_(result)

    return forward


def _fallback_in_place(operator: Operator) -> Rule:
    def forward(h: Tensor, *others: Any) -> None:
        h.copy_(_checked_forward(operator, operator.twin, (h, *others)))

    return forward


def _fallback_backward(operator: Operator) -> Rule:
    def backward(grad_out: Tensor, *arguments: Any) -> Any:
        given = arguments if operator.adds_first else operator.public(arguments)
        gradients = operator.backward(grad_out, *given)
        if isinstance(gradients, Tensor):
            return gradients.contiguous()
        return tuple(gradient.contiguous() for gradient in gradients)

    return backward


# ---- derivatives -------------------------------------------------------------------------------
# The formulas stand in csrc/math/. Only inputs are saved; what else they need is computed again.


def _save_inputs(operator: Operator) -> Rule:
    def setup(ctx: Any, inputs: Arguments, output: Tensor) -> None:
        saved = list(zip(operator.types.values(), inputs, strict=True))[operator.adds_first :]
        ctx.save_for_backward(*(value for kind, value in saved if kind.startswith("Tensor")))
        ctx.numbers = [value for kind, value in saved if not kind.startswith("Tensor")]

    return setup


def _derivative(operator: Operator, namespace: str) -> Rule:
    operators, saved = getattr(torch.ops, namespace), operator.saved()

    def derivative(ctx: Any, grad_out: Tensor) -> Any:
        tensors, numbers = iter(ctx.saved_tensors), iter(ctx.numbers)
        given = {
            name: next(tensors if kind.startswith("Tensor") else numbers)
            for name, kind in saved.items()
        }
        passed = (grad_out,) if operator.adds_first else ()
        if not any(ctx.needs_input_grad[len(passed) :]):
            return (*passed, *(None for _ in given))
        backward = getattr(operators, f"_{operator.name}_backward")
        results = backward(grad_out, *given.values())
        gradients = iter((results,) if isinstance(results, Tensor) else results)
        return (*passed, *(_gradient(name, given, gradients) for name in given))

    return derivative


def _gradient(name: str, given: dict[str, Any], gradients: Any) -> Tensor | None:
    """Return the gradient of an argument from those the backward operator gives for tensors."""
    if name != "radius_rows" and not isinstance(given[name], Tensor):
        return None
    gradient: Tensor = next(gradients)
    if name == "radius_rows" and given[name] is None:
        return None
    if name == "sigma":
        h, sigma = next(iter(given.values())), given[name]
        rows = gradient.sum(0) if sigma.dim() < h.dim() else gradient
        return rows.reshape(sigma.shape).to(sigma.dtype)
    return gradient


def _refusal(name: str) -> Rule:
    """Make a second derivative a clear error instead of a silent zero."""

    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(REFUSAL.format(name=name))

    return backward


# ---- vmap: the mapped dimension is more rows ---------------------------------------------------


def _fold(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """Merge the mapped dimension into the batch: [V, B, *] -> [V * B, *]."""
    moved = tensor.movedim(dim, 0) if dim is not None else tensor.expand(size, *tensor.shape)
    return moved.flatten(0, 1)


def _fold_shared(tensor: Tensor, dim: int | None, size: int, rows: int) -> Tensor:
    """Fold an operand `[*]` that all rows share; one that is not mapped stays shared."""
    if dim is None:
        return tensor
    moved = tensor.movedim(dim, 0).unsqueeze(1)
    return moved.expand(size, rows, *moved.shape[2:]).flatten(0, 1)


def _vmap(operator: Operator, name: str, namespace: str) -> Rule:
    overload = getattr(getattr(torch.ops, namespace), name).default
    names = [argument.name for argument in overload._schema.arguments]
    lead = next(iter(operator.saved()))  # its rows are everybody's

    def rule(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
        size = info.batch_size
        shapes = {
            argument: _shape_of_one(value, dim)
            for argument, value, dim in zip(names, arguments, in_dims, strict=True)
            if isinstance(value, Tensor)
        }
        h = shapes[lead]
        folded = []
        for argument, value, dim in zip(names, arguments, in_dims, strict=True):
            if argument == "sigma" and len(shapes[argument]) < len(h):
                value = _fold_shared(value, dim, size, h[0])
            elif isinstance(value, Tensor):
                value = _fold(value, dim, size)
            folded.append(value)
        if name == operator.twin:
            return _mapped_in_place(name, overload, arguments[0], in_dims[0], folded)
        result = overload(*folded)
        if isinstance(result, Tensor):
            return result.reshape(size, h[0], *result.shape[1:]), 0
        return tuple(r.reshape(size, h[0], *r.shape[1:]) for r in result), (0,) * len(result)

    return rule


def _shape_of_one(tensor: Tensor, dim: int | None) -> tuple[int, ...]:
    """Return the shape without the mapped dimension."""
    return tensor.shape if dim is None else tensor.movedim(dim, 0).shape[1:]


def _mapped_in_place(name: str, op: Any, h: Tensor, dim: int | None, folded: list[Any]) -> Any:
    if dim is None:
        raise RuntimeError(
            f"{name}: under vmap h must be mapped too; one h cannot take the updates of several"
        )
    op(*folded)
    moved = h.movedim(dim, 0)
    if folded[0].data_ptr() != h.data_ptr() or not moved.is_contiguous():
        moved.copy_(folded[0].reshape(moved.shape))
    elif not h.is_inference():  # the caller's bump stays with the batched wrapper
        torch.autograd.graph.increment_version(h)
    return None, None
