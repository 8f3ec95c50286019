"""Table 2: splits, protocols, cells, pages; on small made data."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("pyod", reason="the experiments need drocc-ext[bench]")

from benchmarks.paper import tabular, tabular_data, tabular_methods
from benchmarks.paper.experiment import Options
from benchmarks.paper.hyperparameters import hyperparameters
from benchmarks.paper.registry import find
from benchmarks.paper.store import ResultStore, read
from benchmarks.training.fewer_steps import SETS


def write_sets(directory, seed, normal=120, anomalies=14):
    """Anomalies lie far from the normal rows in every column."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(normal + anomalies) < anomalies).astype(np.int8)
    x = rng.normal(size=(len(y), 5)) + 6.0 * y[:, None]
    x[:, 4] = 1.0  # a constant column, to be dropped
    for name in ("thyroid", "annthyroid", "arrhythmia"):
        np.savez(directory / f"{name}.npz", X=x.astype(np.float32), y=y)
    rings = np.where(y == 1, rng.choice([3, 21], len(y)), rng.choice([8, 9, 10], len(y)))
    unused = rng.choice([1, 7, 11, 20, 22], 30)
    np.savez(
        directory / "abalone.npz",
        X=np.concatenate([x, rng.normal(size=(30, 5))]).astype(np.float32),
        rings=np.concatenate([rings, unused]).astype(np.int8),
    )


@pytest.fixture
def directory(tmp_path, seed):
    write_sets(tmp_path, seed)
    return tmp_path


def keys(rows):
    return {row.tobytes() for row in rows}


@pytest.mark.parametrize("name", tabular_data.NAMES)
@pytest.mark.parametrize(("kind", "tested"), [("script", 14), ("DAGMM", 60)])
def test_splits_are_disjoint_and_of_the_documented_sizes(directory, name, kind, tested, seed):
    x, anomaly = tabular_data.load(directory, name)
    assert len(x) == 134
    assert anomaly.sum() == 14
    split = tabular_data.split(x, anomaly, kind, seed)
    assert split.normal.sum() == tested
    assert len(split.raw_train) == 120 - tested
    assert not keys(split.raw_train) & keys(split.raw_test)
    assert keys(split.raw_test[~split.normal]) == keys(x[anomaly])
    assert keys(split.raw_train) | keys(split.raw_test) == keys(x)
    assert split.train.shape == (120 - tested, 4)  # the constant column is gone
    kept = split.raw_train[:, :4]
    expected = (split.raw_test[:, :4] - kept.mean(0)) / kept.std(0)
    np.testing.assert_allclose(split.test, np.clip(expected, -10, 10), rtol=1e-9, atol=1e-9)
    other = tabular_data.split(x, anomaly, kind, seed + 1)
    assert keys(other.raw_train) != keys(split.raw_train)


def test_an_odd_number_of_normal_rows_is_halved(seed):
    x = np.random.default_rng(seed).normal(size=(11, 2))
    split = tabular_data.split(x, np.arange(11) < 4, "DAGMM", seed)
    assert (len(split.train), len(split.test)) == (3, 8)


def test_the_benchmark_of_steps_has_the_same_split(directory, seed):
    train, _, test, normal = SETS["abalone"].load(directory, seed)
    split = tabular_data.split(*tabular_data.load(directory, "abalone"), "script", seed)
    np.testing.assert_allclose(train.numpy(), split.train, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(test.numpy(), split.test, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(normal.numpy() == 1, split.normal)


def test_bad_data_are_refused_in_one_sentence(directory):
    x, y = np.zeros((3, 2), dtype=np.float32), np.array([0, 1, 0], dtype=np.int8)
    path = directory / "thyroid.npz"
    for arrays in (
        {"X": x, "y": y[:2]},
        {"X": x},
        {"X": np.full_like(x, np.nan), "y": y},
        {"X": x, "y": 0 * y},
    ):
        np.savez(path, **arrays)
        with pytest.raises(ValueError, match=r"^load: .*thyroid\.npz must hold [^\n]*$"):
            tabular_data.load(directory, "thyroid")
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="must hold X and y"):
        tabular_data.load(directory, "thyroid")
    path.unlink()
    with pytest.raises(ValueError, match="must be a data file"):
        tabular_data.load(directory, "thyroid")
    with pytest.raises(ValueError, match="split: kind must be one of script, DAGMM, got 'half'"):
        tabular_data.split(x.astype(np.float64), y == 1, "half", 0)


def test_a_cell_has_the_protocols_metrics(directory, monkeypatch, seed):
    """A method of known scores: its F1 and AUC, counted independently."""
    rng = np.random.default_rng(seed)
    found = {}

    def method(case):
        scores = rng.normal(size=len(case.split.normal)) + 0.8 * ~case.split.normal
        found[len(scores)] = (scores, case.split.normal)
        return scores

    monkeypatch.setitem(tabular.METHODS, "made", method)
    result = tabular.cell("made", "thyroid", directory, seed, True)
    for kind, size in (("script", 28), ("DAGMM", 74)):
        scores, normal = found[size]
        called = np.argsort(-scores)[:14]
        f1 = np.mean(~normal[called])  # as many called as there are: precision = recall = F1
        assert result[f"{kind} f1"] == pytest.approx(f1)
        pairs = scores[~normal][:, None] > scores[normal][None]
        assert result[f"{kind} auc"] == pytest.approx(pairs.mean())
    scores, normal = found[28]
    accepted = scores <= np.percentile(scores, 80)
    hits = np.sum(accepted & normal)
    published = 2 * hits / (accepted.sum() + normal.sum())
    assert result["script published"] == pytest.approx(published)
    assert 0.7 < result["script ceiling"] < 0.85


@pytest.mark.slow
@pytest.mark.parametrize("method", list(tabular.METHODS))
def test_methods_rank_far_rows_as_anomalous(directory, method, seed):
    if not tabular_methods.available(method, "thyroid"):
        pytest.skip("deepod is not installed")
    state = np.random.get_state()[1].copy()
    split = tabular_data.split(*tabular_data.load(directory, "thyroid"), "DAGMM", seed)
    case = tabular_methods.Case("thyroid", split, seed, quick=True)
    scores = tabular.METHODS[method](case)
    assert scores.shape == split.normal.shape
    assert np.isfinite(scores).all()
    if method in ("OC-SVM", "LOF", "isolation forest", "kNN"):
        assert scores[~split.normal].mean() > scores[split.normal].max()
    np.testing.assert_array_equal(scores, tabular.METHODS[method](case))
    np.testing.assert_array_equal(state, np.random.get_state()[1])


def test_the_scripts_learning_rate():
    rates = [tabular_methods._script_rate(100, 50, epoch) for epoch in (0, 65, 66, 81, 96)]
    assert rates == [1.0, 1.0, 0.1, 0.01, 0.001]


def test_table_10_is_complete():
    assert set(hyperparameters()["tabular"]["paper"]) == set(tabular.PAPER_DATA)
    assert set(tabular_methods.SCRIPT["epochs"]) == set(tabular.PAPER_DATA)


@pytest.mark.slow
def test_cells_are_kept_and_the_section_renders(directory, tmp_path, seed):
    options = Options(directory, (seed,), quick=True)
    settings = tabular.EXPERIMENT.settings(options)
    cells = ResultStore(tmp_path / "tabular.json", settings)
    names = ["DROCC/abalone", "autoencoder/abalone"]
    work = {
        name: compute
        for name, compute in tabular.EXPERIMENT.cells(options).items()
        if name.rsplit("/", 1)[0] in names
    }
    assert len(work) == 2
    cells.fill(work, progress=False)
    cells.save(seeds=[seed])

    def fail():
        raise AssertionError("this cell is there already")

    again = ResultStore(tmp_path / "tabular.json", settings)
    again.fill({name: fail for name in work}, progress=False)
    content = read(tmp_path / "tabular.json")
    section = tabular.section(content)
    f1 = content["cells"][f"DROCC/abalone/{seed}"]["DAGMM f1"]
    row = next(line for line in section.splitlines() if line.startswith("| DROCC "))
    assert [text.strip() for text in row.split("|")[1:-1]] == [
        *("DROCC", "-", "78 +- 3", "-", "-", "69 +- 2", f"{100 * f1:.1f}", "68 +- 2"),
    ]
    assert "DCN (quoted only)" in section
    text = " ".join(section.split())
    assert f"abalone {100 * f1:.1f}, {100 * f1 - 68:+.1f} points" in text


def test_it_is_found_by_its_names():
    assert find("table2") == find("tabular") == [tabular.EXPERIMENT]
    with pytest.raises(ValueError, match="--data-dir must be the directory"):
        tabular.EXPERIMENT.cells(Options(None, (0,), True))
