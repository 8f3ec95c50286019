"""Small synthetic data in the layouts of the real files: for tests, and --quick without data.

python -m benchmarks.paper.synthetic_data DIR
"""

from __future__ import annotations

import argparse
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paper.cifar import CLASSES
from benchmarks.paper.speech import SILENCE, WORDS

_RARE = (SILENCE, "marvin", "seven", "house")
_TABLES = {"thyroid": (220, 6), "annthyroid": (240, 6), "arrhythmia": (160, 274)}


def make(directory: Path, seed: int = 0) -> Path:
    """Write every data file: normal rows and anomalies differ, and nothing else is meant.

    Args:
        directory: Where; made if missing.
        seed: Seed of the draws.

    Returns:
        The directory.
    """
    rng = np.random.default_rng(seed)
    directory.mkdir(parents=True, exist_ok=True)
    for name, (rows, columns) in _TABLES.items():
        y = (np.arange(rows) % 8 == 0).astype(np.int8)
        x = rng.normal(size=(rows, columns)) + 2.0 * y[:, None]
        np.savez(directory / f"{name}.npz", X=x.astype(np.float32), y=y)
    _outlier_tables(directory / "adbench", rng)
    _abalone(directory, rng)
    _seizures(directory, rng)
    _digits(directory, rng)
    _words(directory, rng)
    _cifar(directory / "cifar10", rng)
    return directory


def _outlier_tables(directory: Path, rng: np.random.Generator) -> None:
    directory.mkdir(exist_ok=True)
    for name in ("first", "second"):
        y = (np.arange(240) % 8 == 0).astype(np.int8)
        x = rng.normal(size=(len(y), 4)) * (1.0 + 3.0 * y[:, None])
        np.savez(directory / f"{name}.npz", X=x.astype(np.float32), y=y)


def _abalone(directory: Path, rng: np.random.Generator) -> None:
    rings = np.repeat(np.array([8, 9, 10, 3, 21, 12], np.int8), [60, 60, 60, 12, 12, 20])
    x = rng.normal(size=(len(rings), 8)) + 0.3 * np.abs(rings - 9)[:, None]
    x[:, 0] = rng.integers(0, 3, len(rings))
    np.savez(directory / "abalone.npz", X=x.astype(np.float32), rings=rings)


def _seizures(directory: Path, rng: np.random.Generator) -> None:
    sets = np.repeat(np.array(list("ZONFS")), 4)
    time = np.arange(4097)
    size = np.where(sets == "S", 400.0, 60.0)[:, None]
    wave = np.sin(2 * np.pi * (time / 40 + rng.random((len(sets), 1))))
    recordings = size * (wave + 0.5 * rng.normal(size=(len(sets), 4097)))
    np.savez(directory / "bonn_eeg.npz", recordings=recordings.astype(np.int16), set_name=sets)


def _digits(directory: Path, rng: np.random.Generator) -> None:
    patterns = rng.integers(0, 200, (10, 28, 28))
    parts: dict[str, Any] = {}
    for part, count in (("train", 200), ("test", 100)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = patterns[labels] + rng.integers(0, 50, (count, 28, 28))
        parts |= {f"x_{part}": images.astype(np.uint8), f"y_{part}": labels}
    np.savez(directory / "mnist.npz", **parts)


def _words(directory: Path, rng: np.random.Generator) -> None:
    words = np.array((*WORDS, *_RARE))
    word = np.repeat(words, 24)
    means = {name: rng.normal(size=(1, 32)) for name in words}
    features = np.stack([means[name] + rng.normal(size=(98, 32)) for name in word])
    speaker = np.array([f"speaker{at % 12:x}"[-8:] for at in range(len(word))])
    speaker[word == SILENCE] = ""
    np.savez(
        directory / "speech_commands_test_mfcc.npz",
        features=features.astype(np.float16),
        word=word.astype("<U16"),
        speaker=speaker.astype("<U8"),
    )


def _cifar(directory: Path, rng: np.random.Generator) -> None:
    directory.mkdir(exist_ok=True)
    colors = rng.integers(0, 200, (len(CLASSES), 1, 1, 3))

    def write(archive: zipfile.ZipFile, prefix: str, color: Any, count: int) -> None:
        for at in range(count):
            pixels = color + rng.integers(0, 55, (32, 32, 3))
            archive.writestr(f"{prefix}{at:04d}.jpg", _jpeg(pixels.astype(np.uint8)))

    with zipfile.ZipFile(directory / "test.zip", "w") as test:
        for name, color in zip(CLASSES, colors, strict=True):
            write(test, f"{name}/", color, 20)
            with zipfile.ZipFile(directory / f"train_{name}.zip", "w") as train:
                write(train, "", color, 200)


def _jpeg(pixels: Any) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper.synthetic_data")
    parser.add_argument("directory", type=Path)
    print(make(parser.parse_args().directory))


if __name__ == "__main__":
    main()
