"""Radius and gamma of MNIST with limited negatives: what makes a seed collapse.

Judged by validation data alone, on seeds of its own; says where the adversarial points end up.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from benchmarks.paper.experiment import Compute, Content, Experiment, Options, cells_of
from benchmarks.paper.mnist_limited_negatives import METHODS, cell, common_settings, percents
from benchmarks.paper.mnist_split import SHARES
from benchmarks.paper.pages import filled
from drocc_ext.demo.reporting import markdown_table

TRIED = ("DROCC-Rand", "DROCC-OE", "DROCC-LF")
SHELLS = ((4, 1), (8, 1), (12, 1), (16, 1), (20, 1), (8, 2), (16, 2))  # radius, gamma
SEEDS = (100, 101, 102)


def cells(options: Options) -> dict[str, Compute]:
    """List the cells, `method/radius/gamma/seed`."""
    work: dict[str, Compute] = {}
    for seed in options.seeds:
        for name in TRIED:
            for radius, gamma in SHELLS[: 2 if options.quick else None]:
                search = METHODS[name].search
                assert search is not None
                shell = replace(search, radius=float(radius), gamma=float(gamma))
                method = replace(METHODS[name], search=shell)
                work[f"{name}/{radius}/{gamma}/{seed}"] = partial(
                    cell, options.data(), method, seed, options.quick, on_test=False
                )
    return work


def section(content: Content) -> str:
    """Write the part of the page; what needs a shell that was not run is left out."""
    rows = []
    for name in TRIED:
        for radius, gamma in SHELLS:
            of = cells_of(content, f"{name}/{radius}/{gamma}")
            if of:
                rows.append([name, f"{radius}", f"{gamma}", *_row(of)])
    header = ["", "radius", "gamma", "50 %", "worst", "20 %", "worst", "distance"]
    header += ["adv. logit", "adv. loss", "zeros", "ones", "masked"]
    every = [cell["adversarial"] for cell in content["cells"].values()]
    images = content["settings"]["images"]
    share = images["train 0"] / (images["train 0"] + images["train 1"])
    stuck = [cell["adversarial"]["logits"] for cell in cells_of(content, "DROCC-OE/4/1")]
    return filled(
        "mnist-shells",
        seeds=", ".join(map(str, content["seeds"])),
        table=markdown_table(header, rows),
        away=float(np.mean([of["masked_distance"] for of in every])),
        gap=max(of["batchnorm_gap"] for of in every),
        share=share,
        constant=math.log(share),
        stuck=", ".join(f"{of['mean']:.2f} +- {of['deviation']:.2f}" for of in stuck),
        difference=_difference(content, "16/2"),
    )


def _row(of: list[dict[str, Any]]) -> list[str]:
    adversarial = [cell["adversarial"] for cell in of]
    recalls = [percents(of, share, 0, "recall") for share in (SHARES[0], SHARES[-1])]
    return [
        *(f"{value:.1f}" for found in recalls for value in (np.mean(found), min(found))),
        f"{np.mean([found['distance'] for found in adversarial]):.1f}",
        f"{np.mean([found['logits']['mean'] for found in adversarial]):.1f}",
        f"{np.mean([found['loss'] for found in adversarial]):.0e}",
        *(
            f"{np.mean([cell['logits'][group]['mean'] for cell in of]):.1f}"
            for group in ("zeros", "ones", "masked")
        ),
    ]


def _difference(content: Content, shell: str) -> str:
    """Say by how many points recalls of OE and LF in a shell differ at most, rounded up."""
    oe, lf = (cells_of(content, f"{name}/{shell}") for name in ("DROCC-OE", "DROCC-LF"))
    if not oe or len(oe) != len(lf):
        return "-"
    points = [
        np.subtract(percents(oe, share, 0, "recall"), percents(lf, share, 0, "recall"))
        for share in SHARES
    ]
    return f"{math.ceil(10 * np.abs(points).max()) / 10:.1f}"


EXPERIMENT = Experiment(
    name="mnist-shells",
    title="MNIST, radius and gamma: what makes a seed collapse",
    cells=cells,
    settings=common_settings,
    section=section,
    seeds=SEEDS,
    page="LIMITED_NEGATIVES.md",
)
