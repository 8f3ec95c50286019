"""The tables of the front page, from the committed files of results.

`python -m benchmarks.summary` writes them anew into README.md and the pages of docs/, between the
marks `<!-- measured: NAME -->` and `<!-- end -->`. `--check` only says whether they are what the
files give.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import bench_l2_shell, bench_mahalanobis_shell
from benchmarks.paper import outlier_tables
from benchmarks.paper.experiment import Content, by_seed
from benchmarks.training import methods
from benchmarks.training import report as training
from drocc_ext._files import atomic_write
from drocc_ext.demo.reporting import markdown_table

ROOT = Path(__file__).resolve().parents[1]
PAPER = ROOT / "benchmarks" / "paper" / "results"
MEASURED = ROOT / "benchmarks" / "results"

_NEAREST = ("kNN", "nearest neighbour")
_NO_BASELINES = (*_NEAREST, "energy", "study", "default")


def accuracy(results: Path = PAPER, *, short: bool = False) -> str:
    """Tabulate DROCC beside the paper's values, kNN and the best baseline.

    Args:
        results: Where the files of results are. What they do not have whole is left out.
        short: Only some of the rows.

    Returns:
        Markdown; "" where there is nothing to show.
    """
    rows = [row for row in _rows(results) if not (short and row[0].startswith("*"))]
    if not rows:
        return ""
    shown = [[title.lstrip("*"), *cells] for title, *cells in rows]
    return markdown_table(["in percent", "DROCC here", "paper", "kNN here", "best baseline"], shown)


def _rows(results: Path) -> Iterable[list[str]]:
    """Give title, DROCC, paper, kNN, best baseline; titles with a * are of the long table alone."""
    sets = ("thyroid", "annthyroid", "arrhythmia", "abalone")
    yield from _row(
        results, "tabular", "Table 2, AUC, published split", sets, "script auc", ["-"] * 4
    )
    without = ("thyroid", "arrhythmia", "abalone")
    yield from _row(
        results,
        "tabular",
        "Table 2, F1, half of the normal rows train",
        without,
        "DAGMM f1",
        ["78", "69", "68"],
    )
    yield from _row(
        results,
        "seizure",
        "Table 3, AUC, epileptic seizure",
        ("chunks", "recordings"),
        "auc",
        ["98.2", "-"],
    )
    words = ("down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes")
    yield from _row(
        results,
        "audio",
        "Table 3, AUC, ten command words (paper: one other word)",
        words,
        "auc",
        ["70.2"],
        before="coarse filter bank/",
        mean=True,
    )
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship")
    yield from _row(
        results,
        "cifar",
        "Table 1, AUC, CIFAR-10, 60 iterations only",
        (*classes, "truck"),
        "auc",
        ["74.2"],
        mean=True,
    )
    yield from _row(
        results, "sphere", "*Table 6, AUC, sphere around a ball", ("sphere",), "auc 1.2", ["99.4"]
    )
    yield from _row(
        results, "sine", "*Table 7, AUC, a sine moved by 0.2", ("sine",), "auc 0.2", ["96.8"]
    )
    path = results / "outlier-tables.json"
    if path.is_file():
        yield from _outlier_tables(json.loads(path.read_text(encoding="utf-8")))


def _row(
    results: Path,
    name: str,
    title: str,
    cases: tuple[str, ...],
    value: str,
    paper: list[str],
    *,
    before: str = "",
    mean: bool = False,
) -> Iterable[list[str]]:
    path = results / f"{name}.json"
    content: Content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "seeds" not in content:
        return
    named = (cell.removeprefix(before) for cell in content["cells"] if cell.startswith(before))
    methods = sorted({cell.split("/")[0] for cell in named})

    def values(method: str) -> list[float]:
        found = [by_seed(content, f"{before}{method}/{case}", value) for case in cases]
        if not all(found):
            return []
        means = [100 * float(np.mean(some)) for some in found]
        return [float(np.mean(means))] if mean else means

    by_method = {method: found for method in methods if (found := values(method))}
    nearest = [by_method[method] for method in _NEAREST if method in by_method]
    others = [
        found
        for method, found in by_method.items()
        if not method.startswith("DROCC") and method not in _NO_BASELINES
    ]
    if "DROCC" not in by_method or not nearest:
        return
    if len(cases) > 1 and not mean:
        title = f"{title}: {' / '.join(cases)}"
    best = [max(some) for some in zip(*others, *nearest, strict=True)]
    cells = [" / ".join(f"{number:.1f}" for number in some) for some in (by_method["DROCC"],)]
    cells += [" / ".join(paper)]
    cells += [" / ".join(f"{number:.1f}" for number in some) for some in (nearest[0], best)]
    yield [title, *cells]


def _outlier_tables(content: Content) -> Iterable[list[str]]:
    """Give the row of the detector's default on public tables; none while cells are missing."""
    if "seeds" not in content:
        return
    tables = sorted({cell.split("/")[1] for cell in content["cells"]})
    means = {}
    for method in ("default", *outlier_tables.BASELINES):
        found = [by_seed(content, f"{method}/{table}", "auc") for table in tables]
        if all(found):
            means[method] = 100 * float(np.mean([np.mean(some) for some in found]))
    if {"default", "kNN"} <= means.keys():
        best = max(value for method, value in means.items() if method != "default")
        title = f"AUC, the default of `DROCC`, mean of {len(tables)} public tables"
        yield [title, f"{means['default']:.1f}", "-", f"{means['kNN']:.1f}", f"{best:.1f}"]


def _short_training(report: dict[str, Any]) -> str:
    """Tabulate one training of each kind; the page of performance has them all."""
    cases = {name: report["cases"][name] for name in _SHORT if name in report["cases"]}
    report = {**report, "cases": cases}
    table = training.readme_table(report).split("\n\n")[0]
    machine = report["environment"]
    count = "One thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    return (
        f"{table}\n\n{report['clock'].capitalize()} of an epoch of the published trainer over "
        "ours, 50 steps of search unless it says 5; AUC after these few epochs\n"
        "(or batch): published / "
        f"`compat.edgeml` / `Trainer` / 5 steps. {count} of "
        f"{machine['processor']}, torch {machine['torch']}; [all](docs/performance.md)."
    )


_SHORT = (
    *("thyroid", "2x128 d30", "2x128 d274", "2x128 d30 few", "3x256 d30"),
    *("lstm", "lenet", "lf"),
)


def _json(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((MEASURED / name).read_text(encoding="utf-8"))
    return content


TABLES: dict[str, Callable[[], str]] = {
    "accuracy": lambda: accuracy(short=True),
    "all accuracies": accuracy,
    "short training": lambda: _short_training(_json("training_cpu.json")),
    "training": lambda: training.readme_table(_json("training_cpu.json")),
    "methods": lambda: methods.table(_json("methods_cpu.json")),
    "l2 shell": lambda: bench_l2_shell.readme_table(_json("l2_shell_cpu.json")),
    "mahalanobis shell": lambda: bench_mahalanobis_shell.readme_table(
        _json("mahalanobis_shell_cpu.json")
    ),
}
_MARKED = re.compile(r"(<!-- measured: ([\w ]+) -->\n\n?)(.*?)(\n?<!-- end -->)", re.S)


def written(text: str) -> str:
    """Put the tables between the marks of a page.

    Args:
        text: Markdown.

    Returns:
        Markdown.

    Raises:
        KeyError: If a mark names no table.
    """
    return _MARKED.sub(
        lambda found: f"<!-- measured: {found[2]} -->\n\n{TABLES[found[2]]()}\n\n<!-- end -->", text
    )


def pages() -> list[Path]:
    """List the pages that may hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.summary", description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = False
    for page in pages():
        text = page.read_text(encoding="utf-8")
        new = written(text)
        if new == text:
            continue
        stale = True
        print(f"{page.relative_to(ROOT)}: {'not what the files give' if check else 'written'}")
        if not check:
            atomic_write(page, lambda file, new=new: file.write(new.encode()))
    if check and stale:
        sys.exit("run python -m benchmarks.summary")


if __name__ == "__main__":
    main()
