"""Table 4: CIFAR-10 flipped and rotated."""

from __future__ import annotations

import functools
import math
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.paper import cifar, cifar_tables
from benchmarks.paper.cifar import CLASSES
from benchmarks.paper.experiment import Compute, Content, Experiment, Options, by_seed, summary
from benchmarks.paper.pages import filled
from drocc_ext.demo.reporting import markdown_table

DEGREES = 30.0
REDUCED_CLASSES = ("airplane", "deer", "ship")
TEST_SEED = 10_000  # the test images are augmented once, alike for every seed

# AUC in percent: GEOM and DROCC as they are, GEOM and DROCC augmented.
PAPER = {
    "airplane": (74.7, 81.6, 62.4, 77.2),
    "automobile": (95.7, 76.7, 71.8, 74.5),
    "bird": (78.1, 66.7, 50.6, 67.5),
    "cat": (72.4, 67.1, 52.5, 68.8),
    "deer": (87.8, 73.6, 65.7, 71.1),
    "dog": (87.8, 74.4, 69.6, 71.3),
    "frog": (83.4, 74.4, 68.3, 71.2),
    "horse": (95.5, 71.4, 84.8, 63.5),
    "ship": (93.3, 80.0, 79.6, 76.4),
    "truck": (91.3, 76.2, 85.7, 74.0),
}


def augment(x: Tensor, degrees: float, seed: int) -> Tensor:
    """Flip each image left to right or not, and turn it by an angle of its own.

    Corners that come into view repeat the image mirrored at its border, so that no dark corner
    tells a turned image.

    Args:
        x: `[N, C, H, W]`, H = W.
        degrees: Angles are uniform in [-degrees, degrees]; bilinear interpolation.
        seed: Of flips and angles.

    Returns:
        As x.
    """
    generator = torch.Generator().manual_seed(seed)
    angles = (2 * torch.rand(len(x), generator=generator) - 1) * math.radians(degrees)
    signs = 1 - 2 * torch.randint(2, (len(x),), generator=generator).float()
    cos, sin, zero = torch.cos(angles), torch.sin(angles), torch.zeros(len(x))
    rows = [torch.stack([signs * cos, -sin, zero], 1), torch.stack([signs * sin, cos, zero], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def cells(options: Options) -> dict[str, Compute]:
    cifar_tables.require(options)
    names = CLASSES if options.full else REDUCED_CLASSES
    return {
        f"DROCC/{name}/{seed}": functools.partial(cell, options, name, seed)
        for name in (names[:1] if options.quick else names)
        for seed in options.seeds
    }


def settings(options: Options) -> dict[str, Any]:
    how = cifar_tables.setting("DROCC", "airplane", options.device, options.quick)
    return {
        "form": cifar_tables.form_of(options),
        "degrees": DEGREES,
        "DROCC": asdict(how),
    }


def cell(options: Options, name: str, seed: int) -> dict[str, Any]:
    data = cifar_tables.load(options, name)
    x, test = augment(data.train, DEGREES, seed), augment(data.test, DEGREES, TEST_SEED)
    how = cifar_tables.setting("DROCC", name, options.device, options.quick)
    trainer = cifar.train(how, x, seed, options.device)
    return {"auc": cifar.auc(trainer, test, data.labels)}


def section(content: Content) -> str:
    """Write the part of the page."""
    header = ["normal class", "DROCC, augmented", "paper: DROCC, augmented"]
    header += ["paper: GEOM, augmented", "paper: DROCC", "paper: GEOM"]
    rows = []
    for name in CLASSES:
        geom, drocc, geom_augmented, drocc_augmented = PAPER[name]
        quoted = (drocc_augmented, geom_augmented, drocc, geom)
        measured = summary(by_seed(content, f"DROCC/{name}", "auc"))
        rows.append([name, measured, *(f"{value:.1f}" for value in quoted)])
    reduced = f"Only {', '.join(REDUCED_CLASSES)} were run, to fit two processor cores."
    return filled(
        "augmented",
        extent=cifar_tables.extent_of(content),
        degrees=content["settings"]["degrees"],
        reduced=reduced if content["settings"]["form"] == "reduced" else "",
        table=markdown_table(header, rows),
    )


EXPERIMENT = Experiment(
    name="augmented",
    title="CIFAR-10 flipped and rotated (Table 4)",
    shows=("table4",),
    cells=cells,
    settings=settings,
    section=section,
)
