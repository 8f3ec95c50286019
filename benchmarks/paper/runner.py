"""Runs an experiment: computes the cells that are missing, and draws."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.paper.experiment import Experiment, Options
from benchmarks.paper.store import ResultStore
from drocc_ext.demo.reporting import environment


def run(experiment: Experiment, options: Options, out: Path, jobs: int | None) -> Path:
    """Fill the cells that are missing, and draw.

    Args:
        experiment: What to run.
        options: Data, seeds, extent.
        out: Directory of `results`.
        jobs: Processes, one thread each; None: all in this process.

    Returns:
        The file of results.

    Raises:
        ValueError: If data are missing or damaged, the file is of other settings, or the code of
            the experiment is not here.
    """
    if experiment.revision:
        raise ValueError(
            f"{experiment.name} must be run at revision {experiment.revision}, which has its code; "
            "here its results are kept"
        )
    if experiment.seeds:
        options = replace(options, seeds=experiment.seeds[: 1 if options.quick else None])
    path = out / "results" / f"{experiment.name}.json"
    store = ResultStore(path, {**experiment.settings(options), "quick": options.quick})
    work, measured = experiment.cells(options), False
    while work:
        measured = bool(store.missing(work)) or measured
        store.fill(work, jobs=jobs)
        work = store.missing(experiment.more(store.content, options))
    seeds = sorted({*store.content.get("seeds", []), *options.seeds})
    # What was measured before was measured elsewhere.
    here = environment() if measured else store.content.get("environment", environment())
    store.save(seeds=seeds, environment=here)
    if not measured:
        count = len(store.content["cells"])
        why = f"all {count} cells were there" if count else "--data-dir has none of its data"
        print(f"{path}: {why}, none was measured", file=sys.stderr)
    if experiment.draw is not None:
        pictures = experiment.draw(store.content, path.parent, options)
        store.save(pictures=[picture.name for picture in pictures])
    return path
