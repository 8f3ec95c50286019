"""The operators of `torch.ops.drocc_triton`: those of `drocc`, on Triton kernels.

They are always registered; Triton itself is imported by the first call (or trace) that needs it.
Under torch.compile they dissolve into their kernel launches, which Inductor then makes itself.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch._subclasses.functional_tensor import FunctionalTensorMode

from drocc_ext.ops import _l2_shell_rules, _library, _mahalanobis_shell_rules
from drocc_ext.ops.influence import register as register_influence

_operators: ModuleType | None = None


def operators(op: str = "drocc_triton") -> Any:
    """Return the module of the Triton implementations, imported on first use.

    Raises:
        RuntimeError: If Triton is missing or too old.
    """
    global _operators
    if _operators is None:
        if _library.triton_missing is not None:
            raise RuntimeError(f"{op}: {_library.triton_missing}")
        _operators = importlib.import_module("drocc_ext.ops.triton.operators")
    return _operators


def _implementation(name: str) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        return getattr(operators(name), name)(*args)

    return call


def _decompose(name: str) -> Callable[..., Any]:
    """Replace the operator by its launches while AOTAutograd traces, as torch.library.triton_op."""

    def rule(mode: Any, op: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if _library.triton_missing is not None or _library.triton_is_interpreted or _exports():
            return mode.__torch_dispatch__(op, types, args, kwargs)
        with mode, operators(name).traced():
            return getattr(operators(name), name)(*args, **kwargs)

    return rule


def _exports() -> bool:
    """Say whether torch.export asks for operators to be kept whole."""
    trace = importlib.import_module("torch.export._trace")
    return bool(trace.custom_triton_ops_decomposition_disabled())


def register() -> None:
    """Register every operator a second time, with the Triton kernels and the same rules."""
    for rules in (
        _l2_shell_rules.register,
        _mahalanobis_shell_rules.register,
        register_influence,
    ):
        rules(_implementation, "drocc_triton")
    for schema in _library.SCHEMAS:
        name = schema[: schema.index("(")]
        torch.library.register_torch_dispatch(
            f"drocc_triton::{name}",
            FunctionalTensorMode,
            _decompose(name),
            lib=_library.triton_registry,
        )
