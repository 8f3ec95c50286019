"""The pages, written anew from the files of results; their prose stands in `text/`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.paper.experiment import Experiment
from benchmarks.paper.store import read
from drocc_ext._files import atomic_write
from drocc_ext.demo.reporting import paragraph

_TEXT = Path(__file__).parent / "text"
# Blocks that stay as they are: headings, tables, lists, pictures and commands.
_AS_THEY_ARE = ("#", "|", "- ", "![", "`python -m")


def filled(template: str, **values: Any) -> str:
    """Fill a template and break its paragraphs into lines.

    Args:
        template: Name of a Markdown file of `text/`, with fields as `str.format` has them. A
            paragraph whose fields are all empty, and which has no other text, is left out.
        values: Value of each field; a table is a value too.

    Returns:
        Markdown.
    """
    text = (_TEXT / f"{template}.md").read_text(encoding="utf-8").format_map(values)
    blocks = (block.strip("\n") for block in text.split("\n\n"))
    return "\n\n".join(_wrapped(block) for block in blocks if block.strip())


def _wrapped(block: str) -> str:
    return block if block.startswith(_AS_THEY_ARE) else paragraph(" ".join(block.split()))


def write(out: Path, experiments: Iterable[Experiment]) -> list[Path]:
    """Write every page from the results that are there.

    Args:
        out: Directory of the pages; the results are in `results` under it.
        experiments: The experiments, in the order of their sections.

    Returns:
        The pages that have a section.

    Raises:
        ValueError: If a file of results is damaged.
    """
    # Here, because the summary reads experiments too.
    from benchmarks.summary import accuracy

    sections: dict[str, list[str]] = {}
    titles: dict[str, list[str]] = {}
    for experiment in experiments:
        path = out / "results" / f"{experiment.name}.json"
        content = read(path) if path.is_file() else {}
        if "environment" in content:  # which is noted when all cells are there
            sections.setdefault(experiment.page, []).extend(_section(experiment, content))
            titles.setdefault(experiment.page, []).append(experiment.title)
    for name, parts in sections.items():
        contents = "\n".join(f"- [{title}](#{anchor(title)})" for title in titles[name])
        values = {"summary": accuracy(out / "results"), "contents": contents}
        first = filled(name.removesuffix(".md"), **values)
        text = "\n\n".join([first, *filter(None, parts)]) + "\n"
        atomic_write(out / name, lambda file, text=text: file.write(text.encode()))
    return [out / name for name in sections]


def anchor(title: str) -> str:
    """Give the name of a heading in links, as hosts of Markdown make it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _section(experiment: Experiment, content: dict[str, Any]) -> list[str]:
    pictures = content.get("pictures", [])
    return [
        f"## {experiment.title}",
        _command(experiment, content),
        experiment.section(content),
        *(f"![{picture}](results/{picture})" for picture in pictures),
        _measured_on(content) if content["cells"] else "",
    ]


def _command(experiment: Experiment, content: dict[str, Any]) -> str:
    data = " --data-dir DIR" if experiment.needs_data else ""
    quick = " --quick" if content["settings"].get("quick") else ""
    seeds = "" if quick or experiment.seeds else f" --seeds {len(content['seeds'])}"
    start = experiment.command or f"python -m benchmarks.paper {experiment.name}"
    command = f"`{start}{data}{seeds}{quick}`"
    if not experiment.revision:
        return command
    return paragraph(
        f"Measured at revision {experiment.revision} by {command}. The code stands there; here "
        "its results are kept."
    )


def _measured_on(content: dict[str, Any]) -> str:
    environment, cells = content["environment"], content["cells"].values()
    cpu, wall = (
        sum(cell.get(f"{clock}_seconds", 0.0) for cell in cells) / 60 for clock in ("cpu", "wall")
    )
    times = (
        f", {cpu:.1f} minutes of processor time in all ({wall:.1f} minutes on the clock, one after "
        "the other, of a machine that other programs shared)"
    )
    device = environment["gpu"] or environment["processor"]
    return paragraph(
        f"{len(cells)} cells{times if wall else ''}; torch {environment['torch']}, one thread a "
        f"cell, {device}."
    )
