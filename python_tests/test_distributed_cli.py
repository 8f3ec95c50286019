"""`drocc-ext train` and the estimators on two ranks."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import python
from rank_cases import free_port, run_ranks

from drocc_ext.cli.main import main
from drocc_ext.estimators import DROCC
from drocc_ext.metrics import roc_auc


def table(seed: int) -> tuple[Any, Any]:
    """Rows on a plane of five dimensions, and as many off it."""
    rng = np.random.default_rng(seed)
    plane = rng.normal(size=(2, 5))
    rows = rng.normal(size=(400, 2)) @ plane
    return rows[:300], np.concatenate([rows[300:], rows[300:] + rng.normal(size=(100, 5))])


def fitted(seed: int) -> tuple[Any, float, dict[str, torch.Tensor]]:
    train, test = table(seed)
    detector = DROCC(max_steps=60, random_state=None).fit(train)
    assert isinstance(detector.network_, torch.nn.Module)
    return detector.decision_function(test), detector.threshold_, detector.network_.state_dict()


def test_an_estimator_is_trained_by_two_ranks(tmp_path: Path, seed: int) -> None:
    one, two = run_ranks(tmp_path, fitted, seed)
    assert not isinstance(one, Exception), one
    np.testing.assert_array_equal(one[0], two[0])
    assert one[1] == two[1]
    for name, value in one[2].items():
        assert torch.equal(value, two[2][name])
    normal = np.repeat([1, 0], 100)
    assert roc_auc(-one[0], normal) > 0.8


def test_training_from_the_command_line(here: Path, seed: int) -> None:
    train, test = table(seed)
    np.save("rows.npy", train)
    arguments = ["train", str(here / "rows.npy"), "--out", str(here / "model"), "--max-steps", "40"]
    assert run_ranks(here, main, arguments) == [0, 0]
    scores = DROCC.load("model").decision_function(test)
    assert roc_auc(-scores, np.repeat([1, 0], 100)) > 0.8
    for refused in ([*arguments[:1], "-", *arguments[2:]], [*arguments[:3], "rows.npy"]):
        assert run_ranks(here, main, refused) == [2, 2]


LAUNCH = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.mark.slow
def test_training_under_torchrun(here: Path, seed: int) -> None:
    train, test = table(seed)
    np.save("rows.npy", train)
    arguments = ["-m", "drocc_ext.cli", "train", "rows.npy", "--out", "model", "--max-steps", "40"]
    python(*LAUNCH, *arguments, cwd=here, PYTHONPATH=":".join(sys.path))
    scores = DROCC.load("model").decision_function(test)
    assert roc_auc(-scores, np.repeat([1, 0], 100)) > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("data", ["-", "absent.npy"])
def test_what_cannot_be_trained_on_is_said(data: str, here: Path) -> None:
    arguments = ["-m", "drocc_ext.cli", "train", data, "--out", "model"]
    expected = "DATA must be a file" if data == "-" else "absent.npy: No such file"
    with pytest.raises(AssertionError, match=expected):
        python(*LAUNCH, *arguments, cwd=here, PYTHONPATH=":".join(sys.path))
    assert not Path("model").exists()


@pytest.mark.slow
def test_two_launchers_meet(here: Path, seed: int) -> None:
    """As on two machines: each starts one rank, and they find each other at the end point."""
    train, test = table(seed)
    np.save("rows.npy", train)
    meeting = ["--rdzv-backend", "c10d", "--rdzv-id", "1"]
    meeting += ["--rdzv-endpoint", f"127.0.0.1:{free_port()}"]
    launch = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", *meeting]
    arguments = ["-m", "drocc_ext.cli", "train", "rows.npy", "--out", "model", "--max-steps", "40"]

    def start(_: int) -> str:
        return python(*launch, *arguments, cwd=here, PYTHONPATH=":".join(sys.path))

    with ThreadPoolExecutor() as pool:
        list(pool.map(start, range(2)))
    scores = DROCC.load("model").decision_function(test)
    assert roc_auc(-scores, np.repeat([1, 0], 100)) > 0.8
