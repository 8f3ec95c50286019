"""What a table or figure of the paper has to provide, so that one runner fills and shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Compute = Callable[[], dict[str, Any]]
Content = dict[str, Any]


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

    @property
    def full(self) -> bool:
        """Whether image networks train at full length, which a GPU does."""
        return self.device.startswith("cuda")


@dataclass(frozen=True)
class Experiment:
    """Tables and figures that come from the same cells.

    Attributes:
        name: Its name on the command line, and of its files.
        title: Heading of its section of the page.
        section: Contents of the results file -> Markdown below the heading.
        cells: Options -> function that computes a cell, by the cell's name (`method/case/seed`).
            Functions are partials of functions of modules, since they run in other processes, and
            return what JSON can hold.
        settings: Options -> what the cells depend on, as JSON can hold it.
        more: Contents of the results file, options -> cells that follow from those that are there;
            asked again until all of them are there.
        draw: Contents of the results file, directory of the results, options -> pictures written.
        shows: The tables and figures of the paper in it, which are names on the command line too.
        needs_data: Whether it reads data files.
        seeds: Seeds of its own, whatever a run is asked for.
        page: The page that it stands on.
        command: What runs it, where it is not in the registry.
        revision: The revision that has its code, where only its results are kept.
    """

    name: str
    title: str
    section: Callable[[Content], str]
    cells: Callable[[Options], dict[str, Compute]] = lambda options: {}
    settings: Callable[[Options], dict[str, Any]] = lambda options: {}
    more: Callable[[Content, Options], dict[str, Compute]] = lambda content, options: {}
    draw: Callable[[Content, Path, Options], list[Path]] | None = None
    shows: tuple[str, ...] = ()
    needs_data: bool = True
    seeds: tuple[int, ...] = ()
    page: str = "RESULTS.md"
    command: str = ""
    revision: str = ""


def by_seed(content: Content, prefix: str, value: str) -> list[float]:
    """Collect a value of the cells `prefix/seed`, in order of seeds; without those missing."""
    return [float(cell[value]) for cell in cells_of(content, prefix)]


def cells_of(content: Content, prefix: str) -> list[dict[str, Any]]:
    """Collect the cells `prefix/seed`, in order of seeds; without those missing."""
    names = (f"{prefix}/{seed}" for seed in content["seeds"])
    return [content["cells"][name] for name in names if name in content["cells"]]


def summary(values: list[float], digits: int = 1, factor: float = 100.0) -> str:
    """Write "mean +- deviation" of values in percent; "-" for none."""
    if not values:
        return "-"
    scaled = factor * np.asarray(values)
    text = f"{scaled.mean():.{digits}f}"
    return text if len(values) == 1 else f"{text} +- {scaled.std(ddof=1):.{digits}f}"
