"""Scores of rows that do not fit in memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from drocc_ext._files import atomic_write
from drocc_ext.streams.blocks import Array, Blocks, check_blocks

_OTHER_FORMATS = (".csv", ".tsv", ".txt", ".json", ".parquet", ".npz", ".gz", ".bz2", ".xz", ".zip")


def score_to_file(
    score: Callable[[Array], Array], blocks: Blocks, path: str | os.PathLike[str]
) -> int:
    """Score all rows, block by block, into an .npy file `[N]` of float64, whole or not at all.

    Args:
        score: Maps rows `[n, *]` to scores `[n]`, such as `DROCC.decision_function`.
        blocks: The rows, scored in their order.
        path: File to write, .npy.

    Returns:
        The number of rows N.

    Raises:
        TypeError: If blocks are none.
        OSError: If the file cannot be written; a former one then stays.
        ValueError: If score does not give one number per row, or path is where the rows are or
            names another format.
    """
    check_blocks("score_to_file", blocks)
    if os.fspath(path).lower().endswith(_OTHER_FORMATS):
        raise ValueError(f"score_to_file: path must name an .npy file, got {os.fspath(path)}")
    count = 0

    def write(file: Any) -> None:
        nonlocal count
        file.write(_header(0))
        for number in range(len(blocks)):
            x, _ = blocks.read(number)
            if len(x) == 0:  # a part of a data set may be empty, and few detectors score no rows
                continue
            scores = np.asarray(score(x), dtype="<f8")
            if scores.shape != (len(x),):
                raise ValueError(
                    f"score_to_file: score must give one number per row, got shape {scores.shape} "
                    f"for {len(x)} rows"
                )
            file.write(scores.tobytes())
            count += len(x)
        file.seek(0)
        file.write(_header(count))

    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"score_to_file: path must name a regular file, got {os.fspath(path)}")
    for source in getattr(blocks, "paths", ()):
        with suppress(OSError):
            if os.path.samefile(source, path):
                raise ValueError(
                    f"score_to_file: path must be another file than the rows', got "
                    f"{os.fspath(path)}"
                )
    atomic_write(path, write)
    return count


def _header(count: int) -> bytes:
    """An .npy header of 128 bytes for so many float64; written again once they are counted."""
    text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({count},), }}"
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + text.ljust(117).encode() + b"\n"
