"""The experiments, in the order of the page."""

from __future__ import annotations

from benchmarks.paper import (
    audio,
    augmented,
    cifar_choice,
    cifar_tables,
    imagenet,
    manifolds,
    seizure,
    sweeps,
    tabular,
    tabular_study,
    wake_word,
)
from benchmarks.paper.experiment import Experiment

EXPERIMENTS: tuple[Experiment, ...] = (
    tabular.EXPERIMENT,
    tabular_study.EXPERIMENT,
    seizure.EXPERIMENT,
    audio.EXPERIMENT,
    wake_word.EXPERIMENT,
    cifar_tables.EXPERIMENT,
    cifar_choice.EXPERIMENT,
    augmented.EXPERIMENT,
    imagenet.EXPERIMENT,
    sweeps.EXPERIMENT,
    manifolds.SPHERE,
    manifolds.SINE,
)


def find(name: str) -> list[Experiment]:
    """Find the experiment of a name, or those that hold a part of a table or figure.

    Raises:
        ValueError: If there is none.
    """
    found = [e for e in EXPERIMENTS if name == e.name or name in e.shows]
    if not found:
        known = dict.fromkeys(known for e in EXPERIMENTS for known in (e.name, *e.shows))
        raise ValueError(f"TABLE must be all, page or one of {', '.join(known)}, got {name!r}")
    return found
