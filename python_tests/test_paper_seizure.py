"""Table 3, seizures: splits, starts, held-out loss, section, picture; on small made data."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason="the experiments need drocc-ext[bench]")
pytest.importorskip("pyod", reason="the experiments need drocc-ext[bench]")

import matplotlib.image
from sklearn.metrics import roc_auc_score

from benchmarks.paper import seizure, seizure_training
from benchmarks.paper.experiment import Options
from benchmarks.paper.runner import run
from benchmarks.paper.seizure_training import Setting, Split
from benchmarks.paper.store import ResultStore

CHUNKS = 3


def recordings(seed, count=20, seizures=4, loudness=5.0):
    """Sines of random phase in noise; those of set S are louder. Sample 0 tells the recording."""
    rng = np.random.default_rng(seed)
    time = np.arange(CHUNKS * 178 + 5)
    x = 80 * np.sin(0.1 * time + rng.uniform(0, 6, (count, 1))) + rng.normal(
        size=(count, len(time))
    )
    x[-seizures:] *= loudness
    x[:, 0] = np.arange(count)
    names = np.array(list("ZONF") * ((count - seizures) // 4) + ["S"] * seizures)
    return x.round().astype(np.int16), names


@pytest.fixture
def directory(tmp_path, seed):
    x, names = recordings(seed)
    np.savez(tmp_path / "bonn_eeg.npz", recordings=x, set_name=names)
    return tmp_path


def test_chunks_are_consecutive_samples(directory):
    with np.load(directory / "bonn_eeg.npz") as data:
        x = data["recordings"]
    chunks, ill = seizure_training.load(directory)
    assert chunks.shape == (20, CHUNKS, 178)
    assert ill.tolist() == [False] * 16 + [True] * 4
    np.testing.assert_array_equal(chunks[7, 1], x[7, 178:356])


@pytest.mark.parametrize("kind", seizure_training.SPLITS)
def test_split_is_the_papers(seed, kind):
    # Every sample of a chunk is its number, so that rows can be told after scaling.
    numbers = np.arange(20.0 * CHUNKS).reshape(20, CHUNKS, 1)
    noise = np.random.default_rng(seed).normal(size=(20, CHUNKS, 178)) * 1e-3
    ill = np.arange(20) >= 16
    data = seizure_training.split(numbers + noise, ill, kind, seed)
    assert len(data.test) == 2 * 4 * CHUNKS and data.normal.sum() == 4 * CHUNKS
    assert len(data.train) == 16 * CHUNKS - 4 * CHUNKS
    np.testing.assert_allclose(data.train.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(data.train.std(0), 1, atol=1e-9)

    def told(rows, scale):
        return set(((rows.mean(1) * scale[1]) + scale[0]).round().astype(int).tolist())

    # The scale of the rows follows from a seizure's chunks, which are all known: 48 to 59.
    ends = data.test[~data.normal].mean(1)[[0, -1]]
    deviation = (59 - 48) / (ends[1] - ends[0])
    scale = 48 - ends[0] * deviation, deviation
    train, held = told(data.train, scale), told(data.test[data.normal], scale)
    assert not train & held and train | held == set(range(48))
    shared = {n // CHUNKS for n in train} & {n // CHUNKS for n in held}
    assert not shared if kind == "recordings" else shared
    other = seizure_training.split(numbers + noise, ill, kind, seed + 1)
    assert told(other.train, scale) != train or not np.array_equal(other.train, data.train)


def test_split_refuses_another_kind():
    with pytest.raises(ValueError, match="kind must be one of chunks, recordings, got 'rows'"):
        seizure_training.split(np.zeros((4, 1, 178)), np.arange(4) > 2, "rows", 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "must hold recordings and set_name"),
        ({"recordings": np.zeros((4, 200))}, "must hold recordings and set_name"),
        ({"recordings": np.zeros((4, 100)), "set_name": np.array(list("ZZZS"))}, "at least 178"),
        ({"recordings": np.zeros((4, 200)), "set_name": np.array(list("ZZS"))}, "a set_name for"),
        ({"recordings": np.zeros((4, 200)), "set_name": np.array(list("ZONF"))}, "of set S"),
        ({"recordings": np.zeros((4, 200)), "set_name": np.array(list("ZSSS"))}, "of set S"),
    ],
)
def test_bad_data_are_refused_in_one_sentence(tmp_path, content, message):
    if content is None:
        (tmp_path / "bonn_eeg.npz").write_bytes(b"not an archive")
    else:
        np.savez(tmp_path / "bonn_eeg.npz", **content)
    with pytest.raises(ValueError, match=message) as caught:
        seizure_training.load(tmp_path)
    assert str(caught.value).startswith("seizure: ") and "\n" not in str(caught.value)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"seizure: .*bonn_eeg\.npz must hold"):
        seizure_training.load(tmp_path)


def test_start_remembers_as_long_as_it_says(seed):
    torch.manual_seed(seed)
    before = torch.get_rng_state()
    made = [
        seizure_training.start(Setting(), torch.Generator().manual_seed(seed)) for _ in range(2)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    for one, other in zip(*(model.parameters() for model in made), strict=True):
        assert torch.equal(one, other)
    lstm = made[0].lstm
    bias = (lstm.bias_ih_l0 + lstm.bias_hh_l0).detach().reshape(4, 128)
    # sigmoid(log t) = t / (1 + t): a unit forgets 1 / (1 + t) of its memory at a step.
    times = bias[1].exp()
    assert 1 <= times.min() < 20 and 150 < times.max() <= 177
    torch.testing.assert_close(bias[0], -bias[1])
    assert not bias[2:].any()
    assert 0.8 < lstm.weight_ih_l0.std() < 1.2
    for gate in lstm.weight_hh_l0.detach().reshape(4, 128, 128):
        torch.testing.assert_close(gate @ gate.T, torch.eye(128), atol=1e-4, rtol=0)


def test_torch_start_is_torchs(seed):
    setting = Setting(forget_bias=None, input_scale=None, orthogonal=False)
    model = seizure_training.start(setting, torch.Generator().manual_seed(seed))
    assert max(weights.abs().max() for weights in model.parameters()) <= 128**-0.5
    fixed = Setting(forget_bias=3.0)
    lstm = seizure_training.start(fixed, torch.Generator().manual_seed(seed)).lstm
    assert (lstm.bias_ih_l0 + lstm.bias_hh_l0).reshape(4, 128)[1].eq(3).all()


def test_mean_pooling_sees_every_state(seed):
    setting = Setting(mean_pooling=True)
    model = seizure_training.start(setting, torch.Generator().manual_seed(seed))
    x = torch.randn(2, 9, 1, generator=torch.Generator().manual_seed(seed))
    states, _ = model.lstm(x)
    torch.testing.assert_close(model(x), model.logit(states.sum(1) / 9))


def made_split(seed):
    x, names = recordings(seed, count=40, seizures=8)
    chunks = x[:, : CHUNKS * 178].reshape(40, CHUNKS, 178).astype(float)
    return seizure_training.split(chunks, names == "S", "recordings", seed)


@pytest.mark.slow
def test_training_is_repeatable_and_leaves_the_start():
    data = made_split(0)
    setting = Setting(iterations=20, batch_size=16, num_steps=1)
    trainer, radius, curve = seizure_training.fit(setting, data, seed=1)
    assert [point["step"] for point in curve.points] == [2 * n for n in range(1, 11)]
    assert curve.points[-1]["loss"] < 0.7 * 2 * math.log(2)
    again = seizure_training.fit(setting, data, seed=1)
    assert again[1] == radius and again[2].points == curve.points
    held = seizure_training.held_out_loss(trainer, seizure_training.normal_rows(data), radius, 1)
    clean = torch.nn.functional.softplus(
        -trainer.score(seizure_training.series(data.test[data.normal]))
    ).mean()
    assert held["clean"] == pytest.approx(float(clean), abs=1e-4)
    assert held["adversarial"] < math.log(2)


def test_energy_is_the_sum_of_squares(directory, seed):
    cell = seizure.energy_cell(directory, "recordings", seed % 1000, quick=False)
    data = seizure_training.split(
        *seizure_training.load(directory), kind="recordings", seed=seed % 1000
    )
    expected = roc_auc_score(~data.normal, [float(row @ row) for row in data.test])
    assert cell["auc"] == pytest.approx(expected, abs=1e-12)


def test_baselines_find_loud_chunks(directory):
    cell = seizure.baseline_cell(directory, "kNN", "chunks", 0, quick=False)
    assert cell["auc"] > 0.9


def test_curve_takes_rows_of_both_classes(seed):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(3000, 178))
    curve = seizure_training.Curve(100, Split(rows[:1], rows, np.arange(3000) < 1500))
    assert curve.rows.shape == (1000, 178, 1) and curve.normal.sum() == 500


@pytest.mark.slow
def test_run_resumes_and_writes_section_and_picture(directory, tmp_path, monkeypatch):
    settings = Setting(iterations=2, batch_size=8, num_steps=1)
    monkeypatch.setattr(seizure, "NETWORKS", {"DROCC": settings, "DROCC-Rand": settings})
    monkeypatch.setattr(seizure, "BASELINES", ("kNN",))
    monkeypatch.setattr(seizure, "STUDY", {"only": settings})
    monkeypatch.setattr(ResultStore, "fill", _fill_here)
    options = Options(directory, (0, 1), quick=True)
    path = run(seizure.EXPERIMENT, options, tmp_path / "out", jobs=1)
    content = json.loads(path.read_text())
    assert len(content["cells"]) == 2 * 2 * 4 + 1
    text = seizure.section(content)
    assert text.count("\n| ") == 1 + 4 + 2 and "98.23 +- 0.7" in text and "+-" in text
    assert "| only" in text
    picture = matplotlib.image.imread(path.with_name("seizure.png"))
    assert picture.std() > 0.05

    def refuse(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(seizure, "network_cell", refuse)
    monkeypatch.setattr(seizure, "baseline_cell", refuse)
    run(seizure.EXPERIMENT, options, tmp_path / "out", jobs=1)
    with pytest.raises(ValueError, match="must be of the same settings, got others in epochs"):
        monkeypatch.setattr(seizure, "EPOCHS", 7)
        run(seizure.EXPERIMENT, options, tmp_path / "out", jobs=1)


_fill = ResultStore.fill


def _fill_here(self, work, progress=True, jobs=None):
    """Compute in this process: what a test replaced is not replaced in another."""
    return _fill(self, work, progress=False, jobs=None)
