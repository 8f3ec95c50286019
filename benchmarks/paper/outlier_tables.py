"""The default of `DROCC` on tables of ADBench: what each part gives, and where it still loses."""

from __future__ import annotations

import functools
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score
from sklearn.preprocessing import StandardScaler

from benchmarks.paper import baselines
from benchmarks.paper.experiment import Compute, Content, Experiment, Options, by_seed
from benchmarks.paper.pages import filled
from drocc_ext import DROCC
from drocc_ext.demo.reporting import markdown_table
from drocc_ext.metrics import roc_auc

FOLDER = "adbench"
_MOST_TRAINING_ROWS, _MOST_TEST_ROWS = 2000, 4000
BASELINES = ("kNN", "LOF", "isolation forest", "OC-SVM")
# Each takes one part of the default away.
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "network alone": {"nearest": False},
    "no swaps of values (noise `mixed`)": {"noise": "mixed"},
    "Algorithm 1 (`hidden=128`)": {"hidden": 128},
    "hard labels": {"labels": "hard", "radius_range": (1.0, 2.0)},
}
_QUICK_STEPS = 5


class Split(NamedTuple):
    """Normal rows to train on, rows to test on, and which of those are anomalies."""

    train: npt.NDArray[np.float64]
    test: npt.NDArray[np.float64]
    anomalous: npt.NDArray[np.bool_]


def load(path: Path, seed: int) -> Split:
    """Read a table and draw its split.

    Half of the normal rows train, at most 2,000; the other half and all anomalies are tested, at
    most 4,000 rows in the same shares.

    Args:
        path: An .npz file of X `[N, D]` and y `[N]`, 1 = anomaly.
        seed: Seed of the draw.

    Returns:
        The split.

    Raises:
        ValueError: If the file does not hold such a table.
    """
    try:
        with np.load(path) as data:
            x, y = data["X"].astype(np.float64), data["y"]
    except (KeyError, OSError, ValueError) as error:
        raise ValueError(f"load: {path} must hold X and y, got {error}") from error
    if x.ndim != 2 or y.shape != x.shape[:1] or set(np.unique(y)) != {0, 1}:
        raise ValueError(f"load: {path} must hold X [N, D] and y [N] of both labels")
    rng = np.random.default_rng(seed)
    normal, anomalies = (rng.permutation(np.flatnonzero(y == label)) for label in (0, 1))
    half = len(normal) // 2
    train, rest = normal[:half][:_MOST_TRAINING_ROWS], normal[half:]
    share = min(1.0, _MOST_TEST_ROWS / (len(rest) + len(anomalies)))
    rest = rest[: math.ceil(share * len(rest))]
    anomalies = anomalies[: max(1, round(share * len(anomalies)))]
    test = np.concatenate([rest, anomalies])
    return Split(x[train], x[test], np.arange(len(test)) >= len(rest))


def cell(method: str, path: Path, seed: int, quick: bool) -> dict[str, float]:
    """Fit a method on a split.

    Returns:
        "auc", "ap" (average precision of the anomalies), "seconds" of the fit.
    """
    split = load(path, seed)
    start = time.process_time()
    if method in BASELINES:
        scaler = StandardScaler().fit(split.train)
        rows = [scaler.transform(part) for part in (split.train, split.test)]
        scores, seconds = baselines.scores(method, *rows, seed), time.process_time() - start
    else:
        steps = {"max_steps": _QUICK_STEPS} if quick else {}
        detector = DROCC(random_state=seed, **{**VARIANTS[method], **steps}).fit(split.train)
        seconds = time.process_time() - start
        scores = detector.decision_function(split.test)
    return {
        "auc": roc_auc(-scores, ~split.anomalous),
        "ap": float(average_precision_score(split.anomalous, scores)),
        "seconds": seconds,
    }


def cells(options: Options) -> dict[str, Compute]:
    """List the cells."""
    paths = sorted((options.data() / FOLDER).glob("*.npz"))
    if not paths:
        raise ValueError(f"cells: {options.data() / FOLDER} must hold tables, got none")
    methods: list[str] = [*BASELINES, "default"]
    if options.quick:
        paths, methods = paths[:1], ["kNN", "default"]
    wanted = [(method, path, s) for s in options.seeds for path in paths for method in methods]
    if not options.quick:
        first = options.seeds[0]
        # On one seed: they take most of the time.
        wanted += [(m, path, first) for m in VARIANTS if m != "default" for path in paths]
    return {
        f"{method}/{path.stem}/{seed}": functools.partial(cell, method, path, seed, options.quick)
        for method, path, seed in wanted
    }


def settings(options: Options) -> dict[str, Any]:
    """Return what the cells depend on."""
    from drocc_ext.estimators.recipes import DEFAULT

    recipe = {name: list(v) if isinstance(v, tuple) else v for name, v in vars(DEFAULT).items()}
    changed = {
        method: {name: list(v) if isinstance(v, tuple) else v for name, v in variant.items()}
        for method, variant in VARIANTS.items()
    }
    return {"default": recipe, "variants": changed}


def section(content: Content) -> str:
    """Write the part of the page."""
    tables = sorted({name.split("/")[1] for name in content["cells"]})
    seeds = len(content["seeds"])
    return filled(
        "outlier-tables",
        tables=len(tables),
        seeds=seeds,
        methods=_methods(content, tables),
        parts=_parts(content, tables),
        each=_each(content, tables),
    )


def _means(content: Content, method: str, tables: list[str], value: str) -> list[float]:
    """Means over seeds, one for each table; none where a cell is missing."""
    found = [by_seed(content, f"{method}/{table}", value) for table in tables]
    return [float(np.mean(values)) for values in found] if all(found) else []


def _methods(content: Content, tables: list[str]) -> str:
    """One row per method: means with standard errors over seeds, tables ahead of each baseline."""
    rows = []
    for method in ("default", *BASELINES):
        aucs = _means(content, method, tables, "auc")
        if not aucs:
            continue
        texts = []
        for value in ("auc", "ap"):
            by_table = [by_seed(content, f"{method}/{table}", value) for table in tables]
            by_draw = 100 * np.mean(by_table, axis=0)
            texts.append(f"{by_draw.mean():.1f} +- {_error(by_draw):.1f}")
        ahead = []
        for baseline in BASELINES:
            others = _means(content, baseline, tables, "auc")
            ahead.append(
                str(sum(a > b for a, b in zip(aucs, others, strict=True)))
                if others and baseline != method
                else "-"
            )
        seconds = np.mean(_means(content, method, tables, "seconds"))
        rows.append([method, *texts, *ahead, f"{seconds:.2f}"])
    header = ["", "AUC", "average precision", *(f"ahead of {b}" for b in BASELINES), "s per fit"]
    return markdown_table(header, rows)


def _parts(content: Content, tables: list[str]) -> str:
    """One row per variant that is there on all tables: what the default has more, paired."""
    rows = []
    for method in VARIANTS:
        if method == "default" or not _means(content, method, tables, "auc"):
            continue
        seeds = [
            seed
            for seed in content["seeds"]
            if all(f"{method}/{table}/{seed}" in content["cells"] for table in tables)
        ]
        texts, better = [], 0
        for value in ("auc", "ap"):
            with_part, without = (
                np.array(
                    [
                        [content["cells"][f"{name}/{table}/{seed}"][value] for seed in seeds]
                        for table in tables
                    ]
                ).mean(axis=1)
                for name in ("default", method)
            )
            gains = 100 * (with_part - without)
            texts += [f"{100 * without.mean():.1f}", f"{gains.mean():+.1f} +- {_error(gains):.1f}"]
            better = better or int((gains > 0).sum())
        seconds = np.mean(_means(content, method, tables, "seconds"))
        rows.append([method, str(len(seeds)), *texts, str(better), f"{seconds:.2f}"])
    header = [
        "variant",
        "seeds",
        "AUC",
        "default - variant",
        "average precision",
        "default - variant",
        "tables with more AUC",
        "s per fit",
    ]
    return markdown_table(header, rows)


def _error(values: npt.NDArray[np.float64]) -> float:
    """Give the standard error of a mean; 0 for one value."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def _each(content: Content, tables: list[str]) -> str:
    """One row per table: AUC and average precision of the default beside the baselines' AUC."""
    rows = []
    for table in tables:
        means = {
            (method, value): 100 * float(np.mean(values))
            for method in ("default", *BASELINES)
            for value in ("auc", "ap")
            if (values := by_seed(content, f"{method}/{table}", value))
        }
        if {("default", "auc"), ("kNN", "auc")} <= means.keys():
            distance = means["default", "auc"] - means["kNN", "auc"]
            columns = [
                *((m, "auc") for m in ("default", *BASELINES)),
                ("default", "ap"),
                ("kNN", "ap"),
            ]
            shown = [f"{means[c]:.1f}" if c in means else "-" for c in columns]
            rows.append((distance, [table, *shown, f"{distance:+.1f}"]))
    rows.sort(key=lambda row: row[0])
    header = [
        "AUC",
        "default",
        *BASELINES,
        "average precision: default",
        "kNN",
        "AUC: default - kNN",
    ]
    return markdown_table(header, [row for _, row in rows])


EXPERIMENT = Experiment(
    name="outlier-tables",
    title="Beyond the paper: the estimator's default on public tables",
    cells=cells,
    settings=settings,
    section=section,
)
