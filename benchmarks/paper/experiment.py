"""What a table or figure of the paper has to provide, so that one runner fills and shows it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

Compute = Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Options:
    """What a run was asked for.

    Attributes:
        data_dir: Directory of the data files; None where it was not given.
        seeds: Seeds of splits, weights and noise.
        quick: A small part with little training, to see that everything runs.
        device: Where image networks train: "cpu", in a reduced form, or "cuda", in full.
    """

    data_dir: Path | None
    seeds: tuple[int, ...]
    quick: bool
    device: str = "cpu"

    def data(self) -> Path:
        """Return the directory of the data files.

        Raises:
            ValueError: If it was not given or is no directory.
        """
        if self.data_dir is None or not self.data_dir.is_dir():
            raise ValueError(
                f"--data-dir must be the directory of the data files, got {self.data_dir}"
            )
        return self.data_dir


@dataclass(frozen=True)
class Experiment:
    """Tables and figures that come from the same cells.

    Attributes:
        name: Its name on the command line, and of its files.
        shows: The tables and figures of the paper in it, which are names on the command line too.
        title: Heading of its section of the page.
        cells: Options -> function that computes a cell, by the cell's name (`method/case/seed`).
            Functions are partials of functions of modules, since they run in other processes, and
            return what JSON can hold.
        settings: Options -> what the cells depend on, as JSON can hold it.
        section: Contents of the results file -> Markdown below the heading.
        draw: Contents of the results file, directory of the results, options -> pictures written.
        needs_data: Whether it reads data files.
    """

    name: str
    shows: tuple[str, ...]
    title: str
    cells: Callable[[Options], dict[str, Compute]]
    settings: Callable[[Options], dict[str, Any]]
    section: Callable[[dict[str, Any]], str]
    draw: Callable[[dict[str, Any], Path, Options], list[Path]] | None = None
    needs_data: bool = True


def timed(compute: Compute) -> dict[str, Any]:
    """Compute a cell on one thread, with "wall_seconds" and "cpu_seconds" beside its values."""
    torch.set_num_threads(1)
    wall, cpu = time.perf_counter(), time.process_time()
    result = compute()
    return {
        **result,
        "wall_seconds": round(time.perf_counter() - wall, 3),
        "cpu_seconds": round(time.process_time() - cpu, 3),
    }


def by_seed(content: dict[str, Any], prefix: str, value: str) -> list[float]:
    """Collect a value of the cells `prefix/seed`, in order of seeds; without those missing."""
    cells = content["cells"]
    names = (f"{prefix}/{seed}" for seed in content["seeds"])
    return [float(cells[name][value]) for name in names if name in cells]


def summary(values: list[float], digits: int = 1, factor: float = 100.0) -> str:
    """Write "mean +- deviation" of values in percent; "-" for none."""
    if not values:
        return "-"
    scaled = factor * np.asarray(values)
    text = f"{scaled.mean():.{digits}f}"
    return text if len(values) == 1 else f"{text} +- {scaled.std(ddof=1):.{digits}f}"


@functools.cache
def hyperparameters() -> dict[str, Any]:
    """Read the paper's hyperparameters (Tables 10 to 14) and the fixed defaults used here."""
    import json

    path = Path(__file__).with_name("hyperparameters.json")
    return dict(json.loads(path.read_text(encoding="utf-8")))
