"""Loads the compiled operator libraries once, and says why when it cannot. Never breaks import."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

_SUFFIX = {"Darwin": ".dylib", "Windows": ".dll"}.get(platform.system(), ".so")


def _load(name: str) -> str | None:
    """Load `lib<name>` from the package directory; return why not, or None when it is loaded."""
    path = Path(__file__).parents[1] / f"lib{name}{_SUFFIX}"
    if not path.exists():
        return f"{path.name} was not built with this installation"
    try:
        torch.ops.load_library(path)  # type: ignore[no-untyped-call]
    except (OSError, RuntimeError) as error:
        return f"{path.name} did not load: {str(error).splitlines()[0]}"
    return None


cpu_error = _load("drocc_cpu")
cuda_error = (
    _load("drocc_cuda") if torch.version.cuda else "this build of torch has no CUDA support"
)


def native_error(device_type: str) -> str | None:
    """Say why there are no native kernels for a device type; None when there are."""
    if device_type == "cpu":
        return cpu_error
    if device_type == "cuda":
        if cuda_error is not None:
            return cuda_error
        if not torch._C._dispatch_has_kernel_for_dispatch_key("drocc::l2_shell_step", "CUDA"):
            return "libdrocc_cuda holds no kernels in this version"
        return None
    return f"there are no native kernels for {device_type} tensors"


# The oldest Triton tried, which is the one that torch 2.10 comes with.
OLDEST_TRITON = "3.6"


def _find_triton() -> str | None:
    """Say why Triton cannot be used; None when it can. It is not imported: that takes its time."""
    install = f"install it with `pip install 'triton>={OLDEST_TRITON}'`"
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        return f"Triton is not installed; {install}"
    found = re.search(r"__version__ = ['\"](\d+)\.(\d+)", Path(spec.origin).read_text("utf-8"))
    oldest = tuple(map(int, OLDEST_TRITON.split(".")))
    if found is None or tuple(map(int, found.groups())) < oldest:
        version = ".".join(found.groups()) if found else "of an unknown version"
        return f"Triton {version} is too old; {install}"
    return None


triton_missing = _find_triton()
triton_is_interpreted = os.environ.get("TRITON_INTERPRET", "0").lower() in (
    "1",
    "true",
    "yes",
    "on",
)


def triton_error(device_type: str) -> str | None:
    """Say why Triton kernels do not run for a device type; None when they do."""
    if triton_missing is not None:
        return triton_missing
    if device_type == "cuda" or (device_type == "cpu" and triton_is_interpreted):
        return None
    return f"Triton kernels need CUDA tensors, got {device_type} (a CPU needs TRITON_INTERPRET=1)"


def build_info() -> dict[str, Any]:
    """Describe this installation: version, ABI, compiler, instruction sets, CUDA architectures.

    Returns:
        A flat dict of strings and lists of strings; `native_cpu` and `native_cuda` say "loaded" or
        why the library is not in use.
    """
    info: dict[str, Any] = {}
    spec = importlib.util.find_spec("drocc_ext._C")
    # An editable installation elsewhere may offer its own copy, which says nothing about this one.
    if spec is None or spec.origin is None or Path(spec.origin).parent != Path(__file__).parents[1]:
        info["native_module"] = "missing: _C was not built with this installation"
    else:
        try:
            info.update(importlib.import_module("drocc_ext._C").build_info())
        except ImportError as error:
            info["native_module"] = f"missing: {error}"
    info["native_cpu"] = native_error("cpu") or "loaded"
    info["native_cuda"] = native_error("cuda") or "loaded"
    info["triton"] = triton_missing or "found"
    return info
