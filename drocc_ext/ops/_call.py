"""What a call of a public operator does: check, choose the implementation, run it."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from drocc_ext.ops import _backend
from drocc_ext.ops._table import OPERATORS, Arguments


def call(name: str, *public: Any) -> Tensor:
    """Run an operator by its name on its public arguments."""
    operator = OPERATORS[name]
    given = operator.check(name, *public)
    kernels = _backend.kernels(name, given[0])
    if kernels is None:
        return operator.forward(*operator.public(_autocast(given)))
    result: Tensor = getattr(kernels, name)(*given)
    return result


def call_in_place(name: str, *public: Any) -> Tensor:
    """Run the in-place twin of an operator, tell autograd that h changed, and return h.

    The kernels check their inputs themselves, before they write. The checks here have the better
    words and would double the cost of a small call. They run first only if tracing or a conversion
    needs them, otherwise after a call has failed.
    """
    operator = OPERATORS[name]
    op, h = operator.twin, cast(Tensor, public[0])
    if not isinstance(public[0], Tensor):  # None would reach a kernel as an undefined tensor
        operator.check(op, *public)
    compiling = torch.compiler.is_compiling()
    plain = None if compiling else operator.plain(public)
    given = operator.check(op, *public) if plain is None else plain
    _check_in_place(op, given)
    kernels = _backend.kernels(op, h)
    if kernels is None:
        if plain is not None:
            operator.check(op, *public)
        return h.copy_(operator.forward(*operator.public(given)))
    kernel = getattr(kernels, op).default
    if compiling:
        kernel(*given)
        return h
    failure: Exception | None = None
    try:
        kernel(*given)
    except (RuntimeError, TypeError) as error:
        failure = error
    if failure is not None:  # outside the handler, so that one error is shown, not two
        operator.check(op, *public)
        if h.is_neg():
            raise ValueError(f"{op}: h must not be a lazily negated view; call resolve_neg() on it")
        raise failure
    if not h.is_inference():
        torch.autograd.graph.increment_version(h)
    return h


def _autocast(arguments: Arguments) -> Arguments:
    """Cast as autocast does for the registered operators, which the eager backend bypasses."""
    device_type = arguments[0].device.type
    if device_type not in ("cpu", "cuda") or not torch.is_autocast_enabled(device_type):
        return arguments
    return tuple(
        a.float() if isinstance(a, Tensor) and a.dtype != torch.float64 else a for a in arguments
    )


def _check_in_place(op: str, given: Arguments) -> None:
    """Refuse what would go wrong without a word: autograd, and an h that overlaps itself."""
    if torch.is_grad_enabled():
        for value in given:
            if isinstance(value, Tensor) and value.requires_grad:
                raise RuntimeError(
                    f"{op}: an argument requires grad; the in-place form is not differentiable, "
                    f"use {op[:-1]} or call it under torch.no_grad()"
                )
    h = given[0]
    if (
        isinstance(h, Tensor)
        and not h.is_contiguous()
        and any(stride == 0 and size > 1 for stride, size in zip(h.stride(), h.shape, strict=True))
    ):
        raise ValueError(f"{op}: h must not be an expanded tensor, several elements share memory")
