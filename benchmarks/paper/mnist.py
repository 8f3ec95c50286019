"""MNIST from files: `mnist.npz` or the IDX files that torchvision keeps in `MNIST/raw`."""

from __future__ import annotations

import gzip
import math
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_Bytes = npt.NDArray[np.uint8]

NPZ_NAME = "mnist.npz"
IDX_DIRECTORY = Path("MNIST/raw")
_SIDE = 28
# Name of an array in the npz file -> name of its IDX file.
_IDX_NAMES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}


class MNIST(NamedTuple):
    """Images `[N, 28, 28]` and labels `[N]`, digits 0 to 9, all uint8."""

    x_train: _Bytes
    y_train: _Bytes
    x_test: _Bytes
    y_test: _Bytes


def load_mnist(data_dir: Path) -> MNIST:
    """Read MNIST, whole or any part of it in the same layout. Downloads nothing.

    Args:
        data_dir: Directory of `mnist.npz` (arrays x_train, y_train, x_test, y_test), or else of
            torchvision's `MNIST/raw` with the four IDX files, each as it is or with `.gz`.

    Returns:
        Images and labels.

    Raises:
        FileNotFoundError: If neither is there, or one of the four files is not.
        ValueError: If a file is damaged, or images and labels do not fit.
    """
    directory = Path(data_dir)
    npz, raw = directory / NPZ_NAME, directory / IDX_DIRECTORY
    if npz.is_file():
        arrays = _read_npz(npz)
    elif raw.is_dir():
        arrays = {name: _read_idx(_idx_file(raw, file)) for name, file in _IDX_NAMES.items()}
    else:
        raise FileNotFoundError(
            f"load_mnist: data_dir must hold {NPZ_NAME} or {IDX_DIRECTORY}, got neither in "
            f"{directory}"
        )
    for part in ("train", "test"):
        _check(part, arrays[f"x_{part}"], arrays[f"y_{part}"])
    return MNIST(**arrays)


def _read_npz(path: Path) -> dict[str, _Bytes]:
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in _IDX_NAMES if name not in file.files]
            if missing:
                raise ValueError(f"it has no {', '.join(missing)}")
            return {name: file[name] for name in _IDX_NAMES}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"load_mnist: {path} must be a whole npz file, got: {error}") from error


def _idx_file(raw: Path, name: str) -> Path:
    for path in (raw / name, raw / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"load_mnist: {raw} must hold {name} or {name}.gz, got neither")


def _read_idx(path: Path) -> _Bytes:
    """Read an IDX file of bytes: two zeros, type 8, number of dimensions, sizes, data."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"load_mnist: {path} must be a whole gzip file, got: {error}") from error
    dimensions = content[3] if len(content) >= 4 else 0
    start = 4 + 4 * dimensions
    if content[:3] != b"\0\0\x08" or dimensions == 0 or len(content) < start:
        raise ValueError(
            f"load_mnist: {path} must begin with the header of an IDX file of bytes, got "
            f"{content[:4].hex(' ') or 'an empty file'}"
        )
    sizes = [int(size) for size in np.frombuffer(content, ">u4", dimensions, offset=4)]
    if len(content) != start + math.prod(sizes):
        raise ValueError(
            f"load_mnist: {path} must hold {math.prod(sizes)} bytes of data, as its header says, "
            f"got {len(content) - start}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(sizes)


def _check(part: str, images: _Bytes, labels: _Bytes) -> None:
    for name, array in ((f"x_{part}", images), (f"y_{part}", labels)):
        if array.dtype != np.uint8:
            raise ValueError(f"load_mnist: {name} must be of dtype uint8, got {array.dtype}")
    if images.shape != (len(images), _SIDE, _SIDE):
        raise ValueError(f"load_mnist: x_{part} must have shape [N, 28, 28], got {images.shape}")
    if labels.shape != (len(images),):
        raise ValueError(
            f"load_mnist: y_{part} must have shape ({len(images)},), one label per image, got "
            f"{labels.shape}"
        )
    if labels.size and labels.max() > 9:
        raise ValueError(f"load_mnist: y_{part} must hold digits 0 to 9, got {labels.max()}")
