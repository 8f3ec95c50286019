"""Fixtures of every test: fresh seeds that a failure prints, global state put back afterwards."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

import drocc_ext


@pytest.fixture
def seed() -> int:
    """A new seed in every run; pytest shows it among the locals of a failing test."""
    value = random.SystemRandom().randrange(2**31)
    print(f"seed = {value}")
    return value


@pytest.fixture(autouse=True)
def _state_restored() -> Iterator[None]:
    """Restore the random states, and fill new memory with NaN so that unwritten outputs show."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    with drocc_ext.use_backend("auto"):
        yield
    torch.use_deterministic_algorithms(deterministic)
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA GPU, none here")
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(skip)
