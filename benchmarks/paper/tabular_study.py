"""Does a rule that needs no label put DROCC ahead of kNN on all four sets of Table 2? None does.

Only the results are kept; the code of the rules stands at `REVISION`.
"""

from __future__ import annotations

import numpy as np

from benchmarks.paper.experiment import Content, Experiment, by_seed
from benchmarks.paper.pages import filled
from benchmarks.paper.tabular_data import NAMES
from drocc_ext.demo.reporting import markdown_table, paragraph

REVISION = "65ae4db"
REFERENCES = ("kNN", "kNN, whitened")
VALUES = {
    "script auc": "AUC, script split",
    "DAGMM auc": "AUC, DAGMM split",
    "DAGMM f1": "F1, DAGMM protocol",
}


def differences(content: Content, method: str, data: str, value: str) -> list[float]:
    """Subtract kNN's value from a method's, for each seed that both have."""
    cells = content["cells"]
    pairs = [(f"{method}/{data}/{seed}", f"kNN/{data}/{seed}") for seed in content["seeds"]]
    return [
        float(cells[ours][value] - cells[theirs][value])
        for ours, theirs in pairs
        if ours in cells and theirs in cells
    ]


def winners(content: Content, value: str) -> list[str]:
    """List the rules whose mean is above kNN's on all sets."""
    return [
        rule
        for rule in content["settings"]["rules"]
        if all(
            (found := differences(content, rule, data, value)) and np.mean(found) > 0
            for data in NAMES
        )
    ]


def section(content: Content) -> str:
    """Write the part of the page."""
    rules = content["settings"]["rules"]
    parts = []
    for value, title in VALUES.items():
        rows = [
            [method, *(_compared(content, method, data, value) for data in NAMES)]
            for method in (*REFERENCES, *rules)
        ]
        rows = [row for row in rows if any(text != "-" for text in row[1:])]
        found = winners(content, value)
        parts += [
            markdown_table([title, *NAMES], rows),
            f"{title}: {', '.join(found) or 'no rule'} {'have' if len(found) > 1 else 'has'} a "
            "mean above kNN's on all four sets.",
        ]
    items = (paragraph(f"- {name}: {text}") for name, text in rules.items())
    return filled(
        "tabular-study",
        seeds=len(content["seeds"]),
        first_seed=content["settings"]["first seed"],
        rules="\n".join(item.replace("\n", "\n  ") for item in items),
        tables="\n\n".join(parts),
    )


def _compared(content: Content, method: str, data: str, value: str) -> str:
    values = by_seed(content, f"{method}/{data}", value)
    if not values:
        return "-"
    text = f"{100 * np.mean(values):.1f}"
    found = 100 * np.asarray(differences(content, method, data, value))
    if method == "kNN":
        return text
    error = f" +- {found.std(ddof=1) / len(found) ** 0.5:.1f}" if len(found) > 1 else ""
    return f"{text} ({found.mean():+.1f}{error})"


EXPERIMENT = Experiment(
    name="tabular-study",
    title="Table 2: rules without labels against kNN",
    section=section,
    revision=REVISION,
)
