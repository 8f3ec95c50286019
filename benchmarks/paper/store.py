"""Results on disk as they come, so that a run that was stopped continues where it was."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from benchmarks.reporting import compact_json
from drocc_ext._files import atomic_write


class ResultStore:
    """Named results (cells) in one JSON file, which is written anew, atomically, after each.

    Args:
        path: The file; its directory is made where missing. Cells of a former run are kept.
        settings: What the cells depend on, as JSON can hold it.

    Raises:
        ValueError: If the file is not of this kind or of other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.content: dict[str, Any] = {"settings": json.loads(json.dumps(settings)), "cells": {}}
        if path.is_file():
            former = read(path)
            if former["settings"] != self.content["settings"]:
                differing = [
                    name
                    for name in {**former["settings"], **self.content["settings"]}
                    if former["settings"].get(name) != self.content["settings"].get(name)
                ]
                raise ValueError(
                    f"ResultStore: {path} must be of the same settings, got others in "
                    f"{', '.join(sorted(differing))}; delete it or choose another --out"
                )
            self.content = former
        else:
            path.parent.mkdir(parents=True, exist_ok=True)

    def missing(self, work: dict[str, Callable[[], Any]]) -> dict[str, Callable[[], Any]]:
        """Return the part of `work` whose cells are not there."""
        return {name: work[name] for name in work if name not in self.content["cells"]}

    def fill(
        self, work: dict[str, Callable[[], Any]], progress: bool = True, jobs: int | None = None
    ) -> dict[str, Any]:
        """Compute the cells that are missing.

        Args:
            work: Function that computes a cell, by the cell's name.
            progress: Show a bar.
            jobs: Compute that many at a time, in processes of one thread each, and note the time
                that each took (`timed`); functions are then pickled. None: here, in order.

        Returns:
            The cells of `work`, by name.
        """
        missing = self.missing(work)
        results = _here(missing) if jobs is None else _elsewhere(missing, jobs)
        with tqdm(total=len(work), desc=self.path.stem, unit="cell", disable=not progress) as bar:
            bar.update(len(work) - len(missing))
            for name, result in results:
                self.content["cells"][name] = json.loads(json.dumps(result, allow_nan=False))
                self.save()
                bar.set_postfix_str(name)
                bar.update()
        return {name: self.content["cells"][name] for name in work}

    def save(self, **more: Any) -> None:
        """Write the file, with the cells that another run has written there meanwhile.

        Args:
            more: Entries to set beside "settings" and "cells".
        """
        self.content.update(more)
        with _one_at_a_time(self.path.parent):
            if self.path.is_file():
                there = read(self.path)
                if there["settings"] == self.content["settings"]:
                    self.content["cells"] = {**there["cells"], **self.content["cells"]}
            text = compact_json(self.content)
            atomic_write(self.path, lambda file: file.write(text.encode()))


@contextmanager
def _one_at_a_time(directory: Path) -> Iterator[None]:
    """Keep other processes out; the lock ends with the process."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def timed(compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Compute a cell on one thread, with "wall_seconds" and "cpu_seconds" beside its values."""
    torch.set_num_threads(1)
    wall, cpu = time.perf_counter(), time.process_time()
    result = compute()
    return {
        **result,
        "wall_seconds": round(time.perf_counter() - wall, 3),
        "cpu_seconds": round(time.process_time() - cpu, 3),
    }


def _here(work: dict[str, Callable[[], Any]]) -> Iterator[tuple[str, Any]]:
    for name, compute in work.items():
        yield name, compute()


# glibc gives large blocks back to the system and takes them anew at every step of a training: two
# fifths of an LSTM's time. Read when a process starts.
_KEPT_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_MMAP_THRESHOLD_": str(2**31 - 1)}


def _elsewhere(work: dict[str, Callable[[], Any]], jobs: int) -> Iterator[tuple[str, Any]]:
    for name, value in _KEPT_MEMORY.items():
        os.environ.setdefault(name, value)
    # Not forked: a process with threads of its own cannot be copied safely.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        names = {pool.submit(timed, compute): name for name, compute in work.items()}
        try:
            for future in as_completed(names):
                yield names[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def read(path: Path) -> dict[str, Any]:
    """Read a file of `ResultStore`.

    Args:
        path: The file.

    Returns:
        "settings", "cells" and what else was saved.

    Raises:
        ValueError: If it is not such a file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"ResultStore: {path} must be JSON, got {error}") from error
    if not isinstance(content, dict) or not {"settings", "cells"} <= content.keys():
        raise ValueError(f"ResultStore: {path} must hold settings and cells, got something else")
    return content
