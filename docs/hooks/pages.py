"""What the site shows besides `docs/`: pages of the benchmarks, and plots of their results."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
# They keep their places, so that their links to each other hold.
COPIED = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    "benchmarks/FEWER_STEPS.md",
    "benchmarks/results/*.png",
    "benchmarks/paper/RESULTS.md",
    "benchmarks/paper/LIMITED_NEGATIVES.md",
    "benchmarks/paper/results/*.png",
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and pictures that are not in `docs/`."""
    for pattern in COPIED:
        for path in sorted(ROOT.glob(pattern)):
            uri = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, uri, abs_src_path=str(path)))
    for name, draw in PLOTS.items():
        files.append(File.generated(config, f"pictures/{name}.png", content=draw()))
    return files


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Turn equations into MathML; lead links to the repository to the copies in the site."""
    markdown = re.sub(r"\$\$(.*?)\$\$", _mathml, markdown, flags=re.S)
    return re.sub(r"\]\(\.\./((?:benchmarks/|CONTRIBUTING|CHANGELOG)[^)]*)\)", r"](\1)", markdown)


def _mathml(found: re.Match[str]) -> str:
    from latex2mathml.converter import convert

    text: str = convert(" ".join(found[1].split()), display="block")
    return f'<div class="equation">{text}</div>'


def _results(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((ROOT / "benchmarks/results" / name).read_text("utf-8"))
    return content


def _drawn(plot: Callable[[Any], None], size: tuple[float, float] = (7.5, 3.6)) -> bytes:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=size, layout="constrained")
    plot(axes)
    axes.spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, dpi=130)
    plt.close(figure)
    return file.getvalue()


def _bars(axes: Any, groups: list[str], series: dict[str, list[float | None]]) -> None:
    width = 0.8 / len(series)
    for number, (name, values) in enumerate(series.items()):
        at = [group + (number - (len(series) - 1) / 2) * width for group in range(len(groups))]
        heights = [0.0 if value is None else value for value in values]
        axes.bar(at, heights, width, label=name)
    axes.set_xticks(range(len(groups)), groups)
    axes.legend(frameon=False, fontsize=8)


def _training() -> bytes:
    cases = _results("training_cpu.json")["cases"]
    names = {"compat": "compat.edgeml", "trainer": "Trainer", "5 steps": "Trainer, 5 steps"}

    def plot(axes: Any) -> None:
        series = {
            title: [case["published_time_over_ours"].get(name) for case in cases.values()]
            for name, title in names.items()
        }
        _bars(axes, list(cases), series)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_ylabel("published time / ours")

    return _drawn(plot)


def _l2_shell() -> bytes:
    ratios = _results("l2_shell_cpu.json")["ratio_to_native"]
    names = ("eager", "eager, no temporary", "compiled eager", "published arithmetic")

    def plot(axes: Any) -> None:
        series = {name: [row[name] for row in ratios.values()] for name in names}
        _bars(axes, list(ratios), series)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_yscale("log")
        axes.set_ylabel("time / fused step's")

    return _drawn(plot)


def _memory() -> bytes:
    content = _results("search_memory.json")
    peaks = content["peak_search_by_steps"]

    def plot(axes: Any) -> None:
        axes.bar(list(peaks), [value / 2**20 for value in peaks.values()], 0.5, label="search")
        once = content["peak_forward_backward"] / 2**20
        axes.axhline(once, color="black", linewidth=0.8, label="one forward and backward")
        axes.set_xlabel("steps")
        axes.set_ylabel(f"peak, MiB ({content['model']})", fontsize=8)
        axes.legend(frameon=False, fontsize=8, loc="lower right")

    return _drawn(plot, (5.0, 2.8))


PLOTS = {"training": _training, "l2_shell": _l2_shell, "memory": _memory}
