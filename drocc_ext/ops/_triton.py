"""Finds the Triton kernels behind the operators of `torch.ops.drocc_triton`.

The first call (or trace) that needs them imports Triton. Under torch.compile the operators dissolve
into their kernel launches, which Inductor then makes itself.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

from drocc_ext.ops import _library


def implementation(module: str, name: str) -> Callable[..., Any]:
    """Return a function that calls `drocc_ext.ops.triton.<module>.<name>`."""

    def call(*args: Any) -> Any:
        return getattr(_module(name, module), name)(*args)

    return call


def decomposition(module: str, name: str) -> Callable[..., Any]:
    """Replace the operator by its launches while AOTAutograd traces, as torch.library.triton_op."""

    def rule(mode: Any, op: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if _library.triton_missing is not None or _library.triton_is_interpreted or _exports():
            return mode.__torch_dispatch__(op, types, args, kwargs)
        with mode, _module(name, "_launch").traced():
            return getattr(_module(name, module), name)(*args, **kwargs)

    return rule


@cache
def _module(op: str, module: str) -> Any:
    if _library.triton_missing is not None:
        raise RuntimeError(f"{op}: {_library.triton_missing}")
    return importlib.import_module(f"drocc_ext.ops.triton.{module}")


def _exports() -> bool:
    """Say whether torch.export asks for operators to be kept whole."""
    trace = importlib.import_module("torch.export._trace")
    return bool(trace.custom_triton_ops_decomposition_disabled())
