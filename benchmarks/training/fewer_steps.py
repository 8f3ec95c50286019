"""Compare the preset of 5 steps of 0.1 radii with searches of 50 steps: AUC and processor time.

    python -m benchmarks.training.fewer_steps --data-dir DIR [--seeds 5] [--sets NAME ...]

Every set is trained by our `Trainer` with one radius (`suggest_radius`; for CIFAR the paper's) and
one schedule, which no test label decides; only the search differs. "5 steps" is
`SearchConfig.from_relative_step(radius)`, 15 and 50 steps go the same way in smaller ones, and
"published" has 50 steps of 0.001 and a projection every tenth step, from noise that is not
projected. Time is
that of one thread, without evaluations.
Results are kept after each cell (set, search, seed), and a cell that is there is not run again.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_digits
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.paper import tabular_data
from benchmarks.training.cases import Split, images, seizures
from drocc_ext import DROCCLoss, SearchConfig, Trainer, suggest_radius
from drocc_ext.demo import interleaved
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
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "fewer_steps.json"
    cells = json.loads(path.read_text())["cells"] if path.is_file() else {}
    for name in arguments.sets:
        for seed in range(arguments.seeds):
            for search in SEARCHES:
                key = f"{name}/{search}/{seed}"
                if key in cells:
                    continue
                print(key, file=sys.stderr)
                cells[key] = run(SETS[name], search, arguments.data_dir, seed)
                report = {"environment": interleaved.environment(), "cells": cells}
                path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    page = table(cells, arguments.seeds)
    (arguments.out / "FEWER_STEPS.md").write_text(page, encoding="utf-8")
    draw(cells, arguments.out / "fewer_steps.png")
    print(page)


def run(data: Set, search: str, directory: Path, seed: int) -> dict[str, list[float]]:
    """Train once; return AUC and seconds after each part."""
    x, _, test_x, test_y = data.load(directory, seed)
    torch.manual_seed(seed)
    model = data.network(x.shape[1])
    radius = suggest_radius(x.flatten(1)) if data.radius is None else data.radius
    optimizer = torch.optim.Adam(model.parameters(), data.learning_rate, fused=True)
    watch = _Watch(data.iterations, test_x, test_y)
    trainer = Trainer(
        model,
        DROCCLoss(SEARCHES[search](radius, gamma=data.gamma), mu=data.mu),
        optimizer,
        scheduler=LambdaLR(optimizer, lambda step: 1 - step / data.iterations),
        scheduler_interval="step",
        clip_norm=data.clip_norm,
        channels_last=x.dim() == 4,
        callbacks=[watch],
        progress=False,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the adversarial search travels")  # as published
        trainer.fit(x, max_steps=data.iterations, batch_size=data.batch_size, seed=seed)
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


def table(cells: dict[str, Any], seeds: int) -> str:
    """Write the page."""
    lines = [
        "# Fewer, longer steps",
        "",
        f"AUC (mean and standard deviation of {seeds} seeds, last weights) and seconds of one",
        "thread for a training in which only the search differs, by",
        "",
        "    python -m benchmarks.training.fewer_steps --data-dir DIR",
        "",
        "whose documentation says what the columns are. The last column is the time of 50 steps",
        "over that of the preset's 5. AUC against time: [fewer_steps.png](fewer_steps.png).",
        "",
        "| set | " + " | ".join(SEARCHES) + " | time |",
        "|---|" + "---|" * (len(SEARCHES) + 1),
    ]
    for name in SETS:
        ends = {search: _ends(cells, name, search) for search in SEARCHES}
        if not all(ends.values()):
            continue
        parts, times = [], {}
        for search, found in ends.items():
            auc = [value for value, _ in found]
            times[search] = statistics.median(seconds for _, seconds in found)
            spread = statistics.stdev(auc) if len(auc) > 1 else 0.0
            parts.append(f"{statistics.mean(auc):.3f} +- {spread:.3f}, {times[search]:.2g} s")
        ratio = times["50 steps"] / times["5 steps"]
        lines.append(f"| {name} | " + " | ".join(parts) + f" | {ratio:.1f}x |")
    return "\n".join(lines) + "\n"


def _ends(cells: dict[str, Any], name: str, search: str) -> list[tuple[float, float]]:
    found = [cell for key, cell in cells.items() if key.startswith(f"{name}/{search}/")]
    return [(cell["auc"][-1], cell["seconds"][-1]) for cell in found]


def draw(cells: dict[str, Any], path: Path) -> None:
    """Draw AUC against time, one panel for each set."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    names = [name for name in SETS if any(key.startswith(f"{name}/") for key in cells)]
    figure, axes = plt.subplots(2, -(-len(names) // 2), figsize=(3 * -(-len(names) // 2), 6))
    for axis, name in zip(np.ravel(axes), names, strict=False):
        for search in SEARCHES:
            found = [cell for key, cell in cells.items() if key.startswith(f"{name}/{search}/")]
            if found:
                seconds = np.median([cell["seconds"] for cell in found], axis=0)
                auc = np.array([cell["auc"] for cell in found])
                axis.errorbar(
                    seconds, auc.mean(0), auc.std(0), label=search, marker="o", ms=3, capsize=2
                )
        axis.set(title=name, xscale="log", xlabel="seconds", ylabel="AUC")
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
        axis.xaxis.set_minor_locator(NullLocator())
    for axis in np.ravel(axes)[len(names) :]:
        axis.set_axis_off()
    lines, labels = np.ravel(axes)[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


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
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship")
    path = directory / "cifar10" / "test.zip"
    counts = [1000] + [125] * 8
    test = [images(path, f"{name}/", n) for name, n in zip(classes, counts, strict=True)]
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

if __name__ == "__main__":
    main()
