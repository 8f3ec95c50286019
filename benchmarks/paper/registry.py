"""The experiments, in the order of the page."""

from __future__ import annotations

from benchmarks.paper import augmented, cifar_choice, cifar_tables, imagenet, sweeps
from benchmarks.paper.experiment import Experiment

EXPERIMENTS: tuple[Experiment, ...] = (
    cifar_tables.EXPERIMENT,
    cifar_choice.EXPERIMENT,
    augmented.EXPERIMENT,
    imagenet.EXPERIMENT,
    sweeps.EXPERIMENT,
)


def find(name: str) -> Experiment:
    """Find an experiment by its name, or by that of a table or figure in it.

    Raises:
        ValueError: If there is none.
    """
    for experiment in EXPERIMENTS:
        if name == experiment.name or name in experiment.shows:
            return experiment
    known = [name for experiment in EXPERIMENTS for name in (experiment.name, *experiment.shows)]
    raise ValueError(f"TABLE must be all, page or one of {', '.join(known)}, got {name!r}")
