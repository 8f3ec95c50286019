"""Which columns of a file are features, and which one holds the labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy.typing as npt

# Features [N, D] in the file's type, their names if they have any, labels [N] if there are any.
Parts: TypeAlias = "tuple[npt.NDArray[Any], list[str] | None, npt.NDArray[Any] | None]"


@dataclass(frozen=True)
class Columns:
    """What was asked for, before the file is known.

    Attributes:
        path: The file, to begin an error with.
        label: Name or position of the labels, or None.
        exclude: Names or positions of what is left out; a name must be none of `select`.
        select: Names of the features in the order wanted, None for all.
        like: Features of the table that this one goes with, None for a table by itself.
        lenient: Whether what is excluded may be absent.
        header: Whether the first line of text holds names, whatever they look like.
        called: Names of the columns that were asked for by their positions: in the table that this
            one goes with, else as `find` sees them.
    """

    path: str
    label: str | None
    exclude: tuple[str, ...]
    select: list[str] | None
    like: int | None
    lenient: bool
    header: bool = False
    called: dict[str, str] = field(default_factory=dict)

    def find(
        self, width: int, names: list[str] | None, *, index: bool = False
    ) -> tuple[list[int], int | None]:
        """Find the columns in a file.

        Args:
            width: Columns of the file.
            names: Their names, if there are any.
            index: Whether the first column is an index, which is left out.

        Returns:
            Positions of the features, in the order wanted, and of the label, if there is one.

        Raises:
            ValueError: If one is missing.
        """
        left = set(range(width)) - ({0} if index else set())
        for column in self.exclude:
            at = self._at(column, width, names)
            if at is not None:
                left.discard(at)
            elif not self.lenient:
                raise ValueError(
                    f"{self.path}: no column {column!r} to exclude, there are "
                    f"{_all_columns(width, names)}"
                )
        label_at = self._find_label(width, len(left), names)
        left.discard(-1 if label_at is None else label_at)
        features = sorted(left)
        if self.select is None:
            return features, label_at
        if names is None:
            if len(features) != len(self.select):
                raise ValueError(
                    f"{self.path}: must have {len(self.select)} columns ({listed(self.select)}), "
                    f"got {len(features)}"
                )
            return features, label_at
        found = _find(self.select, names)
        counted = Counter(found)  # names that differ by blanks may have found one column
        pairs = zip(self.select, found, strict=True)
        missing = [name for name, at in pairs if at is None or counted[at] > 1]
        if missing:
            raise ValueError(f"{self.path}: columns are missing: {listed(missing)}")
        if label_at is not None and label_at in found:
            raise ValueError(
                f"{self.path}: the label column must be no feature, got {names[label_at]!r}"
            )
        lost = {*self.exclude}.intersection(names[at] for at in found if at is not None)
        if lost:
            raise ValueError(
                f"{self.path}: a column to exclude must be no feature of the model, got "
                f"{listed(sorted(lost))}"
            )
        return [at for at in found if at is not None], label_at

    def are_in(self, cells: list[str]) -> bool:
        """Say whether a line names what is asked for: all features, or a column by its name.

        Args:
            cells: The line's.

        Returns:
            Whether it must be a header.
        """
        if self.select is not None and None not in _find(self.select, cells):
            return True
        named = [*self.exclude, *([] if self.label is None else [self.label])]
        return any(name in cells and not _is_position(name) for name in named)

    def _find_label(self, width: int, left: int, names: list[str] | None) -> int | None:
        if self.label is None:
            return None
        at = self._at(self.label, width, names)
        known = self.called.get(self.label, self.label)
        if self.like is None or (names is not None and known in names):
            if at is None:
                raise ValueError(
                    f"{self.path}: no label column {self.label!r}, there are "
                    f"{_all_columns(width, names)}"
                )
            return at
        if left != self.like + 1:
            return None
        if names is not None:  # one column more, but perhaps another one
            at = _position(self.label, width, names)
            return None if at is None or names[at] in (self.select or ()) else at
        if at is None:
            raise ValueError(
                f"{self.path}: no label column {self.label!r}, there are "
                f"{_all_columns(width, names)}"
            )
        return at

    def _at(self, column: str, width: int, names: list[str] | None) -> int | None:
        """Find a column; a position of another table stands for what has its name there."""
        called = None if self.like is None or names is None else self.called.get(column)
        if names is not None and called is not None:
            return names.index(called) if called in names else None
        at = _position(column, width, names)
        if self.like is None and names is not None and at is not None:
            self.called[column] = names[at]
        return at


def listed(names: Iterable[object]) -> str:
    """Name the first of many.

    Args:
        names: All.

    Returns:
        Eight at most, quoted, and how many more there are.
    """
    quoted = [repr(name) for name in names]
    more = f" and {len(quoted) - 8} more" if len(quoted) > 8 else ""
    return ", ".join(quoted[:8]) + more


def _is_position(column: str) -> bool:
    return column.removeprefix("-").isdecimal()


def _find(wanted: list[str], names: list[str]) -> list[int | None]:
    """Find features; text has lost the blanks around its names."""
    places = {name: at for at, name in reversed(list(enumerate(names)))}
    bare = {name.strip(): at for name, at in places.items()}
    return [places.get(name, bare.get(name.strip())) for name in wanted]


def _position(column: str, width: int, names: list[str] | None) -> int | None:
    if names is not None and column in names:
        return names.index(column)
    try:
        return range(width)[int(column)]
    except (ValueError, IndexError):
        return None


def _all_columns(width: int, names: list[str] | None) -> str:
    return f"columns 0 to {width - 1}" if names is None else listed(names)
