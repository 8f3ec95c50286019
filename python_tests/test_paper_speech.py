"""Audio keywords and wake words: data, splits, cuts, protocol, pages; on made clips, few steps."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.fft import dct

pytest.importorskip("pyod", reason="the experiments need drocc-ext[paper]")
pytest.importorskip("matplotlib", reason="the experiments need drocc-ext[bench]")

import matplotlib.image

from benchmarks.paper import audio, baselines, registry, speech, wake_word
from benchmarks.paper.experiment import Options
from benchmarks.paper.store import ResultStore
from drocc_ext.metrics import roc_auc

OTHERS = ("bed", "cat", "dog", speech.SILENCE)


def made_energies(count, rng, band):
    """Quiet noise with a loud word of 20 to 40 frames in some bands."""
    energies = rng.normal(-8, 0.3, (count, 98, 32)).astype(np.float32)
    for clip in energies:
        start, length = rng.integers(10, 40), rng.integers(20, 40)
        clip[start : start + length, band : band + 8] += 8
    return energies


@pytest.fixture
def directory(tmp_path, seed):
    """Every word by 20 speakers, in the layout of the real file; background noise has none."""
    rng = np.random.default_rng(seed)
    features, words, speakers = [], [], []
    for number, word in enumerate((*speech.WORDS, *OTHERS)):
        energies = made_energies(20, rng, band=number)
        features.append(dct(energies, axis=-1, norm="ortho"))
        words += [word] * 20
        speakers += [
            "" if word == speech.SILENCE else f"speaker {number:02}" for number in range(20)
        ]
    np.savez(
        tmp_path / speech.FILE,
        features=np.concatenate(features).astype(np.float16),
        word=np.array(words),
        speaker=np.array(speakers),
    )
    audio._data.cache_clear()
    wake_word._data.cache_clear()
    return tmp_path


def test_no_voice_is_in_two_parts_and_every_clip_is_in_one(directory):
    clips = speech.load_clips(directory)
    parts = speech.split_speakers(clips, 3)
    np.testing.assert_array_equal(np.sum(parts, axis=0), 1)
    for word in (*speech.WORDS, speech.SILENCE):
        assert [int((mask & (clips.word == word)).sum()) for mask in parts] == [12, 4, 4]
    voices = [set(clips.speaker[mask & (clips.speaker != "")]) for mask in parts]
    assert not voices[0] & voices[1] and not voices[0] & voices[2] and not voices[1] & voices[2]
    other = speech.split_speakers(clips, 4)
    assert (other.train != parts.train).any()


def test_the_filter_bank_is_what_the_cepstrum_was_made_of(seed):
    energies = np.random.default_rng(seed).normal(-8, 4, (3, 5, 32)).astype(np.float32)
    found = speech.filter_bank(dct(energies, axis=-1, norm="ortho"))
    np.testing.assert_allclose(found, np.maximum(energies, speech.FLOOR), atol=1e-4)
    means = speech.coarse(np.repeat(np.repeat(energies, 7, axis=1), 2, axis=2)[:, :, :32])
    np.testing.assert_allclose(
        means, energies[:, :, :16].reshape(3, 5, 8, 2).mean(-1), rtol=1e-5, atol=1e-5
    )


def test_half_of_the_word_is_cut_and_the_other_stays(seed):
    rng = np.random.default_rng(seed)
    energies = made_energies(6, rng, band=4)
    first = np.arange(6) < 3
    halves = speech.halved(energies, first, seed)
    for clip, half, keep_first in zip(energies, halves, first, strict=True):
        start, stop = speech.word_frames(clip.mean(-1))
        loud = np.flatnonzero(clip[:, 4] > -4)
        assert (start, stop) == (loud[0], loud[-1] + 1)
        middle = (start + stop) // 2
        cut = np.zeros(98, bool)
        cut[slice(middle, stop) if keep_first else slice(start, middle)] = True
        np.testing.assert_array_equal(half[~cut], clip[~cut])
        assert half[cut].max() < -4
    assert energies.max() > -4  # not changed in place


def test_the_lstm_starts_with_long_memories(seed):
    state = torch.get_rng_state()
    network = speech.chrono_lstm(8, 14, seed)
    torch.testing.assert_close(torch.get_rng_state(), state)
    forget = network.lstm.bias_ih_l0[128:256] + network.lstm.bias_hh_l0[128:256]
    memory = 1 / (1 - torch.sigmoid(forget))  # frames until 1/e of a state is left, about
    assert memory.min() >= 1.9 and memory.max() <= 14.1 and memory.max() > 10


def test_audio_normalizes_by_training_clips_of_the_word_and_leaves_noise_out(directory):
    clips, features = audio._data(directory, audio.COARSE)
    train, test, labels = audio.split(clips, features, "go", 0)
    assert train.shape == (12, 14, 8)
    assert len(test) == 4 * (len(speech.WORDS) + 3) and int(labels.sum()) == 4
    torch.testing.assert_close(train.mean((0, 1)), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(train.std((0, 1), correction=0), torch.ones(8), atol=0.02, rtol=0)


def test_a_far_word_does_not_count_more_than_a_close_one(directory):
    parts = wake_word.split(*wake_word._data(directory), "go", 1)
    assert len(parts.train_normal) == 12 and len(parts.train_far) == 24
    for group in (parts.validation, parts.test):
        assert [len(clips) for clips in group] == [4, 12, 4, 8]


def test_recalls_are_those_of_the_protocol(seed):
    rng = np.random.default_rng(seed)
    sizes = {"normal": 50, "far": 120, "close_word": 40, "half": 80}
    groups = [
        wake_word.Group(**{name: torch.from_numpy(rng.normal(size=n)) for name, n in sizes.items()})
        for _ in range(2)
    ]
    found = wake_word.judge(lambda clips: clips, *groups)
    validation, test = (wake_word.Group(*(part.numpy() for part in group)) for group in groups)
    # By counting: the threshold is the least normal score with at most 5 % of the negatives above.
    negatives = np.r_[validation.far[:40], validation.close_word]
    allowed = [t for t in validation.normal if (negatives >= t).mean() <= 0.05]
    at = found["close word"]["at_fpr"][1]
    assert at["threshold"] == (min(allowed) if allowed else None)
    assert at["recall"] == (test.normal >= min(allowed, default=np.inf)).mean()
    scores = np.r_[test.normal, test.far, test.close_word, test.half]
    expected = roc_auc(scores, np.arange(len(scores)) < 50)
    assert found["both"]["auc"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"word": np.array(["go"])}, "features must be"),
        ({"features": np.full((280, 98, 32), np.nan, np.float16)}, "must be finite"),
    ],
)
def test_bad_clips_are_refused(directory, changes, message):
    path = directory / speech.FILE
    with np.load(path) as file:
        arrays = {**file, **changes}
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=message):
        speech.load_clips(directory)


def test_missing_and_cut_off_files_are_named(tmp_path, directory):
    with pytest.raises(FileNotFoundError, match=speech.FILE):
        speech.load_clips(tmp_path / "nowhere")
    path = directory / speech.FILE
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="must be a whole file"):
        speech.load_clips(directory)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", [audio.EXPERIMENT, wake_word.EXPERIMENT])
def test_a_quick_run_writes_a_section_and_goes_on_where_it_was(experiment, directory, tmp_path):
    options = Options(directory, (0,), quick=True)
    work = experiment.cells(options)
    path = tmp_path / "results" / f"{experiment.name}.json"
    settings = {**experiment.settings(options), "quick": True}
    store = ResultStore(path, settings)
    store.fill(dict(list(work.items())[:1]), progress=False)
    store = ResultStore(path, settings)
    assert list(store.content["cells"]) == list(work)[:1]
    store.fill(work, progress=False)
    store.save(seeds=[0])
    content = json.loads(path.read_text())
    text = experiment.section(content)
    assert "nan" not in text and max(map(len, text.splitlines())) < 200
    if experiment.draw is not None:
        (picture,) = experiment.draw(content, path.parent, options)
        assert matplotlib.image.imread(picture).std() > 0


def test_the_kNN_cell_is_the_librarys(directory):
    options = Options(directory, (0,), quick=True)
    value = audio.cells(options)[f"{audio.COARSE}/kNN/down/0"]()["auc"]
    train, test, labels = audio.split(*audio._data(directory, audio.COARSE), "down", 0)
    flat = [part.flatten(1).double().numpy() for part in (train, test)]
    assert value == roc_auc(-baselines.scores("kNN", *flat, 0), labels)


def test_a_whole_training_is_never_of_another_precision(monkeypatch):
    def refuse(*_):
        raise RuntimeError("could not create a primitive descriptor")

    monkeypatch.setattr(torch.nn.LSTM, "forward", refuse)
    probe = speech.autocast_dtype.__wrapped__
    assert probe(False) is None
    with pytest.raises(ValueError, match=r"^speech: the processor must run LSTMs in bfloat16"):
        probe(True)


def test_the_experiments_are_registered():
    for experiment in (audio.EXPERIMENT, wake_word.EXPERIMENT):
        assert experiment in registry.EXPERIMENTS
