"""Reading text and Parquet by pandas."""

from __future__ import annotations

import bz2
import csv
import gzip
import importlib
import io
import lzma
import os
import re
import stat
import sys
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt

from drocc_ext.cli.columns import Columns, Parts
from drocc_ext.cli.lines import (
    NO_NUMBER,
    SPACE,
    check_lines,
    counts,
    first_line_of,
    is_header,
    is_number,
)
from drocc_ext.estimators.inputs import digits_of
from drocc_ext.estimators.usual_values import HALF, SINGLE

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
            separator, cells, before, first_line = first_line_of(file, tabs)
        if not cells:
            raise ValueError(f"{columns.path}: the file is empty")
        header, index = is_header(cells, named=columns.header or columns.are_in(cells))
        names = cells if header else None
        features, label = columns.find(len(cells), names, index=index)
        if names is not None:
            _check_names(columns.path, names, features, label)
        elif counts([cells[at] for at in features]):
            warnings.warn(
                f"{columns.path}: the first line is read as a row, not as names: "
                f"{','.join(cells[:3])}, ...; a first line is names where no cell is a number, or "
                "with --header",
                stacklevel=2,
            )
        skipped = before + (first_line if header else 0)
        if len(features) < len(cells):
            with source.open() as file:
                check_lines(columns.path, file, separator, len(cells), skipped)
        with source.open() as file:
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


def read_parquet(path: str, columns: Columns) -> tuple[Parts, list[str]]:
    """Read a table from a Parquet file.

    Args:
        path: The file.
        columns: Which columns.

    Returns:
        Features, names and labels; and numpy's name of the type of each feature.

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
    features, label = columns.find(len(names), names)
    _check_names(path, names, features, label)
    values = [_numbers(path, frame.iloc[:, at], repr(names[at])) for at in features]
    labels = None if label is None else _labels(frame.iloc[:, label])
    chosen = [names[at] for at in features]
    short = {HALF: "float16", SINGLE: "float32"}
    kinds = [short.get(digits, "float64") for digits in digits_of(frame.iloc[:, features]).tolist()]
    return (_stack(values, len(frame)), chosen, labels), kinds


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


def _check_names(path: str, names: list[str], features: list[int], label: int | None) -> None:
    """Refuse names that do not tell the columns in use; what is left out may have any."""
    counted = Counter(names)
    for at in [*features, *([] if label is None else [label])]:
        if names[at] == "":
            raise ValueError(
                f"{path}: the header has no name for column {at}; columns that are no features can "
                "be excluded"
            )
        if counted[names[at]] > 1:
            raise ValueError(f"{path}: the header has two columns named {names[at]!r}")


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
        file = io.StringIO(file.read().rstrip(SPACE))
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
    return is_number(cell) or NO_NUMBER.fullmatch(cell.strip(SPACE)) is not None


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
