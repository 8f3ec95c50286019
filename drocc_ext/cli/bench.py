"""`drocc-ext bench`: how long each operator takes on the machine at hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from drocc_ext import ops, use_backend
from drocc_ext.demo.interleaved import Timing, environment, interleaved
from drocc_ext.ops import _library
from drocc_ext.ops._backend import Backend

Call = Callable[[], Tensor]

_RADIUS, _GAMMA, _STEP = 1.0, 2.0, 0.5


def table(device: str, rows: int, columns: int, repeats: int) -> str:
    """Measure the operators and say what was measured.

    Each backend's result is compared with that of eager PyTorch in float64 before a clock starts.

    Args:
        device: "cpu", "cuda" or "cuda:N".
        rows: Rows B of the batch.
        columns: Columns D.
        repeats: Rounds of all backends in turn; medians are shown.

    Returns:
        Lines that describe the machine, then one line for each operator: microseconds with each
        backend, and eager's divided by the fastest.

    Raises:
        RuntimeError: If the device is not there, or a backend's result is wrong.
    """
    backends = _backends(device)
    lines = [f"{name}: {value}" for name, value in environment().items() if value is not None]
    lines.append(f"float32 rows: {rows} x {columns} on {device}, medians of {repeats} in turn")
    if len(backends) == 1:
        lines.append(f"eager alone: {_library.native_error(torch.device(device).type)}")
    shown = [f"{name}, us" for name in backends]
    lines += ["", f"{'operator':<34}" + "".join(f"{name:>13}" for name in shown) + f"{'eager/':>9}"]
    for operator, call in _calls(device, rows, columns).items():
        timings = _measured(operator, call, backends, device, repeats)
        best = min(timing.median for timing in timings.values())
        cells = "".join(f"{timings[name].median * 1e6:13.1f}" for name in backends)
        lines.append(f"{operator:<34}{cells}{timings['eager'].median / best:8.1f}x")
    return "\n".join(lines) + "\n"


def _backends(device: str) -> list[Backend]:
    """List what runs on a device, eager PyTorch last."""
    kind = torch.device(device).type
    torch.empty(0, device=device)  # an error here says what is missing
    found: list[Backend] = []
    if _library.native_error(kind) is None:
        found.append("native")
    if kind == "cuda" and _library.triton_missing is None:
        found.append("triton")
    return [*found, "eager"]


def _calls(device: str, rows: int, columns: int) -> dict[str, Callable[[torch.dtype], Call]]:
    """Give each operator with its arguments, which a dtype is yet to be chosen for."""
    generator = torch.Generator().manual_seed(0)
    h, grad = torch.randn(2, rows, columns, generator=generator, dtype=torch.float64)
    h *= 3 / h.norm(dim=1, keepdim=True)  # outside the shell, where there is most to do
    sigma = torch.rand(columns, generator=generator, dtype=torch.float64) + 0.1
    given: dict[str, tuple[Any, ...]] = {
        "normalized_ascent": (h, grad, _STEP),
        "project_l2_shell": (h, _RADIUS, _GAMMA),
        "l2_shell_step": (h, grad, _STEP, _RADIUS, _GAMMA),
        "influence": (grad,),
        "mahalanobis_norm": (h, sigma),
        "project_mahalanobis_shell": (h, sigma, _RADIUS, _GAMMA),
        "mahalanobis_shell_step": (h, grad, sigma, _STEP, _RADIUS, _GAMMA),
    }

    def bound(name: str, dtype: torch.dtype) -> Call:
        arguments = [
            value.to(device, dtype) if isinstance(value, Tensor) else value for value in given[name]
        ]
        return partial(getattr(ops, name), *arguments)

    return {name: partial(bound, name) for name in given}


def _measured(
    operator: str,
    call: Callable[[torch.dtype], Call],
    backends: list[Backend],
    device: str,
    repeats: int,
) -> dict[str, Timing]:
    with use_backend("eager"):
        exact = call(torch.float64)()
    run = call(torch.float32)

    def provider(backend: Backend) -> Tensor:
        with use_backend(backend):
            out = run()
        if out.is_cuda:
            torch.cuda.synchronize(out.device)
        return out

    providers: dict[str, Call] = {backend: partial(provider, backend) for backend in backends}
    for backend, once in providers.items():
        if not torch.allclose(once().to(exact), exact, rtol=1e-3, atol=1e-4):
            raise RuntimeError(f"bench: {operator} is wrong with backend {backend} on {device}")
    return interleaved(providers, repeats)
