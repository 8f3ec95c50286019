"""What the benchmarks share: their arguments, and results as JSON that reads line by line."""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def compact_json(content: dict[str, Any]) -> str:
    """Lay out results as JSON with one line for each entry, or for each item of a table.

    Args:
        content: What JSON can hold, without NaN and infinity. A table is an entry whose items are
            all lists or dicts, as cells by their name are.

    Returns:
        The text, a line end last.

    Raises:
        ValueError: If a number is NaN or infinite.
    """
    content = json.loads(json.dumps(content, allow_nan=False))  # names that are numbers become text
    entries = (f"{json.dumps(name)}: {_laid_out(value)}" for name, value in content.items())
    return "{\n" + ",\n".join(entries) + "\n}\n"


def _laid_out(value: Any) -> str:
    rows = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(rows, list) or not rows or not all(isinstance(x, dict | list) for x in rows):
        return json.dumps(value)
    lines = [json.dumps(row) for row in rows]
    if isinstance(value, dict):
        lines = [f"{json.dumps(name)}: {line}" for name, line in zip(value, lines, strict=True)]
        return "{\n" + ",\n".join(lines) + "\n}"
    return "[\n" + ",\n".join(lines) + "\n]"


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write results to a file, whose directory is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(compact_json(content), encoding="utf-8")


def timing_arguments(description: str) -> argparse.Namespace:
    """Parse the command line of a benchmark of operators, and set the number of threads.

    Args:
        description: The benchmark's docstring.

    Returns:
        `out`, a directory, `repeats` and `threads`.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--repeats", type=int, default=41)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    return arguments


def peak_resident(function: Callable[[], object]) -> int:
    """Measure how far the process's memory grows while a function runs (on Linux).

    Args:
        function: Called once.

    Returns:
        Bytes of resident pages at the peak, less those before the call.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or memory that was freed before would serve unseen
    Path("/proc/self/clear_refs").write_text("5")  # the peak is the present size
    before = _status("VmRSS")
    function()
    return max(_status("VmHWM") - before, 0)


def _status(name: str) -> int:
    [line] = [
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)
    ]
    return int(line.split()[1]) * 1024
