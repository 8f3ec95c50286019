"""Timing that survives a noisy machine: providers in turn within one run, medians, quantiles."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from drocc_ext.ops._library import build_info


class Timing(NamedTuple):
    """Seconds per call: median, 20 % and 80 % quantiles and least over the repeats."""

    median: float
    low: float
    high: float
    fastest: float


def interleaved(
    providers: Mapping[str, Callable[[], object]],
    repeats: int = 31,
    least_seconds: float = 2e-3,
    reset: Callable[[], object] | None = None,
) -> dict[str, Timing]:
    """Time callables in turn, `repeats` rounds of all of them, so that noise meets each alike.

    Args:
        providers: what to time, by name; each is called twice beforehand.
        repeats: rounds.
        least_seconds: a round calls a provider as often as fills this time.
        reset: called, untimed, before every provider's turn.

    Returns:
        Seconds per call by name.
    """
    calls: dict[str, int] = {}
    for name, provider in providers.items():
        provider()
        begin = time.perf_counter()
        provider()
        calls[name] = max(1, round(least_seconds / max(time.perf_counter() - begin, 1e-7)))
    seconds: dict[str, list[float]] = {name: [] for name in providers}
    for _ in range(repeats):
        for name, provider in providers.items():
            if reset is not None:
                reset()
            begin = time.perf_counter()
            for _ in range(calls[name]):
                provider()
            seconds[name].append((time.perf_counter() - begin) / calls[name])
    return {name: _summary(values) for name, values in seconds.items()}


def _summary(values: list[float]) -> Timing:
    ordered = sorted(values)
    return Timing(
        statistics.median(ordered),
        ordered[len(ordered) // 5],
        ordered[len(ordered) * 4 // 5],
        ordered[0],
    )


def environment() -> dict[str, Any]:
    """Describe what a timing was measured on: processor, threads, versions, instruction set."""
    info = build_info()
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "drocc_ext": info.get("version"),
        "compiler": info.get("compiler"),
        "cpu_instruction_set": info.get("cpu_instruction_set"),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
