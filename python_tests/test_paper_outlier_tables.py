"""The study of the default on outlier tables: splits, cells and the page, on made data."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.paper import outlier_tables
from benchmarks.paper.experiment import Options


@pytest.fixture
def directory(seed, tmp_path):
    rng = np.random.default_rng(seed)
    (tmp_path / "adbench").mkdir()
    for name, normal, anomalies in (("a", 300, 30), ("b", 9000, 500)):
        x = np.concatenate([rng.normal(size=(normal, 4)), rng.normal(0, 5, size=(anomalies, 4))])
        y = np.repeat([0, 1], [normal, anomalies])
        np.savez(tmp_path / "adbench" / f"{name}.npz", X=x.astype(np.float32), y=y)
    return tmp_path


def test_splits_follow_the_protocol(directory):
    small = outlier_tables.load(directory / "adbench" / "a.npz", 0)
    assert (len(small.train), len(small.test), small.anomalous.sum()) == (150, 180, 30)
    large = outlier_tables.load(directory / "adbench" / "b.npz", 0)
    assert len(large.train) == 2000 and len(large.test) == 4000
    assert large.anomalous.sum() == 400  # a tenth, as in the table's 4,500 and 500
    seen = {row.tobytes() for row in large.train}
    assert not seen & {row.tobytes() for row in large.test}
    other = outlier_tables.load(directory / "adbench" / "a.npz", 1)
    assert not np.array_equal(small.train, other.train)
    np.savez(directory / "c.npz", X=np.zeros((3, 2)), y=np.zeros(3))
    with pytest.raises(ValueError, match="must hold X"):
        outlier_tables.load(directory / "c.npz", 0)


def test_quick_cells_and_their_page(directory):
    options = Options(directory, (0, 1), quick=True)
    cells = {name: compute() for name, compute in outlier_tables.cells(options).items()}
    assert list(cells) == [f"{method}/a/{s}" for s in (0, 1) for method in ("kNN", "default")]
    assert all(cell["auc"] > 0.8 for name, cell in cells.items() if name.startswith("kNN"))
    content = {"cells": cells, "seeds": [0, 1], "settings": outlier_tables.settings(options)}
    page = outlier_tables.section(content)
    lines = page.splitlines()
    assert any(line.startswith("| default ") for line in lines)
    assert any(line.startswith("| a ") for line in lines)
    with pytest.raises(ValueError, match="must hold tables"):
        outlier_tables.cells(Options(directory / "adbench", (0,), quick=False))
