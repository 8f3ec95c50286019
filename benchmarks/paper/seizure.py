"""Table 3, epileptic seizure: an LSTM on chunks of the Bonn EEG, and what makes it learn."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paper import baselines
from benchmarks.paper.experiment import Compute, Content, Experiment, Options, by_seed, summary
from benchmarks.paper.hyperparameters import hyperparameters
from benchmarks.paper.pages import filled
from benchmarks.paper.seizure_training import (
    SPLITS,
    Setting,
    Split,
    fit,
    held_out_loss,
    loaded_split,
    normal_rows,
    series,
)
from drocc_ext.demo.reporting import markdown_table
from drocc_ext.metrics import roc_auc

NAME = "seizure"
CHOSEN = Setting(**hyperparameters()["time_series"]["ours"]["epileptic seizure"])
NETWORKS = {"DROCC": CHOSEN, "DROCC-Rand": replace(CHOSEN, num_steps=0)}
BASELINES = ("kNN", "autoencoder", "DeepSVDD")
ENERGY = "energy"
EPOCHS = 50
PAPER = {"DROCC": "98.23 +- 0.7", "kNN": "91.75", "autoencoder": "91.15 +- 1.7"}
PAPER["DeepSVDD"] = "94.84 +- 1.7"
STUDY_SEED = 100
_STUDY = replace(CHOSEN, batch_size=32, iterations=120)
_TORCH = replace(_STUDY, forget_bias=None, input_scale=None, orthogonal=False)
# One change at a time between torch's start and ours, then around ours.
STUDY = {
    "torch's start, the paper's r, mu and learning rate": replace(
        _TORCH, radius=10.0, mu=0.5, learning_rate=1e-5
    ),
    "torch's start": _TORCH,
    "torch's start, learning rate 1e-2": replace(_TORCH, learning_rate=1e-2),
    "torch's start, mean pooling": replace(_TORCH, mean_pooling=True),
    "torch's start, input weights N(0, 1)": replace(_TORCH, input_scale=1.0),
    "forget bias 1, orthogonal": replace(_TORCH, forget_bias=1.0, orthogonal=True),
    "chrono, orthogonal": replace(_STUDY, input_scale=None),
    "forget bias 3, orthogonal, N(0, 1)": replace(_STUDY, forget_bias=3.0),
    "chrono, orthogonal, N(0, 1): ours": _STUDY,
    "ours, learning rate 1e-3": replace(_STUDY, learning_rate=1e-3),
    "ours, learning rate 1e-2": replace(_STUDY, learning_rate=1e-2),
    "ours, mean pooling": replace(_STUDY, mean_pooling=True),
    "ours, r = 10 (the paper's)": replace(_STUDY, radius=10.0),
    "ours, r = sqrt(178) / 2": replace(_STUDY, radius=math.sqrt(178) / 2),
    "ours, 10 steps of 0.1 r": replace(_STUDY, num_steps=10),
    "ours, four times as long": replace(_STUDY, iterations=4 * _STUDY.iterations),
}
_QUICK_ROWS = 120
_LINES = {"DROCC": "C0", "DROCC-Rand": "C1"}


def cells(options: Options) -> dict[str, Compute]:
    """Name every cell and what computes it; the longest last."""
    directory, quick = options.data(), options.quick
    work: dict[str, Compute] = {}
    for seed in options.seeds:
        for kind in SPLITS:
            work[f"{ENERGY}/{kind}/{seed}"] = partial(energy_cell, directory, kind, seed, quick)
            for name in BASELINES:
                work[f"{name}/{kind}/{seed}"] = partial(
                    baseline_cell, directory, name, kind, seed, quick
                )
    for seed in options.seeds:
        for kind in SPLITS:
            for name, setting in NETWORKS.items():
                work[f"{name}/{kind}/{seed}"] = partial(
                    network_cell, directory, setting, kind, seed, quick
                )
    studied = list(STUDY.items())[:1] if quick else STUDY.items()
    for name, setting in studied:
        work[f"study/{name}"] = partial(study_cell, directory, setting, quick)
    return work


def settings(options: Options) -> dict[str, Any]:
    """Return what the cells depend on."""
    return {
        "networks": {name: asdict(setting) for name, setting in NETWORKS.items()},
        "study": {name: asdict(setting) for name, setting in STUDY.items()},
        "epochs of baselines": EPOCHS,
    }


def energy_cell(directory: Path, kind: str, seed: int, quick: bool) -> dict[str, Any]:
    """Score chunks by their sum of squares, without any training."""
    data = _data(directory, kind, seed, quick)
    return {"auc": roc_auc(-np.square(data.test).sum(axis=1), data.normal)}


def baseline_cell(directory: Path, name: str, kind: str, seed: int, quick: bool) -> dict[str, Any]:
    """Fit a baseline on the 178 columns."""
    data = _data(directory, kind, seed, quick)
    scores = baselines.scores(name, data.train, data.test, seed, 1 if quick else EPOCHS)
    return {"auc": roc_auc(-scores, data.normal)}


def network_cell(
    directory: Path, setting: Setting, kind: str, seed: int, quick: bool
) -> dict[str, Any]:
    """Train an LSTM and score the test rows with its last weights."""
    data = _data(directory, kind, seed, quick)
    trainer, radius, curve = fit(_extent(setting, quick), data, seed)
    scores = trainer.score(series(data.test), 256)
    return {"auc": roc_auc(scores, data.normal), "radius": radius, "curve": curve.points}


def study_cell(directory: Path, setting: Setting, quick: bool) -> dict[str, Any]:
    """Train on a split of its own seed, and measure the objective on normal rows held out."""
    data = _data(directory, "chunks", STUDY_SEED, quick)
    trainer, radius, curve = fit(_extent(setting, quick), data, STUDY_SEED)
    return {
        "radius": radius,
        "curve": curve.points,
        "held_out": held_out_loss(trainer, normal_rows(data), radius, CHOSEN.num_steps),
        "auc": curve.points[-1]["auc"],
    }


def section(content: Content) -> str:
    """Write both tables."""
    settings = content["settings"]
    return filled(
        "seizure",
        auc=_table(content),
        radius=np.mean(by_seed(content, "DROCC/chunks", "radius")),
        how=settings["networks"]["DROCC"],
        epochs=settings["epochs of baselines"],
        distance=_distance(content),
        study_iterations=_STUDY.iterations,
        study_batch=_STUDY.batch_size,
        study=_study_table(content),
    )


def _table(content: Content) -> str:
    rows = [
        [
            name if name != ENERGY else "energy of a chunk (no training)",
            *(summary(by_seed(content, f"{name}/{kind}", "auc"), 2) for kind in SPLITS),
            PAPER.get(name, "-"),
        ]
        for name in (*NETWORKS, *BASELINES, ENERGY)
    ]
    return markdown_table(["AUC (%)", "chunks", "whole recordings", "paper"], rows)


def _distance(content: Content) -> str:
    names = ("DROCC", "DROCC-Rand", "kNN", "autoencoder", ENERGY)
    found = {name: by_seed(content, f"{name}/{SPLITS[0]}", "auc") for name in names}
    if not all(found.values()):
        return ""
    ours, *others = (100 * float(np.mean(found[name])) for name in names)
    points = [_points(ours - value) for value in (98.23, *others)]
    return filled("seizure-distance", **dict(zip(("paper", *_OTHERS), points, strict=True)))


_OTHERS = ("random", "neighbours", "encoder", "energy")


def _points(difference: float) -> str:
    return f"{abs(difference):.2f} points {'above' if difference >= 0 else 'below'}"


def _study_table(content: Content) -> str:
    rows = []
    for name in STUDY:
        cell = content["cells"].get(f"study/{name}")
        if cell is not None:
            held = cell["held_out"]
            curve = cell["curve"]
            rows.append(
                [
                    name,
                    f"{cell['radius']:.1f}",
                    *(f"{curve[(len(curve) - 1) * at // 2]['loss']:.2f}" for at in range(3)),
                    f"{held['clean']:.3f} + {held['adversarial']:.3f}",
                    f"{100 * cell['auc']:.2f}",
                ]
            )
    header = ["start and setting", "r", "loss: first tenth", "middle", "last tenth"]
    return markdown_table([*header, "held out: normal + adversarial", "AUC (%)"], rows)


def draw(content: Content, directory: Path, options: Options) -> list[Path]:
    """Draw loss and AUC over the iterations, a line for each seed of the chunk-wise split."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    for name, color in _LINES.items():
        for at, seed in enumerate(content["seeds"]):
            cell = content["cells"].get(f"{name}/{SPLITS[0]}/{seed}")
            if cell is not None:
                steps = [point["step"] for point in cell["curve"]]
                for axis, value in zip(axes, ("loss", "auc"), strict=True):
                    values = [point[value] for point in cell["curve"]]
                    label = name if at == 0 else None
                    axis.plot(steps, values, color=color, label=label, lw=1, marker=".")
    axes[0].axhline(2 * math.log(2), color="gray", ls=":", label="2 ln 2")
    axes[0].set(yscale="log", ylabel="training loss", xlabel="iterations")
    energy = by_seed(content, f"{ENERGY}/{SPLITS[0]}", "auc")
    if energy:
        axes[1].axhline(float(np.mean(energy)), color="black", ls="--", lw=1, label="energy")
    axes[1].axhline(0.9823, color="gray", ls=":", label="paper's DROCC")
    axes[1].set(ylabel="AUC of 1000 test rows", xlabel="iterations")
    axes[0].legend(loc="lower left")
    axes[1].legend(loc="lower right")
    path = directory / f"{NAME}.png"
    figure.savefig(path, dpi=110)
    return [path]


def _data(directory: Path, kind: str, seed: int, quick: bool) -> Split:
    data = loaded_split(directory, kind, seed)
    if not quick:
        return data
    some = np.linspace(0, len(data.test) - 1, _QUICK_ROWS).astype(int)
    return Split(data.train[:_QUICK_ROWS], data.test[some], data.normal[some])


def _extent(setting: Setting, quick: bool) -> Setting:
    return replace(setting, iterations=3, batch_size=16) if quick else setting


EXPERIMENT = Experiment(
    name=NAME,
    title="Table 3: epileptic seizure",
    shows=("table3",),
    cells=cells,
    settings=settings,
    section=section,
    draw=draw,
)
