"""What the page says of wake words: tables, and recall as bars."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paper.experiment import Options, summary
from drocc_ext.demo.reporting import markdown_table, paragraph

KINDS = ("both", "close word", "half the word")
FPRS = (0.03, 0.05)


def recalls(
    content: dict[str, Any], method: str, kind: str, at: int, value: str = "recall"
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


def _means(
    content: dict[str, Any], method: str, value: Callable[[dict[str, Any]], float]
) -> list[float]:
    cells, keywords = content["cells"], keywords_of(content)
    rows = [
        [cells.get(f"{method}/{keyword}/{seed}") for keyword in keywords]
        for seed in content["seeds"]
    ]
    return [float(np.mean([value(cell) for cell in row])) for row in rows if all(row)]


def keywords_of(content: dict[str, Any]) -> list[str]:
    """List the keywords that were run."""
    found = {name.split("/")[1] for name in content["cells"]}
    return [keyword for keyword in content["settings"]["close words"] if keyword in found]


def section(content: dict[str, Any]) -> str:
    """Write the tables below the heading."""
    settings = content["settings"]
    methods = [name for name in settings["methods"] if recalls(content, name, "both", 0)]
    keywords = keywords_of(content)
    example = content["cells"][f"{methods[0]}/{keywords[0]}/{content['seeds'][0]}"]
    normal, far, close, halves = example["test"]
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
                        for seed in content["seeds"]
                        if (found := content["cells"].get(f"{name}/{keyword}/{seed}"))
                    ]
                )
                for name in methods
            ),
        ]
        for keyword in keywords
    ]
    rates = [f"{kind}, {rate:.0%}" for kind in KINDS for rate in FPRS]
    text = [
        paragraph(
            f"Keywords {', '.join(keywords)}, {len(content['seeds'])} seeds, speakers dealt out "
            f"60-20-20. Training: {example['train'][0]} clips of the keyword and twice as many "
            "drawn from other words and background noise (numbers of the first cell). Close "
            "negatives are in no training: clips of the word with the keyword's vowel, and the "
            "keyword's own test clips with the first or the second half of the word replaced by "
            "frames of the rest of the clip, the nearest there is to the paper's synthesized "
            f'"mar" and "arvin", which are not published. Tested: {normal} clips of the keyword, '
            f"{close} of the close word, {halves} halves, and as many generic negatives as close "
            f"ones ({far} for both kinds). The threshold is that of validation speakers, with "
            "close negatives of their own, as in appendix E.5. Recall in percent at 3 % and 5 % "
            "false positives by kind of close negative; mean over the keywords, then mean and "
            "deviation over seeds. **The paper's figures 3 and 9 are bars without numbers, for "
            "other keywords, 1000 clips of each and synthesized negatives, so no value of the "
            "paper stands beside ours.**"
        ),
        markdown_table(["", *rates], main),
        paragraph(
            "AUC against generic and close negatives, the false positive rate on test that the "
            "validation threshold for 3 % lets through, and the recall if the threshold is chosen "
            "on the test negatives, as the published script does:"
        ),
        markdown_table(
            [
                "",
                "AUC, generic",
                *(f"AUC, {kind}" for kind in KINDS[1:]),
                "FPR",
                "threshold on test",
            ],
            more,
        ),
        paragraph("Recall at 3 %, both kinds, by keyword:"),
        markdown_table(["", "close word", *methods], by_keyword),
        paragraph(_outcome(content, methods)),
        paragraph(_how(settings, methods)),
    ]
    return "\n\n".join(text)


def _outcome(content: dict[str, Any], methods: list[str]) -> str:
    plain = recalls(content, "BCE", "both", 0)
    differences = []
    for name in methods[1:]:
        of = recalls(content, name, "both", 0)
        seeds = min(len(of), len(plain))
        points = [100 * (a - b) for a, b in zip(of[:seeds], plain[:seeds], strict=True)]
        better = sum(point > 0 for point in points)
        differences.append(
            f"{name} {np.mean(points):+.1f} points (above in {better} of {seeds} seeds)"
        )
    return (
        f"Against BCE, at 3 % and both kinds: {', '.join(differences)}. The paper finds that LF "
        "significantly outperforms binary classification and anomaly detection; that is not "
        "reproduced here. Of the close negatives the threshold of BCE lets "
        f"{summary(recalls(content, 'BCE', 'both', 0, 'fpr_close'))} % through and of the generic "
        f"ones {summary(recalls(content, 'BCE', 'both', 0, 'fpr_far'))} %; that of LF "
        f"{summary(recalls(content, 'DROCC-LF', 'both', 0, 'fpr_close'))} % and "
        f"{summary(recalls(content, 'DROCC-LF', 'both', 0, 'fpr_far'))} %. Recalls are of few "
        "clips: 3 % of the negatives of a cell are about ten clips, and a keyword has a quarter "
        "of the paper's clips for training."
    )


def _how(settings: dict[str, Any], methods: list[str]) -> str:
    search = settings["methods"]["DROCC-OE"]["search"]
    rate = settings["DeepSAD's"]
    deep_sad = (
        "DeepSAD is DeepOD's (0.4.1, installed with --no-deps beside the project), with an LSTM of "
        f"128 units of the same start and as many steps, learning rate {rate:g} "
        "(the library's), batches that hold as many negatives as clips of the keyword, and without "
        "the paper's pretraining as an autoencoder, which the library does not have. "
    )
    return (
        f"Every method: LSTM(128) that starts with long memories, {settings['steps']} steps on "
        f"batches of {settings['batch size']}, the last weights; features are the coarse filter "
        f"bank of table 3. BCE, OE and LF: Adam, {settings['learning rate']:g} falling linearly "
        f"to 0, bfloat16; OE and LF: radius {search['radius']:g}, gamma {search['gamma']:g}, "
        f"{search['num_steps']} steps of {search['step_size']:g}, mu 1. "
        + (deep_sad if "DeepSAD" in methods else "")
        + "The keywords, their close words and the cut were fixed before any result of this kind "
        "was seen. Radius, gamma, way, mu and number of steps were chosen by AUC and recall on the "
        "validation speakers of seed 100 (go), another split of the same clips, with close "
        "negatives in view; one keyword and one seed, so within noise of some points. Tried "
        "there: radius 2, 4, 8, 10, 12, 16 and 40, gamma 1 and 2, steps of 0.02, 0.1 and 0.2 "
        "radii, mu 0.25, 0.5 and 1, 100 to 1000 training steps, rate 2e-3 (BCE), and all 98 frames "
        "of 32 energies; none was clearly above BCE. On seed 101 (off) OE was looked at once more "
        "with radius 10 and 14 and mu 0.25."
    )


def draw(content: dict[str, Any], directory: Path, options: Options) -> list[Path]:
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
