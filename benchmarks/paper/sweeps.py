"""Figures 7 and 8: AUC against the radius r and against the weight mu."""

from __future__ import annotations

import functools
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paper import cifar, cifar_tables, tabular_data
from benchmarks.paper.experiment import Compute, Content, Experiment, Options, by_seed, summary
from benchmarks.paper.pages import filled
from drocc_ext import DROCC, metrics, suggest_radius
from drocc_ext.demo.reporting import markdown_table

CLASSES = ("airplane", "deer")
TABLES = ("thyroid", "arrhythmia", "abalone")
RADII = (2.0, 4.0, 8.0, 16.0, 32.0)  # of images
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the suggested radius, of tables
MUS = (0.25, 0.5, 1.0, 2.0, 4.0)
REDUCED_TEST = 200  # test images of each class of the reduced form


def cells(options: Options) -> dict[str, Compute]:
    cifar_tables.require(options)
    made: dict[str, Compute] = {}
    for case in ("thyroid", "airplane") if options.quick else (*TABLES, *CLASSES):
        compute = image_cell if case in CLASSES else table_cell
        reduced = case in CLASSES and not options.full
        for seed in options.seeds[:1] if reduced else options.seeds:
            for parameter in ("r", "mu"):
                values = values_of(parameter, case)
                for value in values[:1] if options.quick else values:
                    made[f"{parameter} {value:g}/{case}/{seed}"] = functools.partial(
                        compute, options, parameter, value, case, seed
                    )
    return made


def values_of(parameter: str, case: str) -> tuple[float, ...]:
    """Return the values of r or mu that are looked at."""
    if parameter == "mu":
        return MUS
    return RADII if case in CLASSES else FACTORS


def settings(options: Options) -> dict[str, Any]:
    how = cifar_tables.setting("DROCC", "airplane", options.device, options.quick)
    return {"form": cifar_tables.form_of(options), "DROCC": asdict(how)}


def image_cell(
    options: Options, parameter: str, value: float, case: str, seed: int
) -> dict[str, Any]:
    how = changed(
        cifar_tables.setting("DROCC", case, options.device, options.quick), parameter, value
    )
    data = cifar_tables.load(options, case, 1000 if options.full else REDUCED_TEST)
    trainer = cifar.train(how, data.train, seed, options.device)
    return {"auc": cifar.auc(trainer, data.test, data.labels)}


def changed(how: cifar.Setting, parameter: str, value: float) -> cifar.Setting:
    """Set r or mu; the steps of the search keep their length in radii."""
    if parameter == "mu":
        return replace(how, mu=value)
    return replace(how, radius=value, step_size=how.step_size * value / how.radius)


def table_cell(
    options: Options, parameter: str, value: float, case: str, seed: int
) -> dict[str, Any]:
    split = tabular_data.split(*tabular_data.load(options.data(), case), "script", seed)
    x, test = (part.astype(np.float32) for part in (split.train, split.test))
    changed = {"mu": value} if parameter == "mu" else {"radius": value * suggest_radius(x)}
    steps = 2 if options.quick else 300
    detector = DROCC(hidden=128, random_state=seed, max_steps=steps, **changed)
    return {"auc": metrics.roc_auc(-detector.fit(x).decision_function(test), split.normal)}


def section(content: Content) -> str:
    """Write the part of the page."""
    tables = []
    for parameter, cases in (("r", CLASSES), ("r", TABLES), ("mu", (*CLASSES, *TABLES))):
        values = values_of(parameter, cases[0])
        unit = " / suggested" if parameter == "r" and cases == TABLES else ""
        rows = [
            [case, *(_summary(content, f"{parameter} {value:g}/{case}") for value in values)]
            for case in cases
        ]
        tables.append(markdown_table([f"{parameter}{unit}", *map("{:g}".format, values)], rows))
    reduced = f", {REDUCED_TEST} test images of each class, one seed and so no error bars"
    return filled(
        "sweeps",
        extent=cifar_tables.extent_of(content),
        reduced=reduced if content["settings"]["form"] == "reduced" else "",
        tables="\n\n".join(tables),
    )


def _summary(content: Content, prefix: str) -> str:
    return summary(by_seed(content, prefix, "auc"))


def draw(content: Content, directory: Path, options: Options) -> list[Path]:
    """Draw AUC against r and mu: images above, tables below."""
    from matplotlib.figure import Figure

    pictures = []
    for number, parameter in ((7, "r"), (8, "mu")):
        figure = Figure(figsize=(9, 5.6), layout="constrained")
        for axis, case in zip(figure.subplots(2, 3).flat, (*CLASSES, None, *TABLES), strict=True):
            if case is None:
                axis.set_axis_off()
                continue
            found = [
                (value, 100 * np.asarray(auc))
                for value in values_of(parameter, case)
                if (auc := by_seed(content, f"{parameter} {value:g}/{case}", "auc"))
            ]
            axis.errorbar(
                [value for value, _ in found],
                [auc.mean() for _, auc in found],
                [auc.std(ddof=1) if len(auc) > 1 else 0.0 for _, auc in found],
                marker="o",
                capsize=3,
            )
            relative = parameter == "r" and case in TABLES
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter("{x:g}")
            axis.set(title=case, xlabel=f"{parameter} / suggested" if relative else parameter)
            axis.set_ylabel("AUC in percent")
            axis.grid(alpha=0.3)
        path = directory / f"figure{number}.png"
        figure.savefig(path, dpi=100)
        pictures.append(path)
    return pictures


EXPERIMENT = Experiment(
    name="sweeps",
    title="Radius and weight of the adversarial term (Figures 7 and 8)",
    shows=("figure7", "figure8"),
    cells=cells,
    settings=settings,
    section=section,
    draw=draw,
)
