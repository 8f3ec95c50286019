"""Reading tables for the command line. Every fault is a `ValueError` that begins with the file."""

from __future__ import annotations

import csv
import zipfile
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Table:
    """Rows of numbers, all finite.

    Attributes:
        values: Features, float64 `[N, D]`, N and D >= 1.
        names: The D column names of a CSV file with a header, else None.
        labels: The N labels as text where a label column was asked for, else None.
    """

    values: npt.NDArray[np.float64]
    names: list[str] | None
    labels: list[str] | None

    def select(self, path: str, names: list[str]) -> npt.NDArray[np.float64]:
        """Take columns by name, or all of them by position where the table has no names.

        Args:
            path: File to begin an error with.
            names: Columns to take, in this order; other columns are left out.

        Returns:
            float64 `[N, len(names)]`.

        Raises:
            ValueError: If a column is missing.
        """
        if self.names is None:
            if self.values.shape[1] != len(names):
                raise ValueError(
                    f"{path}: must have {len(names)} columns ({_listed(names)}), "
                    f"got {self.values.shape[1]}"
                )
            return self.values
        missing = [name for name in names if name not in self.names]
        if missing:
            raise ValueError(f"{path}: columns are missing: {_listed(missing)}")
        return self.values[:, [self.names.index(name) for name in names]]


def read_table(
    path: str, *, key: str | None = None, label: str | None = None, like: Table | None = None
) -> Table:
    """Read a table from a .csv, .npy or .npz file.

    CSV: UTF-8, separated by commas, semicolons or tabs. The first line is a header where none of
    its cells is a number.

    Args:
        path: The file.
        key: .npz only: the array of the features; by default "X", or the only array but the labels.
        label: Labels, not a feature. CSV: name or position of a column; .npy: position of a column;
            .npz: name of an array `[N]`. Positions count from 0, or from -1 backwards.
        like: Table that this one goes with, read with the same label: the label may then be absent
            here. A position stands for the label only where there is one column more than features.

    Returns:
        The table.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is not a table of finite numbers, or lacks the key or the label.
    """
    suffix = Path(path).suffix.lower()
    if key is not None and suffix != ".npz":
        raise ValueError(f"{path}: a key ({key!r}) can only be chosen in an .npz file")
    if suffix == ".csv":
        table = _read_csv(path, label, like)
    elif suffix == ".npy":
        table = _split(path, _load(path), label, like)
    elif suffix == ".npz":
        table = _read_npz(path, key, label, like)
    else:
        raise ValueError(f"{path}: the file's name must end in .csv, .npy or .npz")
    if 0 in table.values.shape:
        shape = table.values.shape
        raise ValueError(f"{path}: must hold at least one row and one feature, got shape {shape}")
    if not np.isfinite(table.values).all():
        row, column = np.argwhere(~np.isfinite(table.values))[0]
        name = column if table.names is None else repr(table.names[column])
        raise ValueError(
            f"{path}: values must be finite, got {table.values[row, column]} in row {row} of the "
            f"data, feature {name} (both counted from 0)"
        )
    return table


def same_label(label: str, wanted: str) -> bool:
    """Compare labels as numbers where both are, as text otherwise."""
    try:
        return float(label) == float(wanted)
    except ValueError:
        return label == wanted


def _read_csv(path: str, label: str | None, like: Table | None) -> Table:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=max(",;\t", key=first.count), strict=True)
            lines = ((reader.line_num, cells) for cells in reader if any(map(str.strip, cells)))
            return _parse_csv(path, lines, label, like)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a UTF-8 text file ({error.reason})") from error
    except csv.Error as error:
        raise ValueError(f"{path}: not a CSV file ({error})") from error


def _parse_csv(
    path: str, lines: Iterator[tuple[int, list[str]]], label: str | None, like: Table | None
) -> Table:
    number, cells = next(lines, (0, []))
    if not cells:
        raise ValueError(f"{path}: the file is empty")
    width, names = len(cells), None
    if not any(map(_is_number, cells)):
        names = [cell.strip() for cell in cells]
        if "" in names:
            raise ValueError(f"{path}: the header has no name for column {names.index('')}")
        if len(set(names)) < width:
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"{path}: the header has two columns named {twice!r}")
        number, cells = next(lines, (0, []))
    label_at = _label_position(path, label, width, names, like)
    if names is not None and label_at is not None:
        names = names[:label_at] + names[label_at + 1 :]
    values, labels = array("d"), []
    while cells:
        if len(cells) != width:
            raise ValueError(
                f"{path}: every line must have {width} cells, got {len(cells)} in line {number}"
            )
        if label_at is not None:
            labels.append(cells.pop(label_at).strip())
        try:
            values.extend(map(float, cells))
        except ValueError:
            bad = next(cell for cell in cells if not _is_number(cell))
            raise ValueError(f"{path}: {bad!r} in line {number} is not a number") from None
        number, cells = next(lines, (0, []))
    columns = width - (label_at is not None)
    rows = np.array(values).reshape(-1, columns) if columns else np.empty((len(labels), 0))
    return Table(rows, names, None if label_at is None else labels)


def _read_npz(path: str, key: str | None, label: str | None, like: Table | None) -> Table:
    arrays = _load(path)
    if not isinstance(arrays, dict):
        raise ValueError(f"{path}: not an .npz file")
    if like is not None and label not in arrays:
        label = None
    for name in (key, label):
        if name is not None and name not in arrays:
            raise ValueError(f"{path}: no array is named {name!r}, there are {_listed(arrays)}")
    if key is None:
        others = [name for name in arrays if name != label]
        if "X" not in others and len(others) != 1:
            raise ValueError(f"{path}: choose the key of the features, there are {_listed(others)}")
        key = "X" if "X" in others else others[0]
    table = _split(path, arrays[key], None, None)
    if label is None:
        return table
    labels = arrays[label].reshape(-1)
    if len(labels) != len(table.values):
        raise ValueError(
            f"{path}: {label!r} must hold one label for each of the {len(table.values)} rows, "
            f"got shape {arrays[label].shape}"
        )
    return Table(table.values, None, _as_text(labels))


def _split(path: str, values: Any, label: str | None, like: Table | None) -> Table:
    if not isinstance(values, np.ndarray):
        raise ValueError(f"{path}: not an .npy file")
    if values.ndim != 2 or values.dtype.kind not in "biuf":
        raise ValueError(
            f"{path}: features must be numbers of shape [N, D], got {values.dtype} of shape "
            f"{values.shape}"
        )
    labels = None
    at = _label_position(path, label, values.shape[1], None, like)
    if at is not None:
        labels = _as_text(values[:, at])
        values = np.delete(values, at, axis=1)
    return Table(values.astype(np.float64), None, labels)


def _load(path: str) -> Any:
    """Load an array, or a dict of the arrays of an archive."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = (str(error).splitlines() or ["it is empty"])[0]
        raise ValueError(f"{path}: not a readable numpy file ({reason})") from error


def _label_position(
    path: str, label: str | None, width: int, names: list[str] | None, like: Table | None
) -> int | None:
    if label is None:
        return None
    if like is None or (names is not None and label in names):
        return _position(path, label, width, names)
    if width != like.values.shape[1] + 1:
        return None
    if names is None:
        return _position(path, label, width, None)
    try:
        at = range(width)[int(label)]
    except (ValueError, IndexError):
        return None  # one column more, but another one
    return None if names[at] in (like.names or ()) else at


def _position(path: str, label: str, width: int, names: list[str] | None) -> int:
    if names is not None and label in names:
        return names.index(label)
    try:
        at = range(width)[int(label)]
    except (ValueError, IndexError):
        columns = f"columns 0 to {width - 1}" if names is None else _listed(names)
        raise ValueError(f"{path}: no label column {label!r}, there are {columns}") from None
    return at


def _as_text(labels: npt.NDArray[Any]) -> list[str]:
    if labels.dtype.kind == "b":
        labels = labels.astype(int)
    return [str(label) for label in labels.tolist()]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _listed(names: Any) -> str:
    names = [repr(name) for name in names]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more
