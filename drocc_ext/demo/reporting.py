"""Tables as Markdown, and what the numbers were measured on."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np

import drocc_ext
from drocc_ext.demo import interleaved


def paragraph(text: str) -> str:
    """Break a text into lines of at most 100 characters."""
    return textwrap.fill(text, 100)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table that reads well both as text and as Markdown.

    Args:
        header: Names of the columns.
        rows: Cells, one sequence per row, each as long as the header.

    Returns:
        The lines, joined; the first column left-aligned, the others right-aligned.
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = [
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join([first, *others])} |"

    rule = f"|{'-' * (widths[0] + 2)}|{''.join('-' * (width + 1) + ':|' for width in widths[1:])}"
    return "\n".join([line(header), rule, *map(line, rows)])


def mean_and_deviation(values: Sequence[float], digits: int) -> str:
    """Write values as "mean +- sample standard deviation", one value without a deviation."""
    text = f"{np.mean(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} +- {np.std(values, ddof=1):.{digits}f}"


def environment() -> dict[str, Any]:
    """Describe machine and versions.

    Returns:
        A flat dict that JSON can hold.
    """
    return {
        **interleaved.environment(),
        "numpy": np.__version__,
        "scikit-learn": metadata.version("scikit-learn"),
        "native_cpu": drocc_ext.build_info()["native_cpu"],
    }
