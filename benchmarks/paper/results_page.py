"""The page `RESULTS.md`, written anew from the files of results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.paper.cells import read
from benchmarks.paper.experiment import Experiment
from benchmarks.paper.registry import EXPERIMENTS
from drocc_ext.demo.reporting import paragraph
from drocc_ext.models.persistence import atomic_write

PAGE = "RESULTS.md"


def write(out: Path) -> Path:
    """Write the page from the results that are there.

    Args:
        out: Directory of the page; the results are in `results` under it.

    Returns:
        The page.

    Raises:
        ValueError: If a file of results is damaged.
    """
    parts = [
        "# The paper's tables and figures",
        paragraph(
            "Written by `python -m benchmarks.paper page` from the files in `results/`. Numbers of "
            "the paper are quoted from Goyal et al., DROCC, ICML 2020, and stand in columns that "
            "say so; every other number was measured by the command above its table. No test "
            "label decides a setting, an epoch or a threshold unless a table says so. Section "
            "5.2's sine and MNIST are in [LIMITED_NEGATIVES.md](LIMITED_NEGATIVES.md)."
        ),
    ]
    for experiment in EXPERIMENTS:
        path = out / "results" / f"{experiment.name}.json"
        content = read(path) if path.is_file() else {}
        if "seeds" in content:
            parts += [f"## {experiment.title}", _command(experiment, content)]
            parts.append(experiment.section(content))
            parts += [f"![{picture}](results/{picture})" for picture in content.get("pictures", [])]
            parts += [_measured_on(content)] if content["cells"] else []
    page = out / PAGE
    page.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(page, lambda file: file.write(("\n\n".join(parts) + "\n").encode()))
    return page


def _command(experiment: Experiment, content: dict[str, Any]) -> str:
    data = " --data-dir DIR" if experiment.needs_data else ""
    quick = " --quick" if content["settings"]["quick"] else ""
    seeds = "" if quick else f" --seeds {len(content['seeds'])}"
    return f"`python -m benchmarks.paper {experiment.name}{data}{seeds}{quick}`"


def _measured_on(content: dict[str, Any]) -> str:
    environment = content["environment"]
    cpu = sum(cell["cpu_seconds"] for cell in content["cells"].values())
    wall = sum(cell["wall_seconds"] for cell in content["cells"].values())
    device = environment["gpu"] or environment["processor"]
    return paragraph(
        f"{len(content['cells'])} cells, {cpu / 60:.1f} minutes of processor time in all "
        f"({wall / 60:.1f} minutes on the clock, one after the other, of a machine that other "
        f"programs shared); torch {environment['torch']}, one thread a cell, {device}."
    )
