"""What the fuzz suite shares: seconds of it in `make test`, ten minutes in `make fuzz`."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, settings

# 1 in `make test`. `make fuzz` multiplies every budget by it.
SCALE = int(os.environ.get("DROCC_FUZZ", "1"))


def budget(examples: int) -> settings:
    """Settings for so many examples, new ones in every run."""
    return settings(
        max_examples=examples * SCALE,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )


@contextmanager
def no_hang(seconds: int = 60) -> Iterator[None]:
    """Fail instead of hanging; far longer than anything takes on a busy machine."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"still at it after {seconds} seconds")

    former = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


def is_one_sentence(error: BaseException) -> bool:
    """Say whether an error can be shown to a user as it is."""
    return str(error) != "" and "\n" not in str(error) and len(str(error)) < 1000


def damaged(rng: np.random.Generator, content: bytes) -> bytes:
    """Bytes with bits flipped, parts cut, repeated, zeroed or exchanged."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        if not data:
            return b""
        at = int(rng.integers(len(data)))
        size = int(rng.integers(1, 40))
        kind = rng.integers(7)
        if kind <= 1:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            del data[at : at + size]
        elif kind == 3:
            data[at : at + size] = bytes(size)
        elif kind == 4:
            data[at:at] = data[at : at + size]
        elif kind == 5:
            data[at : at + size] = rng.bytes(size)
        else:
            del data[at:]
    return bytes(data)


def other_value(rng: np.random.Generator) -> Any:
    """A value as files of others may hold where another is meant."""
    huge = 10 ** int(rng.integers(1, 400))
    values: list[Any] = [
        None, True, False, 0, 1, -1, 2.5, -0.0, float("nan"), float("inf"), 1e308, 5e-324, huge,
        -huge, "", "x", "1", "\ud800", [], {}, [1, 2, 3], [0.0] * 3, ["a"], {"a": 1}, [[1.0]],
        [None] * 3, [0, 1, -1], "mean", "MLP", "l2", "cpu", "meta", 128, 3, 2**31, 2**63,
    ]  # fmt: skip
    return values[rng.integers(len(values))]


def changed(rng: np.random.Generator, value: Any, other: Any = other_value) -> Any:
    """A deep copy of nested dicts and lists in which one place is another, missing or new."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        copy = dict(value)
        key = list(copy)[rng.integers(len(copy))]
        kind = rng.integers(8)
        if kind == 0:
            del copy[key]
        elif kind == 1:
            copy[f"{key}_"] = other(rng)
        else:
            copy[key] = changed(rng, copy[key], other)
        return copy
    if isinstance(value, list | tuple) and value and rng.random() < 0.6:
        items = list(value)
        at = int(rng.integers(len(items)))
        kind = rng.integers(5)
        if kind == 0:
            del items[at]
        elif kind == 1:
            items.insert(at, items[at])
        else:
            items[at] = changed(rng, items[at], other)
        return type(value)(items)
    return other(rng)
