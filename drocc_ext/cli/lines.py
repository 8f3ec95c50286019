"""The lines of a text table before its cells are read: separator, names, cells in each."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
NO_NUMBER = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)
SPACE = " \t\r\n"  # what pandas overlooks beside a number
_HINT = re.compile(r'"?sep=([,;\t|])"?[,;\t ]*', re.IGNORECASE)
_MOST_LINES = 10_000  # of a header, before a quote counts as one that is never closed
_MISSING = ("", "NA", "N/A", "#N/A", "NULL", "null", "None")


def is_number(cell: str) -> bool:
    """Say whether a cell is a finite number in decimal digits.

    Args:
        cell: The cell.

    Returns:
        Whether it is.
    """
    return _NUMBER.fullmatch(cell.strip(SPACE)) is not None


def first_line_of(file: io.TextIOWrapper, tabs: bool) -> tuple[str, list[str], int, int]:
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
    unquoted = _unquoted(line if quotes % 2 == 1 else "".join(first))
    if separator is None:
        there = [one for one in ",;\t" if one in unquoted] or [","]
        if len(there) > 1:  # some belong to names: the next line does not have these
            first.append(next((line for line in file if line.strip()), ""))
            following = _unquoted(first[-1])
            same = [one for one in there if following.count(one) == unquoted.count(one)]
            there = same or there
        separator = max(there, key=unquoted.count)
    lines = _without_blanks(itertools.chain(first, file), separator)
    reader = csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=True)
    with _long_cells():
        cells = [cell.strip() for cell in next(reader)]
    return separator, cells, before, reader.line_num


def _unquoted(line: str) -> str:
    return re.sub(r'"[^"]*"', "", line)


def is_header(cells: list[str], *, named: bool) -> tuple[bool, bool]:
    """Say whether the first line is a header, and whether its first column is an index."""
    index = len(cells) > 1 and cells[0] in ("", "Unnamed: 0")
    # pandas writes names such as 0, 1, 2, ... or years behind an index that has none.
    if index and (
        cells[1:] == [str(number) for number in range(len(cells) - 1)] or counts(cells[1:])
    ):
        return True, True
    # A row of missing values would be lost as names.
    row = any(map(is_number, cells)) or all(map(_is_missing, cells))
    header = named or not row
    return header, header and index


def _is_missing(cell: str) -> bool:
    return cell in _MISSING or NO_NUMBER.fullmatch(cell) is not None


def counts(cells: list[str]) -> bool:
    """Say whether a line looks like names after all: 0, 1, 2, ... or years, or wavelengths."""
    if len(cells) < 3 or not all(map(is_number, cells)):
        return False
    numbers = np.array(cells, dtype=np.float64)
    steps = np.diff(numbers)
    if numbers[0] == 0:
        return bool((numbers == np.arange(len(cells))).all())
    far = abs(numbers[0]) >= 10 * abs(steps[0]) > 0  # 1, 2, 3, ... may be a row
    return far and np.allclose(steps, steps[0], rtol=1e-9, atol=0)


def check_lines(
    path: str, file: io.TextIOWrapper, separator: str, width: int, skipped: int
) -> None:
    """Refuse lines that have too few cells, and a quote that is never closed.

    pandas would fill up the former, with a wrong number where a cell in the middle is lost, and
    take the lines up to the next quote for one cell, with the text behind it. Where all columns are
    features it need not be asked: such cells are no numbers.

    Args:
        path: To begin an error with.
        file: The text, at its beginning.
        separator: Of the cells.
        width: Cells of a line.
        skipped: Lines before the first row.

    Raises:
        ValueError: If there is such a line.
        csv.Error: If there is such a quote.
    """
    for number, line in enumerate(file, 1):
        quotes = line.count('"')
        if quotes % 2 == 1:
            break  # a cell of several lines
        cells = line.count(separator) + 1
        if quotes > 0 and not (
            quotes == 2 * width and line.count(f'"{separator}"') == width - 1  # all are quoted
        ):
            with _long_cells():
                cells = len(next(csv.reader([line], delimiter=separator, skipinitialspace=True)))
        if cells < width and number > skipped and line.strip():
            raise _too_short(path, width, cells, number)
    else:
        return
    file.seek(0)
    lines = _without_blanks(file, separator)
    with _long_cells():
        reader = csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=True)
        for row in reader:
            if len(row) < width and reader.line_num > skipped and any(map(str.strip, row)):
                raise _too_short(path, width, len(row), reader.line_num)


def _without_blanks(lines: Iterable[str], separator: str) -> Iterator[str]:
    """Leave out blanks behind a closing quote, which do no harm."""
    after = re.compile(f'" +(?={re.escape(separator)}|[\r\n]|$)')
    return (after.sub('"', line) if '" ' in line else line for line in lines)


@contextmanager
def _long_cells() -> Iterator[None]:
    """Read texts of any length, which are seldom features."""
    former = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(former)


def _too_short(path: str, width: int, cells: int, number: int) -> ValueError:
    return ValueError(f"{path}: every line must have {width} cells, got {cells} in line {number}")
