"""Compare the preset of 5 steps of 0.1 radii with searches of 50 steps: AUC and processor time.

    python -m benchmarks.training.fewer_steps --data-dir DIR [--seeds 5] [--sets NAME ...]

Every set is trained by our `Trainer` with one radius (`suggest_radius`; for CIFAR the paper's) and
one schedule, which no test label decides; only the search differs. "5 steps" is
`SearchConfig.from_relative_step(radius)`, 15 and 50 steps go the same way in smaller ones, and
"published" has 50 steps of 0.001 and a projection every tenth step, from noise that is not
projected. Time is that of one thread, without evaluations.
Results are kept after each cell (set, search, seed), and a cell that is there is not run again.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_digits
from torch import Tensor, nn

from benchmarks.paper import pages, tabular_data
from benchmarks.paper.cifar import CLASSES, images
from benchmarks.paper.experiment import (
    Compute,
    Content,
    Experiment,
    Options,
    cells_of,
    summary,
)
from benchmarks.paper.runner import run
from benchmarks.training.cases import Split, seizures
from drocc_ext import DROCCLoss, SearchConfig, Trainer, suggest_radius
from drocc_ext.demo.methods import fit_with_linear_decay
from drocc_ext.demo.reporting import markdown_table
from drocc_ext.estimators._core import Standardizer
from drocc_ext.metrics import roc_auc
from drocc_ext.models import networks
from drocc_ext.training.callbacks import Callback

SEARCHES: dict[str, Callable[..., SearchConfig]] = {
    "5 steps": SearchConfig.from_relative_step,
    "15 steps": functools.partial(
        SearchConfig.from_relative_step, step_size=0.5 / 15, num_steps=15
    ),
    "50 steps": functools.partial(SearchConfig.from_relative_step, step_size=0.01, num_steps=50),
    "published": functools.partial(
        SearchConfig, step_size=0.001, num_steps=50, project_every=10, project_start=False
    ),
}

# AUC is looked at after these parts of a training.
_PARTS = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Set:
    """Data and how to train on it; `load(directory, seed)` splits it."""

    load: Callable[[Path, int], Split]
    network: Callable[[int], nn.Module] = networks.MLP
    iterations: int = 300
    batch_size: int = 256
    learning_rate: float = 2e-3
    mu: float = 2.0
    radius: float | None = None
    gamma: float = 2.0
    clip_norm: float | None = None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training.fewer_steps")
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data-dir", type=Path, required=True, help="thyroid.npz and the others")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    arguments = parser.parse_args()
    cells = functools.partial(cells_of_sets, arguments.sets)
    options = Options(arguments.data_dir, tuple(range(arguments.seeds)), quick=False)
    run(replace(EXPERIMENT, cells=cells), options, arguments.out, jobs=1)
    print(*pages.write(arguments.out, [EXPERIMENT]))


def cells_of_sets(sets: Iterable[str], options: Options) -> dict[str, Compute]:
    """List the cells, `set/search/seed`."""
    return {
        f"{name}/{search}/{seed}": functools.partial(cell, name, search, options.data(), seed)
        for name in sets
        for seed in options.seeds
        for search in SEARCHES
    }


def cell(name: str, search: str, directory: Path, seed: int) -> dict[str, list[float]]:
    """Train once; return AUC and seconds after each part."""
    data = SETS[name]
    x, _, test_x, test_y = data.load(directory, seed)
    torch.manual_seed(seed)
    model = data.network(x.shape[1])
    radius = suggest_radius(x.flatten(1)) if data.radius is None else data.radius
    watch = _Watch(data.iterations, test_x, test_y)
    fit_with_linear_decay(
        model,
        DROCCLoss(SEARCHES[search](radius, gamma=data.gamma), mu=data.mu),
        torch.optim.Adam(model.parameters(), data.learning_rate, fused=True),
        x,
        steps=data.iterations,
        batch_size=data.batch_size,
        seed=seed,
        clip_norm=data.clip_norm,
        channels_last=x.dim() == 4,
        callbacks=[watch],
    )
    return {"auc": watch.auc, "seconds": watch.seconds}


class _Watch(Callback):
    def __init__(self, iterations: int, x: Tensor, y: Tensor) -> None:
        self.stops = {round(part * iterations) for part in _PARTS}
        self.x, self.y = x, y
        self.auc: list[float] = []
        self.seconds: list[float] = []
        self.begin = time.process_time()

    def on_fit_start(self, trainer: Trainer) -> None:
        self.begin = time.process_time()

    def on_batch_end(self, trainer: Trainer, step: int, losses: dict[str, float]) -> None:
        if step not in self.stops:
            return
        now = time.process_time()
        self.seconds.append(now - self.begin)
        self.auc.append(roc_auc(trainer.score(self.x, 256), self.y))
        self.begin += time.process_time() - now  # the evaluation does not count


def section(content: Content) -> str:
    """Write the table."""
    rows = []
    for name in SETS:
        ends = {search: cells_of(content, f"{name}/{search}") for search in SEARCHES}
        if not all(ends.values()):
            continue
        texts, times = [], {}
        for search, found in ends.items():
            auc = summary([cell["auc"][-1] for cell in found], digits=3, factor=1.0)
            times[search] = statistics.median(cell["seconds"][-1] for cell in found)
            texts.append(f"{auc}, {times[search]:.2g} s")
        rows.append([name, *texts, f"{times['50 steps'] / times['5 steps']:.1f}x"])
    return markdown_table(["set", *SEARCHES, "time"], rows)


def draw(content: Content, directory: Path, options: Options) -> list[Path]:
    """Draw AUC against time, one panel for each set."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    names = [name for name in SETS if cells_of(content, f"{name}/5 steps")]
    columns = -(-len(names) // 2)
    figure = Figure(figsize=(3 * columns, 6), layout="tight")
    axes = np.ravel(figure.subplots(2, columns))
    for axis, name in zip(axes, names, strict=False):
        for search in SEARCHES:
            found = cells_of(content, f"{name}/{search}")
            seconds = np.median([cell["seconds"] for cell in found], axis=0)
            auc = np.array([cell["auc"] for cell in found])
            axis.errorbar(
                seconds, auc.mean(0), auc.std(0), label=search, marker="o", ms=3, capsize=2
            )
        axis.set(title=name, xscale="log", xlabel="seconds", ylabel="AUC")
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
        axis.xaxis.set_minor_locator(NullLocator())
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower right")
    path = directory / "fewer_steps.png"
    figure.savefig(path, dpi=110)
    return [path]


def _split(x: Any, anomaly: Any, seed: int) -> Split:
    """All anomalies and as many normal rows to test (at most half of them), the rest to train."""
    drawn = tabular_data.split(x, anomaly, "script", seed)
    train, test = (torch.from_numpy(part.astype(np.float32)) for part in (drawn.train, drawn.test))
    return train, torch.ones(len(train)), test, torch.from_numpy(drawn.normal).float()


def _tabular(name: str, directory: Path, seed: int) -> Split:
    return _split(*tabular_data.load(directory, name), seed)


def _breast_cancer(_: Path, seed: int) -> Split:
    x, benign = load_breast_cancer(return_X_y=True)
    return _split(x, benign == 0, seed)


def _handwritten(_: Path, seed: int) -> Split:
    x, digit = load_digits(return_X_y=True)
    return _split(x, digit != 8, seed)


def _mnist(directory: Path, seed: int) -> Split:
    with np.load(directory / "mnist.npz") as data:
        rows = [data[f"x_{part}"].reshape(-1, 784).astype(np.float64) for part in ("train", "test")]
        eight, test_eight = (data[f"y_{part}"] == 8 for part in ("train", "test"))
    train = rows[0][eight]
    scaler = Standardizer.fit("fewer_steps", train)
    x, test = (
        torch.from_numpy(scaler.transform(part).astype(np.float32)) for part in (train, rows[1])
    )
    return x, torch.ones(len(x)), test, torch.from_numpy(test_eight).float()


@functools.lru_cache(maxsize=1)
def _airplanes(directory: Path, seed: int) -> Split:
    train = images(directory / "cifar10" / "train_airplane.zip", "", 5000)
    path = directory / "cifar10" / "test.zip"
    counts = [1000] + [125] * 8
    test = [images(path, f"{name}/", n) for name, n in zip(CLASSES, counts, strict=False)]
    return train, torch.ones(len(train)), torch.cat(test), (torch.arange(2000) < 1000).float()


SETS = {
    **{name: Set(functools.partial(_tabular, name)) for name in tabular_data.NAMES},
    "breast cancer": Set(_breast_cancer),
    "digits (8)": Set(_handwritten),
    "MNIST (8)": Set(_mnist),
    "CIFAR-10 (airplane), LeNet": Set(
        _airplanes,
        lambda _: networks.CIFARLeNet(),
        iterations=24,
        batch_size=64,
        learning_rate=1e-3,
        mu=1.0,
        radius=8.0,  # the paper's, with gamma 1
        gamma=1.0,
    ),
    "Bonn EEG, LSTM": Set(
        lambda directory, _: seizures(directory),
        lambda _: networks.LSTMClassifier(1, 128),
        iterations=12,
        batch_size=64,
        learning_rate=1e-3,
        mu=0.5,
        clip_norm=1.0,
    ),
}

EXPERIMENT = Experiment(
    name="fewer_steps",
    title="AUC and seconds of a training",
    cells=functools.partial(cells_of_sets, list(SETS)),
    section=section,
    draw=draw,
    page="FEWER_STEPS.md",
    command="python -m benchmarks.training.fewer_steps",
)

if __name__ == "__main__":
    main()
