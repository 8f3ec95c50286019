"""Reading text and Parquet by pandas."""

from __future__ import annotations

import bz2
import csv
import gzip
import importlib
import io
import itertools
import lzma
import os
import re
import stat
import sys
import warnings
import zlib
from collections.abc import Callable
from decimal import Decimal
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt

from drocc_ext.cli.columns import Columns, Parts

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_NO_NUMBER = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)
_SPACE = " \t\r\n"  # what pandas overlooks beside a number
_HINT = re.compile(r'"?sep=([,;\t|])"?[,;\t ]*', re.IGNORECASE)
_MOST_LINES = 10_000  # of a header, before a quote counts as one that is never closed
_MISSING = ("", "NA", "N/A", "#N/A", "NULL", "null", "None")
_NAN = ["nan", "NaN", "NAN", "-nan", "+nan"]
_OPENERS: dict[str, Callable[..., IO[bytes]]] = {
    ".gz": cast("Callable[..., IO[bytes]]", gzip.open),
    ".bz2": cast("Callable[..., IO[bytes]]", bz2.open),
    ".xz": cast("Callable[..., IO[bytes]]", lzma.open),
}
# How text is compressed, by the end of a file's name.
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def is_number(cell: str) -> bool:
    """Say whether a cell is a finite number in decimal digits.

    Args:
        cell: The cell.

    Returns:
        Whether it is.
    """
    return _NUMBER.fullmatch(cell.strip(_SPACE)) is not None


def read_text(path: str, columns: Columns, *, tabs: bool) -> Parts:
    """Read a table of cells separated by commas, semicolons or tabs.

    Args:
        path: The file, "-" for standard input.
        columns: Which columns.
        tabs: Whether it is separated by tabs, whatever its first line looks like.

    Returns:
        Features, names and labels.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is not such a table, or lacks a column, or pandas is missing.
    """
    pandas = _pandas(columns.path)
    source = _Source(path)
    try:
        with source.open() as file:
            separator, cells, before, first_line = _first_line(file, tabs)
        if not cells:
            raise ValueError(f"{columns.path}: the file is empty")
        header, index = _is_header(cells, named=columns.header or columns.are_in(cells))
        if not header and _counts(cells):
            warnings.warn(
                f"{columns.path}: the first line is read as a row, not as names: "
                f"{','.join(cells[:3])}, ...; a first line is names where no cell is a number, or "
                "with --header",
                stacklevel=2,
            )
        names = _header_names(columns.path, cells, index) if header else None
        features, label = columns.find(len(cells), names, index=index)
        if len(features) < len(cells):  # in a feature such a cell is no number
            with source.open() as file:
                _check_quotes(file, separator)
        with source.open() as file:
            skipped = before + (first_line if header else 0)
            for _ in range(skipped):
                file.readline()
            frame = _parse(pandas, columns.path, file, separator, len(cells), features, skipped)
    except UnicodeDecodeError as error:
        raise ValueError(f"{columns.path}: not a UTF-8 text file ({error.reason})") from error
    except csv.Error as error:
        raise ValueError(
            f"{columns.path}: not a CSV file ({error}; is a quote not closed?)"
        ) from error
    except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{columns.path}: not a readable compressed file ({error})") from error
    chosen = None if names is None else [names[at] for at in features]
    labels = None
    if label is not None:
        labels = frame[label].str.strip().to_numpy(dtype=object).astype(str)
    values = [
        _numbers(columns.path, frame[at], at if names is None else repr(names[at]))
        for at in features
    ]
    return _stack(values, len(frame)), chosen, labels


def read_parquet(path: str, columns: Columns) -> Parts:
    """Read a table from a Parquet file.

    Args:
        path: The file.
        columns: Which columns.

    Returns:
        Features, names and labels.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is not a table of numbers, or lacks a column, or a package is missing.
    """
    pandas = _pandas(path)
    with open(path, "rb") as file:
        try:
            # Types that can miss a value: integers beside a missing one stay integers.
            frame = pandas.read_parquet(io.BytesIO(file.read()), dtype_backend="numpy_nullable")
        except ImportError as error:
            raise _missing(path) from error
        except Exception as error:  # damaged bytes fail in any way
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"{path}: not a readable Parquet file ({reason})") from error
    names = [str(name) for name in frame.columns]
    _check_names(path, names)
    features, label = columns.find(len(names), names)
    values = [_numbers(path, frame.iloc[:, at], repr(names[at])) for at in features]
    labels = None if label is None else _labels(frame.iloc[:, label])
    return _stack(values, len(frame)), [names[at] for at in features], labels


class _Source:
    """A text file that can be opened twice: standard input and pipes are kept in memory."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.content: bytes | None = None
        if path == "-":
            if sys.stdin is None:
                raise ValueError("standard input is closed")
            self.content = sys.stdin.buffer.read()
        elif not stat.S_ISREG(os.stat(path).st_mode):
            with open(path, "rb") as file:
                self.content = file.read()

    def open(self) -> io.TextIOWrapper:
        raw: Any = self.path if self.content is None else io.BytesIO(self.content)
        opener = _OPENERS.get(os.path.splitext(self.path.lower())[1])
        if opener is not None:
            binary = opener(raw, "rb")
        else:
            binary = raw if self.content is not None else open(raw, "rb")  # noqa: SIM115
        return io.TextIOWrapper(binary, encoding="utf-8-sig", newline="")


def _first_line(file: io.TextIOWrapper, tabs: bool) -> tuple[str, list[str], int, int]:
    """Read the first line that is not blank: the separator, its cells, lines before it and its own.

    A line before it may name the separator, as spreadsheets write it: `sep=;`.
    """
    before, separator = 0, "\t" if tabs else None
    for line in file:
        hint = _HINT.fullmatch(line.rstrip("\r\n"))
        if hint is not None:
            separator = hint[1]
        elif line.strip():
            break
        before += 1
    else:
        return ",", [], before, 0
    first = [line]
    quotes = line.count('"')
    while quotes % 2 == 1 and len(first) < _MOST_LINES:  # a quoted name may have several lines
        more = file.readline()
        if not more:
            break
        first.append(more)
        quotes += more.count('"')
    unquoted = re.sub(r'"[^"]*"', "", line if quotes % 2 == 1 else "".join(first))
    separator = separator or max(",;\t", key=unquoted.count)
    lines = itertools.chain(first, file)
    reader = csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=True)
    cells = [cell.strip() for cell in next(reader)]
    return separator, cells, before, reader.line_num


def _is_header(cells: list[str], *, named: bool) -> tuple[bool, bool]:
    """Say whether the first line is a header, and whether its first column is an index."""
    index = len(cells) > 1 and cells[0] in ("", "Unnamed: 0")
    # pandas writes columns without names as 0, 1, 2, ... behind an index.
    if index and cells[1:] == [str(number) for number in range(len(cells) - 1)]:
        return True, True
    # A row of missing values would be lost as names.
    row = any(map(is_number, cells)) or all(map(_is_missing, cells))
    header = named or not row
    return header, header and index


def _is_missing(cell: str) -> bool:
    return cell in _MISSING or _NO_NUMBER.fullmatch(cell) is not None


def _counts(cells: list[str]) -> bool:
    """Say whether a line looks like names after all: 0, 1, 2, ... or years, or wavelengths."""
    if len(cells) < 3 or not all(map(is_number, cells)):
        return False
    numbers = np.array(cells, dtype=np.float64)
    steps = np.diff(numbers)
    if len(cells) == 3 or numbers[0] == 0:
        return bool((numbers == np.arange(len(cells))).all())
    far = abs(numbers[0]) >= 10 * abs(steps[0]) > 0  # 1, 2, 3, ... may be a row
    return far and np.allclose(steps, steps[0], rtol=1e-9, atol=0)


def _header_names(path: str, cells: list[str], index: bool) -> list[str]:
    if "" in cells[1 if index else 0 :]:
        raise ValueError(f"{path}: the header has no name for column {cells.index('', index)}")
    _check_names(path, cells)
    return cells


def _check_names(path: str, names: list[str]) -> None:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{path}: the header has two columns named {twice!r}")


def _check_quotes(file: io.TextIOWrapper, separator: str) -> None:
    """Refuse a quote that is never closed: all rows up to the next one would be its cell.

    pandas takes text behind a closing quote for a part of the cell, which is what gives it away.
    """
    if all(line.count('"') % 2 == 0 for line in file):  # no cell has several lines
        return
    file.seek(0)
    after = re.compile(f'" +(?={re.escape(separator)}|[\r\n]|$)')  # blanks there do no harm
    lines = (after.sub('"', line) if '" ' in line else line for line in file)
    former = csv.field_size_limit(2**31 - 1)  # a text may be long
    try:
        for _ in csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=True):
            pass
    finally:
        csv.field_size_limit(former)


def _parse(
    pandas: Any,
    path: str,
    file: io.TextIOBase,
    separator: str,
    width: int,
    features: list[int],
    skipped: int,
) -> Any:
    if width == 1:
        # An empty line is a row whose cell is missing, but at the end of the file.
        file = io.StringIO(file.read().rstrip(_SPACE))
    exact, chosen = {}, set(features)
    if tuple(map(int, pandas.__version__.split(".")[:2])) < (3, 1):
        exact = {"float_precision": "round_trip"}  # later the only one
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pandas.errors.ParserWarning)
            return pandas.read_csv(
                file,
                sep=separator,
                header=None,
                names=list(range(width)),
                index_col=False,
                # With usecols pandas would not notice lines that are too long.
                dtype={at: str for at in range(width) if at not in chosen},
                na_values={at: _NAN for at in features},
                keep_default_na=False,
                skipinitialspace=True,
                skip_blank_lines=width > 1,
                low_memory=False,
                **exact,
            )
    except pandas.errors.EmptyDataError:
        return pandas.DataFrame({at: pandas.Series(dtype=str) for at in range(width)})
    except pandas.errors.ParserWarning as error:  # of the first line
        raise ValueError(f"{path}: every line must have {width} cells, got more") from error
    except pandas.errors.ParserError as error:
        found = re.search(r"Expected \d+ fields in line (\d+), saw (\d+)", str(error))
        if found is not None:
            raise ValueError(
                f"{path}: every line must have {width} cells, got {found[2]} in line "
                f"{int(found[1]) + skipped}"
            ) from error
        reason = (str(error).splitlines() or [""])[0].removeprefix("Error tokenizing data. ")
        raise ValueError(f"{path}: not a CSV file ({reason})") from error


def _labels(column: Any) -> npt.NDArray[Any]:
    """Keep numbers as they are where none is missing, else text; a missing label is empty."""
    missing = column.isna()
    if not missing.any() and all(type(cell) is Decimal for cell in column):
        return column.to_numpy(dtype=object)  # type: ignore[no-any-return]
    if column.dtype.kind in "biuf" and not missing.any():
        kept: npt.NDArray[Any] = column.to_numpy(
            dtype=getattr(column.dtype, "numpy_dtype", column.dtype)
        )
        return kept
    cells = [
        "" if absent else cell.decode(errors="replace") if type(cell) is bytes else str(cell)
        for cell, absent in zip(column.tolist(), missing, strict=True)
    ]
    return np.asarray(cells, dtype=str)


def _numbers(path: str, column: Any, name: object) -> npt.NDArray[np.float64]:
    """Bring a column to float64; text in it is refused, true and false are 1 and 0."""
    if column.dtype.kind in "biuf":
        missing = {"na_value": np.nan} if column.hasnans else {}
        numbers: npt.NDArray[np.float64] = column.to_numpy(dtype=np.float64, **missing)
        return numbers
    cells = column.tolist()
    kinds = {type(cell) for cell in cells}
    if Decimal in kinds and kinds <= {Decimal, type(None)}:  # a Parquet type of its own
        return np.asarray([np.nan if cell is None else float(cell) for cell in cells])
    if kinds <= {int, float}:  # integers beyond 64 bits
        try:
            return np.asarray(cells, dtype=np.float64)
        except OverflowError:
            return np.asarray([float(str(cell)) for cell in cells])
    bad = next((row for row, cell in enumerate(cells) if not _is_float(str(cell))), None)
    if bad is None:  # numbers after all, such as "nan " or integers that no one type holds
        return np.asarray([float(str(cell)) for cell in cells])
    raise ValueError(
        f"{path}: {str(cells[bad])[:40]!r} in row {bad} of the data, column {name} (both counted "
        "from 0) is not a number; columns that are no features can be excluded"
    )


def _is_float(cell: str) -> bool:
    return is_number(cell) or _NO_NUMBER.fullmatch(cell.strip(_SPACE)) is not None


def _stack(values: list[npt.NDArray[np.float64]], rows: int) -> npt.NDArray[np.float64]:
    return np.column_stack(values) if values else np.empty((rows, 0))


def _pandas(path: str) -> Any:
    try:
        return importlib.import_module("pandas")
    except ImportError as error:
        raise _missing(path) from error


def _missing(path: str) -> ValueError:
    return ValueError(
        f"{path}: reading this kind of file needs the packages of drocc-ext[cli]; .npy and .npz "
        "files need none"
    )
