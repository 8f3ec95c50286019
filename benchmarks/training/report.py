"""The README's table of training times."""

from __future__ import annotations

import re
from typing import Any

TITLES = {
    "thyroid": "thyroid, 6-128-1",
    "arrhythmia": "arrhythmia, 274-128-1",
    "embeddings": "16,000 embeddings, 768-128-1",
    "lstm": "Bonn EEG, LSTM(128), one batch",
    "lenet": "CIFAR-10 airplanes, LeNet, one batch",
    "lf": "MNIST, DROCC-LF, LeNet, two batches",
    "wide first layer": "10-4000-1",
    "batch norm": "30 inputs, 2 x 128 with BatchNorm",
}
_COLUMNS = {
    "compat": "`compat.edgeml`",
    "trainer": "`Trainer`",
    "bfloat16": "`Trainer`, bfloat16",
    "5 steps": "`Trainer`, 5 steps",
}


def readme_table(report: dict[str, Any]) -> str:
    """Write the table from a committed report.

    Args:
        report: What `python -m benchmarks.training` wrote.

    Returns:
        Markdown.
    """
    lines = [f"| training | {' | '.join(_COLUMNS.values())} | AUC |", "|---" * 6 + "|"]
    for name, case in report["cases"].items():
        ratios, auc = case["published_time_over_ours"], case["auc_of_the_last_epoch"]
        cells = [f"{ratios[c]:.1f}x" if c in ratios else "-" for c in _COLUMNS]
        scores = [f"{auc[c]:.3f}" for c in ("published", "compat", "trainer", "5 steps")]
        lines.append(f"| {_title(name)} | {' | '.join(cells)} | {' / '.join(scores)} |")
    machine = report["environment"]
    return "\n".join(lines) + (
        f"\n\n{report['clock'].capitalize()} of an adversarial epoch of the published trainer "
        "as a multiple of ours, with 50 steps each unless the row says 5,\n"
        "except in the column of 5 (of 0.1 radii). AUC after "
        "these few epochs (or a batch, too few to learn): published\ntrainer / `compat.edgeml` / "
        "`Trainer` / 5 steps. float32 except in one\n"
        f"column, {machine['threads']} thread(s) of {machine['processor']}, torch "
        f"{machine['torch']}, medians of trainings in turn\n(`{report['command']}`)."
    )


def _title(name: str) -> str:
    deep = re.fullmatch(r"(\d)x(\d+) d(\d+)( few)?", name)
    if deep is None:
        return TITLES[name]
    layers, units, inputs, few = deep.groups()
    return f"{inputs} inputs, {layers} x {units}{', 5 steps each' if few else ''}"
