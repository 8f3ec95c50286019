"""What the page says of wake words: tables, and recall as bars."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paper.experiment import Content, Options, cells_of, summary
from benchmarks.paper.pages import filled
from drocc_ext.demo.reporting import markdown_table

KINDS = ("both", "close word", "half the word")
FPRS = (0.03, 0.05)


def recalls(
    content: Content, method: str, kind: str, at: int, value: str = "recall"
) -> list[float]:
    """Take the mean over the keywords of what `judge` says at a rate, for each seed that has all.

    Args:
        content: Contents of the results file.
        method: Its name.
        kind: One of `KINDS`.
        at: Which of `FPRS`.
        value: Field of `RecallAtFPR`.

    Returns:
        A value for each seed.
    """
    return _means(content, method, lambda found: found["by_kind"][kind]["at_fpr"][at][value])


def _means(content: Content, method: str, value: Callable[[dict[str, Any]], float]) -> list[float]:
    cells, keywords = content["cells"], keywords_of(content)
    rows = [
        [cells.get(f"{method}/{keyword}/{seed}") for keyword in keywords]
        for seed in content["seeds"]
    ]
    return [float(np.mean([value(cell) for cell in row])) for row in rows if all(row)]


def keywords_of(content: Content) -> list[str]:
    """List the keywords that were run."""
    found = {name.split("/")[1] for name in content["cells"]}
    return [keyword for keyword in content["settings"]["close words"] if keyword in found]


def section(content: Content) -> str:
    """Write the part of the page."""
    settings = content["settings"]
    methods = [name for name in settings["methods"] if recalls(content, name, "both", 0)]
    keywords = keywords_of(content)
    main = [
        [
            name,
            *(summary(recalls(content, name, kind, at)) for kind in KINDS for at in (0, 1)),
        ]
        for name in methods
    ]
    more = [
        [
            name,
            summary(_means(content, name, lambda cell: cell["by_kind"]["both"]["auc_far"])),
            *(
                summary(_means(content, name, lambda cell, k=kind: cell["by_kind"][k]["auc_close"]))
                for kind in KINDS[1:]
            ),
            summary(recalls(content, name, "both", 0, "fpr")),
            summary(recalls(content, name, "both", 0, "recall_test_threshold")),
        ]
        for name in methods
    ]
    by_keyword = [
        [
            keyword,
            settings["close words"][keyword],
            *(
                summary(
                    [
                        found["by_kind"]["both"]["at_fpr"][0]["recall"]
                        for found in cells_of(content, f"{name}/{keyword}")
                    ]
                )
                for name in methods
            ),
        ]
        for keyword in keywords
    ]
    rates = [f"{kind}, {rate:.0%}" for kind in KINDS for rate in FPRS]
    aucs = ["AUC, generic", *(f"AUC, {kind}" for kind in KINDS[1:])]
    return filled(
        "wake-word",
        settings=settings,
        search=settings["methods"]["DROCC-OE"]["search"],
        keywords=", ".join(keywords),
        seeds=len(content["seeds"]),
        example=content["cells"][f"{methods[0]}/{keywords[0]}/{content['seeds'][0]}"],
        recall=markdown_table(["", *rates], main),
        auc=markdown_table(["", *aucs, "FPR", "threshold on test"], more),
        by_keyword=markdown_table(["", "close word", *methods], by_keyword),
        differences=", ".join(_difference(content, name) for name in methods[1:]),
        through={
            name: [
                summary(recalls(content, name, "both", 0, value))
                for value in ("fpr_close", "fpr_far")
            ]
            for name in ("BCE", "DROCC-LF")
        },
        deep_sad=_DEEP_SAD.format(settings["DeepSAD's"]) if "DeepSAD" in methods else "",
    )


def _difference(content: Content, method: str) -> str:
    plain, of = (recalls(content, name, "both", 0) for name in ("BCE", method))
    seeds = min(len(of), len(plain))
    points = [100 * (a - b) for a, b in zip(of[:seeds], plain[:seeds], strict=True)]
    better = sum(point > 0 for point in points)
    return f"{method} {np.mean(points):+.1f} points (above in {better} of {seeds} seeds)"


_DEEP_SAD = (
    "DeepSAD is DeepOD's (0.4.1, installed with --no-deps beside the project), with an LSTM of 128 "
    "units of the same start and as many steps, learning rate {:g} (the library's), batches that "
    "hold as many negatives as clips of the keyword, and without the paper's pretraining as an "
    "autoencoder, which the library does not have."
)


def draw(content: Content, directory: Path, options: Options) -> list[Path]:
    """Draw recall at both rates as bars, a panel for each kind of close negative."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    methods = [name for name in content["settings"]["methods"] if recalls(content, name, "both", 0)]
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(KINDS), sharey=True)
    width = 0.8 / len(methods)
    for panel, kind in zip(panels, KINDS, strict=True):
        for number, name in enumerate(methods):
            values = [100 * np.array(recalls(content, name, kind, at)) for at in range(len(FPRS))]
            panel.bar(
                np.arange(len(FPRS)) + (number - (len(methods) - 1) / 2) * width,
                [of.mean() for of in values],
                width,
                yerr=[of.std(ddof=1) if len(of) > 1 else 0.0 for of in values],
                capsize=2,
                label=name,
            )
        panel.set_xticks(range(len(FPRS)), [f"{rate:.0%} FPR" for rate in FPRS])
        panel.set_title(f"close negatives: {kind}", fontsize=10)
    panels[0].set_ylabel("recall in percent")
    panels[0].legend(fontsize=8)
    path = directory / "wake-word.png"
    figure.savefig(path, dpi=110)
    return [path]
