"""The experiments, in the order of their pages."""

from __future__ import annotations

from benchmarks.paper import (
    audio,
    augmented,
    cifar_choice,
    cifar_tables,
    imagenet,
    manifolds,
    mnist_limited_negatives,
    mnist_shells,
    noisy_sine,
    noisy_sine_tuning,
    outlier_tables,
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
    outlier_tables.EXPERIMENT,
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
    noisy_sine.EXPERIMENT,
    noisy_sine_tuning.EXPERIMENT,
    mnist_limited_negatives.EXPERIMENT,
    mnist_shells.EXPERIMENT,
)


def find(name: str) -> list[Experiment]:
    """Find the experiments that a name of the command line stands for.

    Args:
        name: Name of an experiment, a table or figure, which may be in several parts, or "all",
            which leaves out those whose code is not here.

    Returns:
        The experiments.

    Raises:
        ValueError: If there is none.
    """
    if name == "all":
        return [e for e in EXPERIMENTS if not e.revision]
    found = [e for e in EXPERIMENTS if name == e.name or name in e.shows]
    if not found:
        known = dict.fromkeys(known for e in EXPERIMENTS for known in (e.name, *e.shows))
        raise ValueError(f"TABLE must be all, page or one of {', '.join(known)}, got {name!r}")
    return found
