"""Which way of a search is chosen, and what it gains: method "auto" against "autograd".

    python -m benchmarks.training.methods [--threads 2] [--repeats 5] [--out DIR]

A point is a training step, search and losses with their gradients, of a multilayer perceptron with
so many inputs and units, rows and steps. Both ways take turns; the ratio is that of their medians.
Memory is the growth of the process's resident pages, so that operators' own scratch counts.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.reporting import peak_resident, write_json
from drocc_ext import DROCCLoss, SearchConfig
from drocc_ext.demo import interleaved
from drocc_ext.models.networks import MLP
from drocc_ext.search.mlp.match import find_mlp
from drocc_ext.search.mlp.search import pays

INPUTS = (6, 30, 274, 768, 4000, 20000)
UNITS = ((16,), (128,), (256,), (1024,), (4000,), (20000,))
DEEP = ((16, 16), (128, 128), (256, 256, 256), (1000, 500), (2000, 512), (512, 256, 128, 64))
ROWS = (1, 16, 64, 256)
STEPS = (5, 50)

# Multiplications of a step by autograd beyond which a point is left out: it would take minutes.
_MOST_WORK = 60e9
# A smaller ratio is measured a second time, with more repeats, and that one counts.
_DOUBTFUL = 0.95

# Where autograd is chosen both ways are one; such points are timed while they cost little.
_MOST_WORK_ALIKE = 2e9


class Point(NamedTuple):
    """A network, a batch and a search."""

    inputs: int
    units: tuple[int, ...]
    rows: int
    steps: int

    @property
    def work(self) -> float:
        """Multiplications of a training step by autograd."""
        widths = (self.inputs, *self.units, 1)
        weights = sum(a * b for a, b in itertools.pairwise(widths))
        return float(weights * self.rows * (2 * self.steps + 6))


def main() -> None:
    """Measure all points, print a table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", "the adversarial search travels")
    # One thread's own time does not count what else runs on the machine.
    clock = time.thread_time if arguments.threads == 1 else time.perf_counter
    results = []
    for point in points():
        result = measure(point, arguments.repeats, clock)
        if result is None:
            continue
        if result["autograd_time_over_auto"] < _DOUBTFUL:  # noise or not
            result = measure(point, 5 * arguments.repeats, clock)
            assert result is not None
        results.append(result)
        print(
            f"D {point.inputs:6} H {'-'.join(map(str, point.units)):16} B {point.rows:4} "
            f"steps {point.steps:3}  {result['chosen']:9} {result['autograd_time_over_auto']:6.2f}x"
            f"  memory {result['auto_bytes'] / 2**20:8.1f} of "
            f"{result['autograd_bytes'] / 2**20:8.1f} MiB",
            flush=True,
        )
    for chosen in ("operator", "autograd"):
        ratios = [r["autograd_time_over_auto"] for r in results if r["chosen"] == chosen]
        if ratios:
            print(f"{chosen} chosen at {len(ratios)} points, the least {min(ratios):.2f}x")
    if arguments.out:
        command = f"--threads {arguments.threads} --repeats {arguments.repeats}"
        report = {
            "command": f"python -m benchmarks.training.methods {command} --out DIR",
            "clock": "the thread's processor time" if arguments.threads == 1 else "wall time",
            "environment": interleaved.environment(),
            "points": results,
        }
        write_json(arguments.out / "methods_cpu.json", report)


def table(report: dict[str, Any]) -> str:
    """Tabulate what is chosen for 64 rows, and what it gains.

    Args:
        report: What this module wrote.

    Returns:
        Markdown.
    """
    cells: dict[tuple[str, int], list[str]] = {}
    for point in report["points"]:
        if point["rows"] == 64:
            gain = f"{point['autograd_time_over_auto']:.1f}x"
            shown = gain if point["chosen"] == "operator" else "autograd"
            key = ("-".join(map(str, point["units"])), point["inputs"])
            cells.setdefault(key, []).append(shown)
    lines = [
        f"| hidden units | {' | '.join(f'{inputs} inputs' for inputs in INPUTS)} |",
        "|---" * (len(INPUTS) + 1) + "|",
    ]
    for units in ("-".join(map(str, widths)) for widths in UNITS + DEEP):
        row = [" / ".join(cells.get((units, inputs), ["-"])) for inputs in INPUTS]
        lines.append(f"| {units} | {' | '.join(row)} |")
    return "\n".join(lines)


def points() -> Iterator[Point]:
    """List all points that take no minutes, in an order that mixes them."""
    for steps, rows, units, inputs in itertools.product(STEPS, ROWS, UNITS + DEEP, INPUTS):
        point = Point(inputs, units, rows, steps)
        if point.work <= _MOST_WORK and point.inputs * units[0] <= 50e6:
            yield point


def measure(point: Point, repeats: int, clock: Any) -> dict[str, Any] | None:
    """Time both ways and count their memory; None where they are one and take long."""
    torch.manual_seed(0)
    model = MLP(point.inputs, list(point.units))
    x = torch.randn(point.rows, point.inputs)
    layers = find_mlp(model)
    assert layers is not None
    chosen = "operator" if pays(layers, point.rows, point.steps) else "autograd"
    if chosen == "autograd" and point.work > _MOST_WORK_ALIKE:
        return None
    radius = point.inputs**0.5 / 2
    methods: Any = ("auto", "autograd")
    losses = {
        name: DROCCLoss(SearchConfig(radius, radius / point.steps / 2, point.steps, method=name))
        for name in methods
    }
    seconds: dict[str, list[float]] = {name: [] for name in losses}
    for turn in range(repeats + 1):
        for name, loss in losses.items():
            calls, begin = 0, clock()
            while calls == 0 or clock() - begin < 0.01:
                _step(loss, model, x)
                calls += 1
            if turn > 0:
                seconds[name].append((clock() - begin) / calls)
    times = {name: statistics.median(values) for name, values in seconds.items()}
    peaks = {
        name: peak_resident(lambda loss=loss: _step(loss, model, x))
        for name, loss in losses.items()
    }
    return {
        "inputs": point.inputs,
        "units": list(point.units),
        "rows": point.rows,
        "steps": point.steps,
        "chosen": chosen,
        "autograd_time_over_auto": round(times["autograd"] / times["auto"], 3),
        "auto_bytes": peaks["auto"],
        "autograd_bytes": peaks["autograd"],
    }


def _step(loss: DROCCLoss, model: MLP, x: Tensor) -> None:
    model.zero_grad()
    loss(model, x, generator=torch.Generator().manual_seed(0)).total.backward()


if __name__ == "__main__":
    main()
