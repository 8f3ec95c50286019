"""Trainings of one thread each, as many at a time as there are cores."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

import torch
from tqdm.auto import tqdm

_T = TypeVar("_T")


def side_by_side(
    work: Callable[..., _T], calls: Sequence[tuple[Any, ...]], name: str, unit: str
) -> list[_T]:
    """Call a function with each of some arguments, in processes of their own where there are cores.

    What it computes does not depend on how many there are: every call has one thread.

    Args:
        work: A function of a module, which another process can import.
        calls: The arguments of each call.
        name: What the progress bar says.
        unit: What one call is.

    Returns:
        The results, in the order of the calls.
    """
    workers = min(_cores(), len(calls))
    if workers < 2:
        return [work(*arguments) for arguments in tqdm(calls, desc=name, unit=unit, leave=False)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
        futures = [pool.submit(work, *arguments) for arguments in calls]
        bar = tqdm(futures, desc=name, unit=unit, leave=False)
        return [future.result() for future in bar]


def _cores() -> int:
    """Count the cores that this process may use, or all where the system does not tell."""
    affinity = getattr(os, "sched_getaffinity", None)
    return (os.cpu_count() or 1) if affinity is None else len(affinity(0))
