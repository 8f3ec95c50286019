"""Which implementation the public operators run: native kernels, Triton or eager PyTorch."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.autograd import forward_ad

from drocc_ext.ops import _library

_functorch: Any = torch._C._functorch

Backend: TypeAlias = Literal["auto", "native", "triton", "eager"]

BACKENDS: tuple[str, ...] = ("auto", "native", "triton", "eager")


def _checked(caller: str, name: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{caller}: backend must be one of {', '.join(BACKENDS)}, got {name!r}")
    if name == "triton" and _library.triton_missing is not None and caller == "use_backend":
        raise RuntimeError(f"{caller}: {_library.triton_missing}")
    if name == "native" and _library.cpu_error is not None:
        raise RuntimeError(
            f"{caller}: the native kernels are not available ({_library.cpu_error}); "
            "reinstall drocc_ext with a C++20 compiler present"
        )
    return name


_selected = _checked("DROCC_BACKEND", os.environ.get("DROCC_BACKEND", "auto"))

if (_isa := os.environ.get("DROCC_CPU_ISA", "generic")) not in ("generic", "avx2", "avx512"):
    raise ValueError(f"DROCC_CPU_ISA must be generic, avx2 or avx512, got {_isa!r}")


class use_backend:
    """Choose the implementation of the operators, for the process or for a `with` block.

    "auto": native kernels where they are loaded for the tensor's device, else Triton on CUDA, else
    eager PyTorch. "native" and "triton": those kernels, an error where there are none. "eager":
    PyTorch operators.
    The choice is one per process, not per thread. `DROCC_BACKEND` sets the initial one.

    Example:
        >>> import drocc_ext
        >>> with drocc_ext.use_backend("eager"):
        ...     pass

    Args:
        name: "auto", "native", "triton" or "eager".

    Raises:
        ValueError: For another name.
        RuntimeError: If that implementation is not available here; the message says what to do.
    """

    def __init__(self, name: Backend) -> None:
        global _selected
        self._previous = _selected
        _selected = _checked("use_backend", name)

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        global _selected
        _selected = self._previous


def kernels(op: str, tensor: Tensor) -> Any:
    """Return the operators that a call on a tensor runs; None stands for the eager ones.

    Refuses a backend that was asked for and has no kernels for this device.
    """
    if _selected == "eager" or _needs_eager():
        return None
    if _selected == "triton":
        # The operator's checks refuse what is not a tensor.
        device = getattr(tensor, "device", None)
        error = _library.triton_error(device.type) if device is not None else None
        if error is not None:
            raise RuntimeError(f"{op}: {error}")
        return _TRITON
    if _HAS_CPU and getattr(tensor, "is_cpu", True):
        return _NATIVE
    device_type = tensor.device.type
    error = _library.native_error(device_type)
    if error is None:
        return _NATIVE
    if _selected == "native":
        raise RuntimeError(f"{op}: no native kernels for {device_type} tensors: {error}")
    if device_type == "cuda" and _library.triton_missing is None:
        return _TRITON
    return None


def allows_native() -> bool:
    """Say whether an operator that has only native kernels may run.

    With "eager" or "triton" it may not: its parts run on that backend instead.
    """
    return _selected in ("auto", "native") and not _needs_eager()


def _needs_eager() -> bool:
    """Say whether a transform is active that registered operators do not support.

    Forward-mode differentiation would silently lose the tangent, and torch refuses
    `torch.func.grad`. The eager operators take part in both.
    """
    if forward_ad._current_level >= 0:
        return True
    if torch.compiler.is_compiling():
        return False
    if _functorch.peek_interpreter_stack() is None:
        return False
    stack = _functorch.get_interpreter_stack() or ()
    return any(interpreter.key() == _functorch.TransformType.Grad for interpreter in stack)


_NATIVE = torch.ops.drocc
_TRITON = torch.ops.drocc_triton
_HAS_CPU = _library.native_error("cpu") is None
