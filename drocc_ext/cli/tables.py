"""Tables for the command line. Every fault is a `ValueError` or `OSError` that names the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from drocc_ext.cli.arrays import read_npy, read_npz
from drocc_ext.cli.columns import Columns
from drocc_ext.cli.lines import is_number
from drocc_ext.cli.text import read_parquet, read_text

STDIN = "-"
_TEXT = (".csv", ".tsv")
_COMPRESSED = (".gz", ".bz2", ".xz")


@dataclass(frozen=True)
class Labels:
    """One label per row.

    Attributes:
        values: Text as it is written in the file, or numbers or booleans, `[N]`.
    """

    values: npt.NDArray[Any]

    def equal(self, wanted: str) -> npt.NDArray[np.bool_]:
        """Compare with a label: text as it is written, numbers by their exact value.

        Args:
            wanted: The label.

        Returns:
            bool `[N]`.
        """
        different, positions = np.unique(self.values, return_inverse=True)
        same = [_is_same(label, wanted) for label in different.tolist()]
        if different.dtype.kind == "f":  # 0.1 is what is written for the float next to it
            written = [_is_same(Decimal(str(label)), wanted) for label in different]
            same = [one or other for one, other in zip(same, written, strict=True)]
        return np.asarray(same, dtype=bool)[positions.reshape(-1)]

    def listed(self) -> str:
        """Name the first labels that there are.

        Returns:
            Their names, separated by commas.
        """
        found = np.unique(self.values)[:8]
        return ", ".join(repr(str(one)) if isinstance(one, str) else str(one) for one in found)

    def written_otherwise(self, wanted: str) -> str | None:
        """Look for text that is a label's number written in another way, such as 1.0 for 1.

        Args:
            wanted: The label.

        Returns:
            The first such text, or None.
        """
        if self.values.dtype.kind != "U" or not is_number(wanted):
            return None
        for label in np.unique(self.values).tolist():
            if label != wanted and is_number(label) and _is_same(Decimal(label), wanted):
                return str(label)
        return None


@dataclass(frozen=True)
class Table:
    """Rows of numbers, all finite.

    Attributes:
        values: Features, `[N, D]`, N and D >= 1: float64, of an array of numpy's its own type.
        names: The D column names of a file that has them, else None.
        labels: The N labels where a label column was asked for, else None.
        kinds: Names of the columns' types where they may differ, else None.
        called: Names of the columns that were asked for by their positions.
    """

    values: npt.NDArray[Any]
    names: list[str] | None
    labels: Labels | None
    kinds: list[str] | None = None
    called: dict[str, str] = field(default_factory=dict)


def read_table(
    path: str,
    *,
    key: str | None = None,
    label: str | None = None,
    exclude: Sequence[str] = (),
    select: list[str] | None = None,
    like: Table | None = None,
    header: bool = False,
) -> Table:
    """Read a table from a .csv, .tsv, .parquet, .npy or .npz file.

    Text is UTF-8; a .csv is separated by commas, semicolons or tabs, and may be compressed
    (.csv.gz). Its first line is a header where none of its cells is a number, unless all are
    missing, such as nan, or where it names all of `select`, the label or what is excluded. A first
    column without a name, as pandas writes an index, is left out; so is a line `sep=;` above all.

    Args:
        path: The file, or "-" for text from standard input.
        key: .npz only: the array of the features; by default "X", or the only array but the labels.
        label: Labels, not a feature: name or position of a column; .npz: name of an array `[N]`.
            Positions count from 0, or from -1 backwards.
        exclude: Names or positions of other columns that are no features.
        select: Names of the features, in the order wanted: other columns are not looked at. A file
            without names must have as many columns.
        like: Table that this one goes with, read with the same label and exclude: they may then be
            absent here. A position stands for what has its name there, where both have names; else
            for the label only where there is one column more than features.
        header: Text only: the first line holds names, even if they are numbers.

    Returns:
        The table.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is not a table of finite numbers, or lacks the key, the label or a column.
    """
    name = Path(path).name.lower()
    stem, suffix = Path(name).stem, Path(name).suffix
    if key is not None and suffix != ".npz":
        raise ValueError(f"{path}: a key ({key!r}) can only be chosen in an .npz file")
    kinds: list[str] | None = None
    columns = Columns(
        "standard input" if path == STDIN else path,
        label,
        tuple(exclude),
        select,
        None if like is None else like.values.shape[1],
        lenient=like is not None or select is not None,
        header=header,
        called={} if like is None else like.called,
    )
    if suffix == ".npy":
        values, names, labels = read_npy(path, columns)
    elif suffix == ".npz":
        values, names, labels = read_npz(path, columns, key)
    elif suffix == ".parquet":
        (values, names, labels), kinds = read_parquet(path, columns)
    elif path == STDIN or suffix in _TEXT or (suffix in _COMPRESSED and stem.endswith(_TEXT)):
        tabs = (Path(stem).suffix if suffix in _COMPRESSED else suffix) == ".tsv"
        values, names, labels = read_text(path, columns, tabs=tabs)
    else:
        raise ValueError(
            f"{path}: the file's name must end in .csv, .tsv (or those with .gz), .parquet, .npy "
            "or .npz"
        )
    if 0 in values.shape:
        shape = values.shape
        raise ValueError(
            f"{columns.path}: must hold at least one row and one feature, got shape {shape}"
        )
    if not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0]
        called = column if names is None else repr(names[column])
        raise ValueError(
            f"{columns.path}: values must be finite, got {values[row, column]} in row {row} of the "
            f"data, feature {called} (both counted from 0)"
        )
    if labels is not None:
        missing = np.isnan(labels) if labels.dtype.kind == "f" else labels == ""
        if np.any(missing):
            row = int(np.flatnonzero(missing)[0])
            raise ValueError(f"{columns.path}: row {row} of the data (from 0) has no label")
    return Table(values, names, None if labels is None else Labels(labels), kinds, columns.called)


def _is_same(label: str | bool | int | float | Decimal, wanted: str) -> bool:
    if isinstance(label, str):
        return label == wanted
    if isinstance(label, bool) and wanted.lower() in ("true", "false"):
        return label == (wanted.lower() == "true")
    # Decimals compare exactly with integers and floats: 2**53 and 2**53 + 1 are two labels.
    try:
        return is_number(wanted) and label == Decimal(wanted)
    except InvalidOperation:  # an exponent of many digits
        return False
