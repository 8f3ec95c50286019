"""Section 5.2 and Figure 1(c), (d): a sine among eight coordinates of noise, limited negatives."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.paper.experiment import Compute, Content, Experiment, Options, cells_of
from benchmarks.paper.pages import filled
from benchmarks.paper.settings import of_method
from drocc_ext.demo import noisy_sine
from drocc_ext.demo.methods import Method
from drocc_ext.demo.reporting import markdown_table, mean_and_deviation

NAME = "noisy-sine"
DRAWN = ("DROCC", "DROCC-LF")
_QUICK_STEPS = 10


def _chosen(name: str, mu: float, **search: float) -> dict[str, Method]:
    method = noisy_sine.METHODS[name]
    assert method.search is not None
    return {f"{name}, mu chosen": replace(method, mu=mu, search=replace(method.search, **search))}


# The demo's, and what `noisy_sine_tuning` chose where mu was among the choices.
METHODS: dict[str, Method] = {
    **noisy_sine.METHODS,
    **_chosen("DROCC", 1.0, radius=1.5, noise_scale=0.1, gamma=1.0, step_size=0.1),
    **_chosen("DROCC-Rand", 0.1, radius=1.0, noise_scale=0.3, gamma=1.5),
    **_chosen("DROCC-OE", 0.1, radius=1.5, noise_scale=0.1, gamma=1.0, step_size=0.05),
    **_chosen("DROCC-LF", 0.3, radius=1.0, noise_scale=0.1, gamma=2.0, step_size=0.05),
}


def steps_of(options: Options) -> int:
    """Return the number of optimizer steps."""
    return _QUICK_STEPS if options.quick else noisy_sine.STEPS


def common_settings(options: Options) -> dict[str, Any]:
    """Return what the cells of this experiment and of its tuning depend on."""
    return {
        "steps": steps_of(options),
        "batch_size": noisy_sine.BATCH_SIZE,
        "learning_rate": noisy_sine.LEARNING_RATE,
    }


def settings(options: Options) -> dict[str, Any]:
    """Return what the cells depend on."""
    methods = {name: of_method(method) for name, method in METHODS.items()}
    return {"methods": methods, **common_settings(options)}


def cells(options: Options) -> dict[str, Compute]:
    """List the cells, `method/seed`."""
    return {
        f"{name}/{seed}": partial(cell, method, seed, steps_of(options))
        for name, method in METHODS.items()
        for seed in options.seeds
    }


def cell(method: Method, seed: int, steps: int) -> dict[str, Any]:
    """Train a method; return "auc" by displacement, in percent, and "sigma" where it has one."""
    trainer = noisy_sine.train(method, seed, steps)
    sigma = trainer.loss.sigma
    return {
        "auc": noisy_sine.evaluate(trainer, seed=1000 + seed),
        "sigma": None if sigma is None else sigma.tolist(),
    }


def section(content: Content) -> str:
    """Write the part of the page."""
    seeds, settings = content["seeds"], content["settings"]
    displacements = list(map(str, noisy_sine.DISPLACEMENTS))
    rows, searches = [], []
    for name, method in settings["methods"].items():
        found = [cell["auc"] for cell in cells_of(content, name)]
        rows.append(
            [name, *(mean_and_deviation([auc[by] for auc in found], 1) for by in displacements)]
        )
        search = method["search"]
        if search is not None:
            values = [search[key] for key in ("radius", "noise_scale", "gamma")]
            steps = f"{search['num_steps']} x {search['step_size']:g}"
            if search["num_steps"] == 0:
                steps = "-"
            searches.append(
                [name, *(f"{value:.3g}" for value in values), steps, f"{method['mu']:g}"]
            )
    return filled(
        NAME,
        settings=settings,
        negative=noisy_sine.NEGATIVE_DISPLACEMENT,
        spread=", mean +- standard deviation over seeds" if len(seeds) > 1 else ", seed",
        seeds=", ".join(map(str, seeds)),
        first=seeds[0],
        auc=markdown_table(["displacement", *displacements], rows),
        searches=markdown_table(["", "radius", "noise_scale", "gamma", "steps", "mu"], searches),
    )


def draw(content: Content, directory: Path, options: Options) -> list[Path]:
    """Draw DROCC and DROCC-LF of the first seed."""
    seed, path = options.seeds[0], directory / f"{NAME}.png"
    trained = {name: noisy_sine.train(METHODS[name], seed, steps_of(options)) for name in DRAWN}
    noisy_sine.draw(trained, path, seed, 4 if options.quick else noisy_sine.DRAWS)
    return [path]


EXPERIMENT = Experiment(
    name=NAME,
    title="Sine among noise (Figure 1(c) and (d))",
    shows=("figure1",),
    cells=cells,
    settings=settings,
    section=section,
    draw=draw,
    needs_data=False,
    page="LIMITED_NEGATIVES.md",
)
