"""Table 2: thyroid, annthyroid, arrhythmia and abalone, under two protocols, with its baselines."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paper import tabular_data, tabular_methods
from benchmarks.paper.experiment import Compute, Experiment, Options, by_seed, summary
from benchmarks.paper.tabular_methods import METHODS, Case, available
from drocc_ext import DROCC
from drocc_ext.demo.reporting import markdown_table, paragraph
from drocc_ext.metrics import f1_published, f1_top_n, roc_auc

# F1 in percent, Table 2. Its autoencoder is the end-to-end one of DAGMM's authors.
PAPER = {
    "OC-SVM": ("39 +- 1", "46 +- 0", "48 +- 0"),
    "DCN": ("33 +- 3", "38 +- 3", "40 +- 1"),
    "autoencoder": ("13 +- 4", "45 +- 3", "33 +- 3"),
    "LOF": ("54 +- 1", "51 +- 1", "33 +- 1"),
    "DAGMM": ("49 +- 4", "49 +- 3", "20 +- 3"),
    "DeepSVDD": ("73 +- 0", "54 +- 1", "62 +- 1"),
    "GOAD": ("72 +- 1", "51 +- 2", "61 +- 2"),
    "DROCC": ("78 +- 3", "69 +- 2", "68 +- 2"),
}
PAPER_DATA = ("thyroid", "arrhythmia", "abalone")
_QUICK = (("DROCC", "abalone"), ("DROCC, Table 10", "abalone"), ("autoencoder", "abalone"))


def cell(method: str, data: str, directory: Path, seed: int, quick: bool) -> dict[str, float]:
    """Fit a method on both splits of a data set.

    Returns:
        "script auc", "script published" (the published F1), "script f1", "DAGMM auc", "DAGMM f1":
        F1 with the threshold at the true anomaly ratio but for the published one.
    """
    rows = tabular_data.load(directory, data)
    result = {}
    for kind in tabular_data.SPLITS:
        split = tabular_data.split(*rows, kind, seed)
        scores = -METHODS[method](Case(data, split, seed, quick))
        result[f"{kind} auc"] = roc_auc(scores, split.normal)
        result[f"{kind} f1"] = f1_top_n(scores, split.normal)
        if kind == "script":
            result["script published"] = f1_published(scores, split.normal)
            perfect = split.normal + np.linspace(0, 0.5, len(scores))
            result["script ceiling"] = f1_published(perfect, split.normal)
    return result


def cells(options: Options) -> dict[str, Compute]:
    """List the cells."""
    directory = options.data()
    chosen = (
        list(_QUICK)
        if options.quick
        else [(m, d) for m in METHODS for d in tabular_data.NAMES if available(m, d)]
    )
    return {
        f"{method}/{data}/{seed}": functools.partial(
            cell, method, data, directory, seed, options.quick
        )
        for seed in options.seeds
        for method, data in chosen
    }


def settings(options: Options) -> dict[str, Any]:
    """Return what the cells depend on."""
    default = DROCC().get_params()
    return {
        "default": {name: default[name] for name in sorted(default)},
        "steps": tabular_methods.STEPS,
        "script": tabular_methods.SCRIPT,
        "goad": tabular_methods.GOAD,
    }


def _rows(content: dict[str, Any], value: str) -> list[list[str]]:
    """One row per method that has a cell, one column per data set."""
    rows = []
    for method in METHODS:
        texts = [
            summary(by_seed(content, f"{method}/{data}", value)) for data in tabular_data.NAMES
        ]
        if any(text != "-" for text in texts):
            rows.append([method, *texts])
    return rows


def _with_paper(rows: list[list[str]]) -> str:
    """Lay out F1 by the DAGMM protocol, the paper's values in columns beside ours."""
    header = ["F1, DAGMM protocol"]
    for data in tabular_data.NAMES:
        header += [data, "paper"] if data in PAPER_DATA else [data]
    table = []
    known = {row[0] for row in rows}
    for row in rows + [[name, "-", "-", "-", "-"] for name in PAPER if name not in known]:
        quoted = dict(zip(PAPER_DATA, PAPER.get(row[0], ("-", "-", "-")), strict=True))
        line = [row[0] if row[0] in known else f"{row[0]} (quoted only)"]
        for data, text in zip(tabular_data.NAMES, row[1:], strict=True):
            line += [text, quoted[data]] if data in PAPER_DATA else [text]
        table.append(line)
    return markdown_table(header, table)


def _ceiling(content: dict[str, Any]) -> list[str]:
    row = ["a perfect ranking (the ceiling)"]
    for data in tabular_data.NAMES:
        values = [
            cell["script ceiling"]
            for name, cell in content["cells"].items()
            if name.split("/")[1] == data
        ]
        row.append(f"{100 * np.mean(values):.1f}" if values else "-")
    return row


def _shortfall(content: dict[str, Any]) -> str:
    """Say by how much DROCC differs from the paper's value, and from the best method here."""
    parts = []
    for data, quoted in zip(PAPER_DATA, PAPER["DROCC"], strict=True):
        means = {
            method: 100 * float(np.mean(values))
            for method in METHODS
            if (values := by_seed(content, f"{method}/{data}", "DAGMM f1"))
        }
        if "DROCC" not in means:
            continue
        top = max(means.values())
        best = " and ".join(method for method, mean in means.items() if top - mean < 0.05)
        difference = means["DROCC"] - float(quoted.split()[0])
        parts.append(
            f"{data} {means['DROCC']:.1f}, {difference:+.1f} points (best here: {best}, {top:.1f})"
        )
    return f"DROCC against the paper's value: {'; '.join(parts)}. {_TRIED}"


def section(content: dict[str, Any]) -> str:
    """Write the part of the page."""
    sets = list(tabular_data.NAMES)
    return "\n\n".join(
        [
            paragraph(_PROTOCOL),
            paragraph(_SETTINGS),
            paragraph(
                "(a) F1 in percent by the protocol of DAGMM and GOAD: half of the normal rows "
                "train, the rest and all anomalies are tested, as many rows are called anomalous "
                "as there are anomalies, and the anomalies are the positive class. The "
                "paper names these two for its preparation of thyroid and arrhythmia, and F1 is "
                '"in line with prior work". OC-SVM, run by that protocol here, is far '
                "above the values that the paper has for it."
            ),
            _with_paper(_rows(content, "DAGMM f1")),
            paragraph(_shortfall(content)),
            paragraph(
                "(b) F1 in percent as the published script computes it: as many normal rows as "
                "anomalies are tested, the normal class is the positive one, and the 20 % lowest "
                "scores are called anomalous. Even a perfect ranking stays below the paper's value "
                "for thyroid, and random scores get about 62."
            ),
            markdown_table(
                ["F1, script", *sets], [*_rows(content, "script published"), _ceiling(content)]
            ),
            paragraph("(c) AUC in percent, split of the script."),
            markdown_table(["AUC, script split", *sets], _rows(content, "script auc")),
            paragraph("AUC in percent, split of DAGMM and GOAD."),
            markdown_table(["AUC, DAGMM split", *sets], _rows(content, "DAGMM auc")),
        ]
    )


_PROTOCOL = (
    "Mean and sample standard deviation over seeds; a seed draws split, weights and noise. All "
    "methods get the same rows: columns in which 99 % of the training rows share one value are "
    "dropped, the others standardized by the training rows and clipped to +-10."
)
_SETTINGS = (
    '"DROCC" is the estimator `drocc_ext.DROCC` with its defaults, the same for all sets (they '
    "were once compared on these sets with test labels in view; differences below a point are "
    'noise); "mean of three" and "chosen by stretch" are label-free rules of the study below, '
    "added after the default's F1 on abalone had been seen, to look for one that is better on all "
    'sets (none is); "DROCC-Rand" is the default without ascent; "DROCC, Table 10" has the '
    "paper's radius, step "
    "size, learning rate and mu, and from the published script what Table 10 leaves open (50 "
    "epochs of warm-up, 100 or 200 in all, 50 steps of ascent, learning-rate steps), the last "
    "epoch's weights, while the script keeps the best epoch on the test rows. OC-SVM, LOF, "
    "isolation forest, kNN, autoencoder and DeepSVDD are PyOD's with its defaults but for one "
    "hidden layer of 128 units, as in the paper, and {autoencoder} and {DeepSVDD} steps, rounded "
    "up to whole epochs. GOAD is DeepOD's, run where it is installed (`pip install --no-deps "
    "deepod`; it asks for an old torch and works with this one), with {n_trans} transforms and "
    "{epochs} epochs, where 256 and 100 are its defaults and out of reach of two cores. Its two "
    "losses are weighed as by default: a first look, with labels in view, had the other tried "
    "(alpha 10) rank thyroid upside down. It is not GOAD at its best: "
    "see the quoted value. DeepOD's DeepSAD "
    "refuses to fit without a labelled anomaly (it divides by their number) and has none here: "
    "without them its loss is DeepSVDD's."
).format(**tabular_methods.STEPS, **tabular_methods.GOAD)

_TRIED = (
    "Tried to come closer: the paper's own settings (above), and the rules for radius, ascent, "
    "steps, stopping, inputs and averages of the study below; before it, and not run again here, "
    "other scalings, warm-up, constant learning rates, other activations, 512 units, weight decay "
    "and a radius for each row, none of which helped on all sets."
)

EXPERIMENT = Experiment(
    name="tabular",
    shows=("table2",),
    title="Table 2: tabular data",
    cells=cells,
    settings=settings,
    section=section,
)
