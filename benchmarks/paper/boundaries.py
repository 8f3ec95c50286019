"""Figure 5: what four detectors that were trained on the sine call normal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from sklearn.svm import OneClassSVM

from benchmarks.paper import baselines
from drocc_ext._files import atomic_write
from drocc_ext.demo.sine import Trained

NU = 0.05


def regions(trained: Trained, grid: torch.Tensor, seed: int, epochs: int) -> dict[str, np.ndarray]:
    """Decide for each point of a grid.

    Args:
        trained: DROCC and the points that all are trained on.
        grid: `[N, 2]`.
        seed: Seed of DeepSVDD.
        epochs: Its epochs.

    Returns:
        By method, `[N]`, True = normal.
    """
    points, places = trained.points.double().numpy(), grid.double().numpy()
    mean, deviation = points.mean(0), points.std(0)
    scaled, scaled_places = (points - mean) / deviation, (places - mean) / deviation
    radial = OneClassSVM(kernel="rbf", nu=NU).fit(points)
    polynomial = OneClassSVM(kernel="poly", degree=20, coef0=1.0, nu=NU, max_iter=200_000)
    polynomial.fit(scaled)
    scores = baselines.scores("DeepSVDD", points, np.concatenate([points, places]), seed, epochs)
    own, others = scores[: len(points)], scores[len(points) :]
    return {
        "(a) DROCC": (trained.trainer.score(grid) > 0).numpy(),
        "(b) OC-SVM, RBF kernel": radial.predict(places) > 0,
        "(c) OC-SVM, polynomial kernel of degree 20": polynomial.predict(scaled_places) > 0,
        "(d) DeepSVDD": others <= np.quantile(own, 1 - NU),
    }


def draw(trained: Trained, seed: int, epochs: int, picture: Path) -> None:
    """Draw the figure.

    Args:
        trained: DROCC and its training points.
        seed: Seed of DeepSVDD.
        epochs: Its epochs.
        picture: PNG file to write, atomically.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    left, right = -8.0, 8.0
    horizontal, vertical = torch.linspace(left, right, 640), torch.linspace(-4, 4, 320)
    grid = torch.cartesian_prod(vertical, horizontal).flip(1)
    figure = Figure(figsize=(11, 6.2), layout="constrained")
    line = trained.points[trained.points[:, 0].argsort()].T.numpy()
    found = regions(trained, grid, seed, epochs)
    for axes, (name, normal) in zip(
        figure.subplots(2, 2, sharex=True, sharey=True).flat, found.items(), strict=True
    ):
        axes.pcolormesh(
            horizontal.numpy(),
            vertical.numpy(),
            normal.reshape(len(vertical), len(horizontal)),
            cmap=ListedColormap(["#e8736c", "#5b7fd6"]),
            vmin=0,
            vmax=1,
            shading="nearest",
            rasterized=True,
        )
        axes.plot(*line, color="yellow", linewidth=1.5)
        axes.set_title(name)
        axes.set_aspect("equal")
    figure.suptitle("blue: called normal, red: called anomalous, yellow: the training data")
    atomic_write(picture, lambda file: figure.savefig(file, format="png", dpi=110))
