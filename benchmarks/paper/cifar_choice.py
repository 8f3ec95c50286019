"""How the one setting for all classes of CIFAR-10 was chosen: on training images alone."""

from __future__ import annotations

import functools
import statistics
from dataclasses import asdict, replace
from typing import Any

import torch

from benchmarks.paper import cifar, cifar_tables
from benchmarks.paper.cifar import CLASSES, OneClass, Setting
from benchmarks.paper.experiment import Compute, Content, Experiment, Options
from benchmarks.paper.pages import filled
from drocc_ext.demo.reporting import markdown_table

NORMAL = ("airplane", "deer", "truck")
SEEDS = (100, 101, 102)  # none of the tables'
TRAIN, HELD_OUT, OTHERS = 4500, 500, 60  # images of the class; held out of it; of each other class

_BASE = Setting(
    radius=8.0,
    mu=1.0,
    optimizer="Adam",
    learning_rate=1e-3,
    num_steps=2,
    step_size=2.0,
    iterations=60,
)
TRIED = {
    "2 steps of 0.25 r, r = 8, mu = 1, Adam 0.001": _BASE,
    "5 steps of 0.1 r": replace(_BASE, num_steps=5, step_size=0.8),
    "2 steps of 0.5 r": replace(_BASE, step_size=4.0),
    "2 steps of 1 r": replace(_BASE, step_size=8.0),
    "2 steps of 2 r": replace(_BASE, step_size=16.0),
    "one step of r from hardly any noise": replace(
        _BASE, num_steps=1, step_size=8.0, noise_scale=1e-3, project_start=False
    ),
    "2 steps of 1 r, r = 16": replace(_BASE, radius=16.0, step_size=16.0),
    "2 steps of 0.5 r, mu = 2": replace(_BASE, step_size=4.0, mu=2.0),
    "random points": replace(_BASE, num_steps=0),
    "r = 4": replace(_BASE, radius=4.0, step_size=1.0),
    "r = 16": replace(_BASE, radius=16.0, step_size=4.0),
    "r = 28": replace(_BASE, radius=28.0, step_size=7.0),
    "mu = 0.5": replace(_BASE, mu=0.5),
    "Adam 0.0003": replace(_BASE, learning_rate=3e-4),
    "SGD 0.001": replace(_BASE, optimizer="SGD"),
    "30 iterations": replace(_BASE, iterations=30),
    "120 iterations": replace(_BASE, iterations=120),
}

CHOSEN = "2 steps of 1 r, r = 16"  # the best of them; `hyperparameters.json` has it


def cells(options: Options) -> dict[str, Compute]:
    cifar_tables.require(options)
    return {
        f"{name}/{normal}/{seed}": functools.partial(cell, options, name, normal, seed)
        for seed in SEEDS[: 1 if options.quick else None]
        for name in (list(TRIED)[:1] if options.quick else TRIED)
        for normal in (NORMAL[:1] if options.quick else NORMAL)
    }


def settings(options: Options) -> dict[str, Any]:
    return {
        "images": [TRAIN, HELD_OUT, OTHERS],
        "tried": {name: asdict(setting) for name, setting in TRIED.items()},
    }


def split(options: Options, normal: str, counts: tuple[int, int, int]) -> OneClass:
    """Take the last training images of a class, and some of each other class, to test on.

    Args:
        options: Where the data are.
        normal: The class.
        counts: Images of it to train on, to test on, and images of each other class.

    Returns:
        The images.
    """
    train, held_out, others = counts
    x = cifar.read(options.data(), normal, train + held_out)
    anomalies = [cifar.read(options.data(), name, others) for name in CLASSES if name != normal]
    test = torch.cat([x[train:], *anomalies])
    return OneClass(x[:train], test, (torch.arange(len(test)) < held_out).float())


def cell(options: Options, name: str, normal: str, seed: int) -> dict[str, Any]:
    counts = (60, 20, 4) if options.quick else (TRAIN, HELD_OUT, OTHERS)
    data = split(options, normal, counts)
    how = replace(TRIED[name], iterations=2) if options.quick else TRIED[name]
    trainer = cifar.train(how, data.train, seed)
    return {"auc": cifar.auc(trainer, data.test, data.labels)}


def means(content: Content, name: str) -> list[float]:
    """Return the AUC of each class in percent over the seeds that are there, or no number."""
    cells = content["cells"]
    found = [
        [100 * cells[key]["auc"] for seed in SEEDS if (key := f"{name}/{normal}/{seed}") in cells]
        for normal in NORMAL
    ]
    return [statistics.mean(values) for values in found] if all(found) else []


def section(content: Content) -> str:
    """Write the part of the page."""
    train, held_out, others = content["settings"]["images"]
    rows = []
    for name in TRIED:
        row = means(content, name)
        if row:
            rows.append([name, *(f"{value:.1f}" for value in (*row, statistics.mean(row)))])
    return filled(
        "cifar-choice",
        train=train,
        held_out=held_out,
        others=others,
        seeds=f"{SEEDS[0]} to {SEEDS[-1]}",
        chosen=CHOSEN,
        table=markdown_table(["setting", *NORMAL, "mean"], rows),
    )


EXPERIMENT = Experiment(
    name="cifar-choice",
    title="CIFAR-10: choice of the setting",
    cells=cells,
    settings=settings,
    section=section,
)
