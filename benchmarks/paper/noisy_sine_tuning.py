"""The choice of the settings of the sine among noise, alike for every method, on other seeds.

First radius and starting noise in a grid, then gamma and step size, one at a time, each kept where
it is better by the mean AUC at a displacement of 0.4; all that at mu 1, and once more with mu among
what is chosen.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from benchmarks.paper.experiment import Compute, Content, Experiment, Options, by_seed
from benchmarks.paper.noisy_sine import common_settings, steps_of
from benchmarks.paper.pages import filled
from drocc_ext.demo import noisy_sine
from drocc_ext.demo.methods import Method

TUNED = {name: noisy_sine.METHODS[name] for name in ("DROCC", "DROCC-Rand", "DROCC-OE", "DROCC-LF")}
SEEDS = (100, 101)  # whose fresh points are not those of the tables
DISPLACEMENT = 0.4
RADII = (0.25, 0.5, 1.0, 1.5, 2.0)
NOISE_SCALES = (0.1, 0.3, 1.0)
# Tried one at a time at the best of the grid.
OTHERS: dict[str, tuple[float, ...]] = {"gamma": (1.0, 1.5), "step_size": (0.05, 0.2)}
# The same again with mu: values of the grid, and others tried after it.
MUS = (0.3, 1.0)
OTHER_MUS = (0.1, 3.0)

Values = dict[str, float]
# What is sent back for each list of candidates is their scores.
Search = Generator[list[Values], list[float], tuple[Values, float]]


def search(name: str, tune_mu: bool, quick: bool) -> Search:
    """Ask for the scores of candidates, and in the end return the best and its score."""
    grid = list(itertools.product(RADII, NOISE_SCALES, MUS if tune_mu else (1.0,)))
    candidates = [
        dict(radius=radius, noise_scale=noise_scale, mu=mu, gamma=2.0, step_size=0.1)
        for radius, noise_scale, mu in (grid[:2] if quick else grid)
    ]
    scores = yield candidates
    place = int(np.argmax(scores))
    best, score = candidates[place], scores[place]
    others = {**OTHERS, "mu": OTHER_MUS if tune_mu else ()}
    if name == "DROCC-Rand":  # takes no step
        del others["step_size"]
    for key, values in {} if quick else others.items():
        for value in values:
            other = {**best, key: value}
            (found,) = yield [other]
            if found > score:
                best, score = other, found
    return best, score


def prefix(name: str, values: Values) -> str:
    """Name the cells of a candidate, without their seeds."""
    return f"{name} {' '.join(f'{key}={value:g}' for key, value in sorted(values.items()))}"


def follow(
    content: Content, name: str, tune_mu: bool, seeds: tuple[int, ...], quick: bool = False
) -> tuple[Values, float] | list[Values]:
    """Go through a search as far as its cells are there.

    Returns:
        The best and its score, or the candidates whose cells are wanted next.
    """
    walk = search(name, tune_mu, quick)
    candidates = next(walk)
    while True:
        found = [by_seed({**content, "seeds": seeds}, prefix(name, c), "auc") for c in candidates]
        if any(len(scores) < len(seeds) for scores in found):
            return candidates
        try:
            candidates = walk.send([float(np.mean(scores)) for scores in found])
        except StopIteration as end:
            best: tuple[Values, float] = end.value
            return best


def chosen(content: Content) -> dict[str, Values]:
    """Return the best settings and their AUC, by method; with mu under the name ", mu chosen"."""
    found: dict[str, Values] = {}
    quick = content["settings"]["quick"]
    for name, tune_mu in itertools.product(TUNED, (False, True)):
        end = follow(content, name, tune_mu, tuple(content["seeds"]), quick)
        assert isinstance(end, tuple), "the search has all of its cells"
        best, score = end
        found[name + (", mu chosen" if tune_mu else "")] = {**best, "auc": score}
    return found


def more(content: Content, options: Options) -> dict[str, Compute]:
    """List the cells that the searches want next, `method settings/seed`."""
    work: dict[str, Compute] = {}
    for (name, method), tune_mu in itertools.product(TUNED.items(), (False, True)):
        candidates = follow(content, name, tune_mu, options.seeds, options.quick)
        for values in candidates if isinstance(candidates, list) else ():
            for seed in options.seeds:
                compute = partial(cell, method, values, seed, steps_of(options))
                work[f"{prefix(name, values)}/{seed}"] = compute
    return work


def cells(options: Options) -> dict[str, Compute]:
    """List the cells that every search begins with."""
    return more({"cells": {}}, options)


def cell(method: Method, values: Values, seed: int, steps: int) -> dict[str, float]:
    """Train with other settings; return the AUC in percent at the displacement."""
    assert method.search is not None
    of_search = {key: value for key, value in values.items() if key != "mu"}
    varied = replace(method, search=replace(method.search, **of_search), mu=values["mu"])
    trainer = noisy_sine.train(varied, seed, steps)
    return {"auc": noisy_sine.evaluate(trainer, 1000 + seed, (DISPLACEMENT,))[DISPLACEMENT]}


def settings(options: Options) -> dict[str, Any]:
    """Return what the cells depend on."""
    return {**common_settings(options), "displacement": DISPLACEMENT}


def section(content: Content) -> str:
    """Write the part of the page."""
    others = "; ".join(f"{key} {' or '.join(map(str, values))}" for key, values in OTHERS.items())
    best = ", ".join(f"{name} {values['auc']:.1f}" for name, values in chosen(content).items())
    return filled(
        "noisy-sine-tuning",
        settings=content["settings"],
        seeds=", ".join(map(str, content["seeds"])),
        radii=", ".join(map(str, RADII)),
        noises=", ".join(map(str, NOISE_SCALES)),
        mus=", ".join(map(str, sorted((*MUS, *OTHER_MUS)))),
        others=others,
        best=best,
    )


EXPERIMENT = Experiment(
    name="noisy-sine-tuning",
    title="Sine among noise: choice of the settings",
    cells=cells,
    more=more,
    settings=settings,
    section=section,
    needs_data=False,
    seeds=SEEDS,
    page="LIMITED_NEGATIVES.md",
)
