"""Files of rows, read one block at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from drocc_ext._checks import as_int, describe

Array = npt.NDArray[Any]
_BLOCK_BYTES = 2**24


class Blocks(Protocol):
    """Rows in blocks, each of which fits in memory."""

    def __len__(self) -> int:
        """Count blocks."""

    def read(self, number: int) -> tuple[Array, Array | None]:
        """Read one block.

        Args:
            number: Which, from 0.

        Returns:
            Rows `[n, *]`, and labels `[n]` or None.
        """


class NpyBlocks:
    """The rows of an .npy file, memory-mapped one block at a time.

    A block's pages are given back with it, so that memory does not grow with the file.

    Args:
        path: The file: an array `[N, *]` of numbers, in C order.
        block_rows: Rows per block; None for about 16 MiB.

    Attributes:
        shape: The array's.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is no such array.
    """

    def __init__(self, path: str | os.PathLike[str], block_rows: int | None = None) -> None:
        """Read the header."""
        self.path: Path = Path(path).absolute()
        self.paths: tuple[Path, ...] = (self.path,)
        try:
            whole = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{self.path}: not a readable numpy file ({error})") from error
        if not isinstance(whole, np.ndarray):
            whole.close()
            raise ValueError(f"{self.path}: must be one array (.npy), got an archive of arrays")
        if not isinstance(whole, np.memmap) or whole.ndim < 2 or whole.dtype.kind not in "biuf":
            raise ValueError(
                f"{self.path}: rows must be numbers of shape [N, *], got {whole.dtype} of shape "
                f"{whole.shape}"
            )
        if 0 in whole.shape[1:]:
            raise ValueError(f"{self.path}: rows must have at least one value, got {whole.shape}")
        if not whole.flags.c_contiguous:
            raise ValueError(
                f"{self.path}: rows must lie one after the other (C order), as "
                "numpy.ascontiguousarray makes them before a save"
            )
        self._stamp = _stamp(self.path)
        self.shape: tuple[int, ...] = whole.shape
        self._dtype, self._offset = whole.dtype, whole.offset
        self._row_bytes = max(1, whole[:1].nbytes) if len(whole) else 1
        self.block_rows: int = _rows_per_block("NpyBlocks", block_rows, self._row_bytes)

    def __len__(self) -> int:
        """Count blocks."""
        count: int = -(-self.shape[0] // self.block_rows)
        return count

    def read(self, number: int) -> tuple[Array, None]:
        """Read one block.

        Args:
            number: Which, from 0.

        Returns:
            Rows `[n, *]`, and no labels.
        """
        _check_number(str(self.path), number, len(self))
        _check_unchanged(self.path, self._stamp)
        start = number * self.block_rows
        count = min(self.block_rows, self.shape[0] - start)
        # A mapping of its own: the pages of one over the whole file would stay.
        offset = self._offset + start * self._row_bytes
        block: Array = np.memmap(self.path, self._dtype, "r", offset, (count, *self.shape[1:]))
        return np.array(block), None


class ParquetBlocks:
    """The rows of a Parquet file or of several, one row group at a time; needs pyarrow.

    Args:
        paths: The file or files, of the same columns.
        columns: The features, in this order; None: all but the label and the index of pandas.
        label: The column of labels, 1 = normal and 0 = negative; None for no labels.

    Attributes:
        columns: The features.

    Raises:
        ImportError: If pyarrow is not there.
        OSError: If a file cannot be read.
        TypeError: If columns are no names.
        ValueError: If it is no Parquet file or lacks a column, or if a column is named twice.
    """

    def __init__(
        self,
        paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        columns: list[str] | None = None,
        label: str | None = None,
    ) -> None:
        """Read the footers."""
        try:
            import pyarrow.parquet as parquet
        except ImportError as error:
            raise ImportError(f"ParquetBlocks needs the package pyarrow: {error}") from error
        several = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
        self.paths: tuple[Path, ...] = tuple(Path(path).absolute() for path in several)
        self._groups: list[tuple[Path, int]] = []
        self._stamps: dict[Path, tuple[int, int, int]] = {}
        self.columns: list[str] = [] if columns is None else _checked_columns(columns, label)
        self.label = label
        for path in self.paths:
            self._stamps[path] = _stamp(path)
            try:
                with parquet.ParquetFile(path) as file:
                    names, groups = file.schema_arrow.names, file.num_row_groups
                    index = _index_of(file.schema_arrow)
            except OSError:
                raise
            except Exception as error:  # damaged bytes fail in any way
                reason = str(error).partition("\n")[0]
                raise ValueError(f"{path}: not a readable Parquet file ({reason})") from error
            if not self.columns:
                found = [name for name in names if name != label and name not in index]
                self.columns = _checked_columns(found, label)
            wanted = [*self.columns, *([] if label is None else [label])]
            for name in wanted:
                if names.count(name) > 1:
                    raise ValueError(f"{path}: must have one column {name!r}, got several")
                if name not in names:
                    raise ValueError(f"{path}: must have a column {name!r}, got {', '.join(names)}")
            self._groups += [(path, group) for group in range(groups)]
        if not self._groups:
            raise ValueError("ParquetBlocks: paths must name at least one row group, got none")

    def __len__(self) -> int:
        """Count blocks."""
        return len(self._groups)

    def read(self, number: int) -> tuple[Array, Array | None]:
        """Read one row group.

        Args:
            number: Which, from 0.

        Returns:
            Rows `[n, D]`, and labels `[n]` or None.

        Raises:
            ValueError: If a column holds no numbers, or the file has changed.
        """
        import pyarrow.parquet as parquet
        from pyarrow.types import is_decimal

        _check_number("ParquetBlocks", number, len(self))
        path, group = self._groups[number]
        _check_unchanged(path, self._stamps[path])
        wanted = [*self.columns, *([] if self.label is None else [self.label])]
        with parquet.ParquetFile(path) as file:
            table = file.read_row_group(group, columns=wanted)
        parts = []
        for name in wanted:
            column = table.column(name)
            part = column.to_numpy()
            if is_decimal(column.type):
                part = np.asarray([np.nan if cell is None else float(cell) for cell in part])
            if part.dtype.kind not in "biuf":
                raise ValueError(f"{path}: column {name!r} must hold numbers, got {part.dtype}")
            parts.append(part)
        labels = None if self.label is None else parts.pop()
        return np.stack(parts, axis=1), labels


def _checked_columns(columns: Iterable[str], label: str | None) -> list[str]:
    names = [columns] if isinstance(columns, str) else list(columns)
    if isinstance(columns, str) or not names or not all(isinstance(name, str) for name in names):
        raise TypeError(f"ParquetBlocks: columns must be a list of names, got {columns!r}")
    for name in names:
        if name == label:
            raise ValueError(f"ParquetBlocks: columns must not hold the label, got {name!r}")
        if names.count(name) > 1:
            raise ValueError(f"ParquetBlocks: columns must differ, got {name!r} twice")
    return names


def _stamp(path: Path) -> tuple[int, int, int]:
    found = os.stat(path)
    return found.st_ino, found.st_size, found.st_mtime_ns


def _check_unchanged(path: Path, stamp: tuple[int, int, int]) -> None:
    if _stamp(path) != stamp:
        raise ValueError(f"{path}: the file has changed since it was opened")


def _check_number(caller: str, number: int, count: int) -> None:
    if not 0 <= number < count:
        raise ValueError(f"{caller}: number must be from 0 to {count - 1}, got {number}")


def _rows_per_block(caller: str, wanted: int | None, row_bytes: int) -> int:
    if wanted is None:
        return max(1, _BLOCK_BYTES // row_bytes)
    return as_int(caller, "block_rows", wanted, 1)


def _index_of(schema: Any) -> set[str]:
    """Name the columns that pandas keeps an index in: row numbers or names, no features."""
    try:
        known = json.loads((schema.metadata or {}).get(b"pandas", b"{}"))
        return {name for name in known.get("index_columns", []) if isinstance(name, str)}
    except (ValueError, AttributeError, TypeError):
        return set()


def check_blocks(caller: str, blocks: object) -> None:
    """Refuse what are no blocks, such as a path or an array.

    Raises:
        TypeError: If it cannot be read block by block.
    """
    if not (hasattr(blocks, "read") and hasattr(blocks, "__len__")):
        raise TypeError(
            f"{caller}: blocks must have read(number) and a length, such as NpyBlocks(path), got "
            f"{describe(blocks)}"
        )
