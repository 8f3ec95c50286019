"""Fixtures of every test: fresh seeds that a failure prints, global state put back afterwards."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import TRITON_ONLY, new_seed

import drocc_ext


@pytest.fixture
def seed() -> int:
    """A new seed in every run; pytest shows it among the locals of a failing test."""
    return new_seed()


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory, to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def _state_restored() -> Iterator[None]:
    """Restore the random states, and fill new memory with NaN so that unwritten outputs show."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    with drocc_ext.use_backend("auto"):
        yield
    torch.use_deterministic_algorithms(deterministic)
    torch.set_default_dtype(torch.float32)
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])


# What can run nowhere here is not collected: on no GPU, or outside test_triton_interpreter.py.
INTERPRETED = ["test_triton_mahalanobis.py", "test_triton_search.py"]
collect_ignore = [] if TRITON_ONLY else INTERPRETED
if not torch.cuda.is_available():
    collect_ignore += ["test_cuda.py", "test_triton_cuda.py"]
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


def pytest_report_header() -> str:
    return f"left out here: {', '.join(collect_ignore)}"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with what takes longest; skip what is named but cannot run; keep a share, if asked."""
    share = float(os.environ.get("DROCC_TEST_SHARE", "1"))
    if share < 1:  # others in each run
        kept = set(random.SystemRandom().sample(range(len(items)), math.ceil(share * len(items))))
        config.hook.pytest_deselected(items=[x for i, x in enumerate(items) if i not in kept])
        items[:] = [x for i, x in enumerate(items) if i in kept]
    items.sort(key=lambda item: "test_triton_interpreter" not in item.nodeid)
    skip = pytest.mark.skip(reason="needs a CUDA GPU, none here")
    for item in items:
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(skip)
