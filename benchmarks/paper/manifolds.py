"""Tables 6 and 7, Figures 1 and 5: a ball and spheres around it, a sine and copies of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from benchmarks.paper import baselines, boundaries
from benchmarks.paper.experiment import Compute, Content, Experiment, Options, by_seed, summary
from benchmarks.paper.pages import filled
from benchmarks.paper.settings import of_search
from drocc_ext import DROCC, suggest_radius
from drocc_ext.demo import sine
from drocc_ext.demo.reporting import markdown_table
from drocc_ext.estimators._core import Standardizer
from drocc_ext.metrics import roc_auc

Rows = baselines.Rows

METHODS = ("nearest neighbour", "OC-SVM", "autoencoder", "DeepSVDD", "DROCC")
TRAIN, TEST = 1024, 2048
DIMENSION = 3
EPOCHS = 100
_SIZES = {"train": TRAIN, "test": TEST, "epochs": EPOCHS}
_QUICK_STEPS, _QUICK_EPOCHS = 10, 1

# AUC in percent, in the order of METHODS.
PAPER_SPHERE = {
    1.2: ("100 +- 0.00", "92.00 +- 0.00", "91.81 +- 2.12", "93.26 +- 0.91", "99.44 +- 0.10"),
    1.4: ("100 +- 0.00", "92.97 +- 0.00", "97.85 +- 1.41", "98.81 +- 0.34", "99.99 +- 0.00"),
    1.6: ("100 +- 0.00", "92.97 +- 0.00", "99.92 +- 0.11", "99.99 +- 0.00", "100.00 +- 0.00"),
    1.8: ("100 +- 0.00", "91.87 +- 0.00", "99.98 +- 0.04", "100.00 +- 0.00", "100.00 +- 0.00"),
    2.0: ("100 +- 0.00", "91.83 +- 0.00", "100 +- 0.00", "100.00 +- 0.00", "100.00 +- 0.00"),
}
PAPER_SINE = {
    0.2: ("100 +- 0.00", "56.99 +- 0.00", "52.48 +- 1.15", "65.91 +- 0.64"),
    0.4: ("100 +- 0.00", "68.84 +- 0.00", "58.59 +- 0.61", "78.18 +- 1.67"),
    0.6: ("100 +- 0.00", "76.95 +- 0.00", "66.59 +- 1.21", "82.85 +- 1.96"),
    0.8: ("100 +- 0.00", "81.73 +- 0.00", "77.42 +- 3.62", "86.26 +- 1.69"),
    1.0: ("100 +- 0.00", "88.18 +- 0.00", "86.14 +- 2.52", "90.51 +- 2.62"),
    2.0: ("100 +- 0.00", "98.56 +- 0.00", "100 +- 0.00", "100 +- 0.00"),
}


def ball_points(count: int, generator: torch.Generator) -> Tensor:
    """Draw points uniformly from the volume of the unit ball, `[N, 3]`."""
    radius = torch.rand(count, 1, generator=generator) ** (1 / DIMENSION)
    return radius * sphere_points(count, 1.0, generator)


def sphere_points(count: int, radius: float, generator: torch.Generator) -> Tensor:
    """Draw points uniformly from the surface of a ball, `[N, 3]`."""
    direction = torch.randn(count, DIMENSION, generator=generator)
    return radius * direction / direction.norm(dim=1, keepdim=True)


Score = Callable[[Tensor], Tensor]


def _detector(method: str, train: Tensor, seed: int, epochs: int) -> Score:
    rows = train.double().numpy()

    def score(x: Tensor) -> Tensor:
        test = x.double().numpy()
        if method == "nearest neighbour":
            found, _ = NearestNeighbors(n_neighbors=1).fit(rows).kneighbors(test)
            return torch.from_numpy(-found[:, 0])
        # The code of the deep ones is one number smaller than the space.
        hidden = (128, rows.shape[1] - 1) if method == "autoencoder" else None
        return torch.from_numpy(-baselines.scores(method, rows, test, seed, epochs, hidden))

    return score


def sphere_drocc(train: Tensor, seed: int, quick: bool = False) -> DROCC:
    """Fit the estimator with the paper's rule for the radius, sqrt(D) / 2 of standardized rows."""
    rows = train.double().numpy()
    standardized = Standardizer.fit("sphere_drocc", rows).transform(rows)
    detector = DROCC(
        radius=suggest_radius(standardized, "sqrt_dim"),
        max_steps=_QUICK_STEPS if quick else 300,
        random_state=seed,
    )
    return detector.fit(rows)


def sphere_cell(method: str, seed: int, quick: bool) -> dict[str, float]:
    """Train on the ball; return "auc R" and "trained auc R" for each radius R."""
    generator = torch.Generator().manual_seed(seed)
    train, normal = ball_points(TRAIN, generator), ball_points(TEST, generator)
    others = {radius: sphere_points(TEST, radius, generator) for radius in PAPER_SPHERE}
    if method == "DROCC":
        detector = sphere_drocc(train, seed, quick)
        return _compare(
            lambda x: torch.from_numpy(-detector.decision_function(x)), train, normal, others
        )
    score = _detector(method, train, seed, _QUICK_EPOCHS if quick else EPOCHS)
    return _compare(score, train, normal, others)


def sine_cell(method: str, seed: int, quick: bool) -> dict[str, float]:
    """Train on the sine; return "auc D" and "trained auc D" for each displacement D."""
    generator = torch.Generator().manual_seed(1000 + seed)
    normal = sine.sine_points(TEST, generator)
    others = {by: sine.displaced_points(TEST, by, generator) for by in PAPER_SINE}
    if method == "DROCC":
        trained = sine.train(seed, *([_QUICK_STEPS] if quick else []))
        return _compare(trained.trainer.score, trained.points, normal, others)
    train = sine.sine_points(TRAIN, torch.Generator().manual_seed(seed))
    score = _detector(method, train, seed, _QUICK_EPOCHS if quick else EPOCHS)
    return _compare(score, train, normal, others)


def _compare(
    score: Score, train: Tensor, normal: Tensor, others: dict[float, Tensor]
) -> dict[str, float]:
    # In one call, since a baseline is fitted anew by each.
    sizes = [len(train), len(normal), *map(len, others.values())]
    parts = score(torch.cat([train, normal, *others.values()])).split(sizes)
    result = {}
    for value, scores in zip(others, parts[2:], strict=True):
        for name, own in (("auc", parts[1]), ("trained auc", parts[0])):
            labels = torch.arange(len(own) + len(scores)) < len(own)
            result[f"{name} {value}"] = roc_auc(torch.cat([own, scores]), labels)
    return result


def _cells(
    compute: Callable[[str, int, bool], dict[str, float]], case: str, options: Options
) -> dict[str, Compute]:
    return {
        f"{method}/{case}/{seed}": functools.partial(compute, method, seed, options.quick)
        for seed in options.seeds
        for method in METHODS
    }


def _settings(_: Options) -> dict[str, Any]:
    return {**_SIZES, "drocc": of_search(sine.SEARCH)}


def _table(content: Content, case: str, first: str, paper: dict[float, Any]) -> str:
    header = [first]
    for method in METHODS:
        header += [method, "paper"]
    header.append("DROCC, training points as the normal ones")
    rows = []
    for value, quoted in paper.items():
        row = [f"{value:.1f}"]
        for method, theirs in zip(METHODS, quoted, strict=True):
            row += [summary(by_seed(content, f"{method}/{case}", f"auc {value}"), 2), theirs]
        row.append(summary(by_seed(content, f"DROCC/{case}", f"trained auc {value}"), 2))
        rows.append(row)
    return markdown_table(header, rows)


def sphere_section(content: Content) -> str:
    """Write the part of the page on Table 6."""
    table = _table(content, "sphere", "radius", PAPER_SPHERE)
    return filled("sphere", **_SIZES, dimension=DIMENSION, table=table)


def sine_section(content: Content) -> str:
    """Write the part of the page on Table 7."""
    paper = {by: (*quoted, sine.PAPER[by]) for by, quoted in PAPER_SINE.items()}
    table = _table(content, "sine", "displacement", paper)
    return filled("sine", table=table, nu=boundaries.NU, left_out=100 * boundaries.NU)


def draw_sine(content: Content, directory: Path, options: Options) -> list[Path]:
    """Draw Figures 1 and 5 for the first seed."""
    seed = options.seeds[0]
    trained = sine.train(seed, *([_QUICK_STEPS] if options.quick else []))
    figure1, figure5 = directory / "figure1.png", directory / "figure5.png"
    sine.draw(trained, figure1)
    boundaries.draw(trained, seed, _QUICK_EPOCHS if options.quick else EPOCHS, figure5)
    return [figure1, figure5]


SPHERE = Experiment(
    name="sphere",
    title="Table 6: a ball and spheres around it",
    shows=("table6",),
    cells=functools.partial(_cells, sphere_cell, "sphere"),
    settings=_settings,
    section=sphere_section,
    needs_data=False,
)
SINE = Experiment(
    name="sine",
    title="Table 7, Figures 1 and 5: a sine",
    shows=("table7", "figure1", "figure5"),
    cells=functools.partial(_cells, sine_cell, "sine"),
    settings=_settings,
    section=sine_section,
    draw=draw_sine,
    needs_data=False,
)
