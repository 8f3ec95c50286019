"""Reading numpy's files: no more of them than is needed, and nothing on their word alone."""

from __future__ import annotations

import math
import os
import zipfile
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy_format

from drocc_ext.cli.columns import Columns, Parts, listed


def read_npy(path: str, columns: Columns) -> Parts:
    """Read the features of an .npy file.

    Args:
        path: The file.
        columns: Which columns.

    Returns:
        Features, no names, labels.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is not a table of numbers, or lacks a column.
    """
    with open(path, "rb") as file:
        if not file.seekable():
            raise ValueError(f"{path}: must be a file on a disk, got a pipe or a device")
        return _split(path, _read(path, file, os.fstat(file.fileno()).st_size), columns)


def read_npz(path: str, columns: Columns, key: str | None) -> Parts:
    """Read the features of an .npz file, and the labels from an array of their own.

    Args:
        path: The file.
        columns: Which columns; the label names an array.
        key: Array of the features, see `read_table`.

    Returns:
        Features, no names, labels.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is not a table of numbers, or lacks an array or a column.
    """
    try:
        archive = zipfile.ZipFile(path)
    except OSError:
        raise
    except Exception as error:  # damaged bytes fail in any way
        raise _unreadable(path, error) from error
    with archive:
        arrays = [name[:-4] for name in archive.namelist() if name.endswith(".npy")]
        label = columns.label
        if columns.like is not None and label not in arrays:
            label = None
        for name in (key, label):
            if name is not None and name not in arrays:
                raise ValueError(f"{path}: no array is named {name!r}, there are {listed(arrays)}")
        if key is None:
            others = [name for name in arrays if name != label]
            if "X" not in others and len(others) != 1:
                found = f"choose the key of the features, there are {listed(others)}"
                raise ValueError(f"{path}: {found if others else 'no array may hold the features'}")
            key = "X" if "X" in others else others[0]
        without_label = Columns(
            columns.path, None, columns.exclude, columns.select, columns.like, columns.lenient
        )
        rows, _, _ = _split(path, _member(path, archive, key), without_label)
        if label is None:
            return rows, None, None
        labels = _member(path, archive, label)
        if labels.size != len(rows) or labels.dtype.kind not in "biufU":
            raise ValueError(
                f"{path}: {label!r} must hold one label for each of the {len(rows)} rows, got "
                f"{labels.dtype} of shape {labels.shape}"
            )
        return rows, None, _plain(labels.reshape(-1))


def _split(path: str, values: npt.NDArray[Any], columns: Columns) -> Parts:
    if values.ndim != 2 or values.dtype.kind not in "biuf":
        raise ValueError(
            f"{path}: features must be numbers of shape [N, D], got {values.dtype} of shape "
            f"{values.shape}"
        )
    features, label = columns.find(values.shape[1], None)
    labels = None if label is None else _plain(values[:, label])
    if len(features) < values.shape[1]:
        values = values[:, features]
    kind = values.dtype.newbyteorder("=") if values.dtype.char in "efd" else np.dtype(np.float64)
    with np.errstate(over="ignore"):  # a longdouble beyond float64 is refused as infinite
        return values.astype(kind), None, labels


def _plain(labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return labels.astype(np.float64) if labels.dtype.char == "g" else labels


def _member(path: str, archive: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:
    try:
        information = archive.getinfo(f"{name}.npy")
        with archive.open(information) as file:
            return _read(path, file, information.file_size)
    except (OSError, ValueError):
        raise
    except Exception as error:  # encrypted, or compressed in a way that python does not know
        raise _unreadable(path, error) from error


def _read(path: str, file: IO[bytes], size: int) -> npt.NDArray[Any]:
    """Read one array, after its header and the size of the file have been compared."""
    try:
        version = npy_format.read_magic(file)
        if version == (1, 0):
            shape, fortran_order, dtype = npy_format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, fortran_order, dtype = npy_format.read_array_header_2_0(file)
        else:
            raise ValueError(f"its version is {version}")
        if dtype.hasobject:
            raise ValueError("it holds python objects")
        wanted = math.prod(shape) * dtype.itemsize
        rest = size - file.tell()
        if min(shape, default=0) < 0 or wanted > rest:
            raise ValueError(f"it says shape {shape} of {dtype}, and holds {rest} bytes")
        content = file.read(wanted)
        if len(content) < wanted:
            raise ValueError(f"it says shape {shape} of {dtype}, and ends early")
        if wanted == 0:
            return np.empty(shape, dtype)
        flat = np.frombuffer(content, dtype)
        return flat.reshape(shape[::-1]).T if fortran_order else flat.reshape(shape)
    except OSError:
        raise
    except Exception as error:  # damaged bytes fail in any way
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: Exception) -> ValueError:
    reason = (str(error).splitlines() or [""])[0] or type(error).__name__
    return ValueError(f"{path}: not a readable numpy file ({reason})")
