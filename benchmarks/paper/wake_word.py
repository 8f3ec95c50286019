"""Section 5.2, figures 3 and 9: a wake word, few kinds of negatives, and others close to it.

The paper's synthesized clips ("mar", "arvin", "marlin") are not published. Close negatives here,
never trained on, are clips of a word with the keyword's vowel, and clips of the keyword of which
half the word is cut out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from benchmarks.paper import deep_sad, speech, wake_word_page
from benchmarks.paper.experiment import Compute, Experiment, Options
from benchmarks.paper.recall import judged
from benchmarks.paper.settings import of_method
from drocc_ext.demo.methods import Method, train
from drocc_ext.metrics import GroupScores
from drocc_ext.search import SearchConfig

# Keyword -> the word that shares its vowel. Written before any result was seen.
CLOSE_WORDS = {"go": "no", "off": "on", "yes": "left"}
NEGATIVES_PER_CLIP = 2  # 1000 clips of the keyword and 2000 of others, appendix E.5
STEPS = 600
BATCH_SIZE = 64
LEARNING_RATE = 5e-3
DEEP_SAD_RATE = 1e-3

_SEARCH = SearchConfig.from_relative_step(10.0, step_size=0.2, gamma=1.0)
METHODS: dict[str, Method | None] = {
    "BCE": Method(None),
    "DeepSAD": None,
    "DROCC-OE": Method(_SEARCH),
    "DROCC-LF": Method(_SEARCH, metric="mahalanobis"),
}


class Group(NamedTuple):
    """Clips to be judged, `[*, 14, 8]`; there are as many far ones as close ones in all."""

    normal: Tensor
    far: Tensor
    close_word: Tensor
    half: Tensor


class Split(NamedTuple):
    """Clips of one keyword and seed, `[*, 14, 8]`; no voice is in two parts."""

    train_normal: Tensor
    train_far: Tensor
    validation: Group
    test: Group


def split(clips: speech.Clips, energies: speech.Floats, keyword: str, seed: int) -> Split:
    """Make the parts.

    Args:
        clips: All clips.
        energies: Their log energies `[N, T, C]`.
        keyword: One of `CLOSE_WORDS`.
        seed: Seed of speakers, negatives and cuts.

    Returns:
        The parts.

    Raises:
        ValueError: If a part has no clip of the keyword or the close word.
    """
    close = CLOSE_WORDS[keyword]
    parts = speech.split_speakers(clips, seed)
    rng = np.random.default_rng(seed)
    normal, near = clips.word == keyword, clips.word == close
    for name, mask in zip(parts._fields, parts, strict=True):
        if not (mask & normal).any() or not (mask & near).any():
            raise ValueError(f"split: {name} must have clips of {keyword!r} and {close!r}")
    far = ~normal & ~near
    scale = speech.standard_of(speech.coarse(energies[parts.train & normal]))

    def standard(some: speech.Floats) -> Tensor:
        return scale(speech.coarse(some))

    def drawn(mask: speech.Mask, count: int) -> Tensor:
        rows = np.flatnonzero(mask & far)
        return standard(energies[rng.permutation(rows)[:count]])

    def group(mask: speech.Mask) -> Group:
        words = energies[mask & normal]
        first = np.arange(2 * len(words)) < len(words)
        halves = speech.halved(np.concatenate([words, words]), first, int(rng.integers(2**31)))
        near_words = energies[mask & near]
        return Group(
            standard(words),
            drawn(mask, len(near_words) + len(halves)),
            standard(near_words),
            standard(halves),
        )

    count = int((parts.train & normal).sum())
    return Split(
        standard(energies[parts.train & normal]),
        drawn(parts.train, NEGATIVES_PER_CLIP * count),
        group(parts.validation),
        group(parts.test),
    )


def judge(
    score: Callable[[Tensor], Any], validation: Group, test: Group
) -> dict[str, dict[str, Any]]:
    """Choose thresholds on validation clips and judge test clips, by kind of close negative.

    Args:
        score: Clips -> scores, higher = the keyword.
        validation: Clips for the thresholds.
        test: Clips to judge.

    Returns:
        What `evaluate_limited_negatives` says, by kind. As many far clips as close ones count.
    """
    sides = []
    for group in (validation, test):
        scores = Group(*(np.asarray(score(clips), dtype=np.float64) for clips in group))
        close = {
            "both": np.concatenate([scores.close_word, scores.half]),
            "close word": scores.close_word,
            "half the word": scores.half,
        }
        # As many far ones as close ones: without, a word of the first kind would count for little.
        sides.append(
            {
                kind: GroupScores(scores.normal, scores.far[: len(close[kind])], close[kind])
                for kind in wake_word_page.KINDS
            }
        )
    return {
        kind: judged(sides[0][kind], sides[1][kind], wake_word_page.FPRS)
        for kind in wake_word_page.KINDS
    }


@functools.cache
def _data(directory: Path) -> tuple[speech.Clips, speech.Floats]:
    clips = speech.load_clips(directory)
    return clips, speech.filter_bank(clips.mfcc)


def cell(
    directory: Path,
    name: str,
    keyword: str,
    seed: int,
    steps: int,
    on_test: bool = True,
) -> dict[str, Any]:
    """Train a method and judge it; on validation clips alone where a setting is to be chosen."""
    method = METHODS[name]
    parts = split(*_data(directory), keyword, seed)
    normal, far = parts.train_normal, parts.train_far
    score: Callable[[Tensor], Any]
    if method is None:
        model = deep_sad.DeepSAD(
            normal.numpy(),
            far.numpy(),
            steps=steps,
            batch_size=BATCH_SIZE,
            learning_rate=DEEP_SAD_RATE,
            seed=seed,
        )
        score = lambda clips: model.score(clips.numpy())  # noqa: E731
    else:
        trainer = train(
            speech.chrono_lstm(normal.shape[2], normal.shape[1], seed),
            method,
            normal,
            far,
            steps=steps,
            batch_size=BATCH_SIZE,
            learning_rate=LEARNING_RATE,
            seed=seed,
            autocast_dtype=speech.autocast_dtype(steps == STEPS),
        )
        score = functools.partial(trainer.score, batch_size=256)
    tested = parts.test if on_test else parts.validation
    return {
        "by_kind": judge(score, parts.validation, tested),
        "train": [len(normal), len(far)],
        "test": [len(group) for group in tested],
    }


def cells(options: Options) -> dict[str, Compute]:
    """List the cells, `method/keyword/seed`; DeepSAD where DeepOD is installed."""
    keywords = list(CLOSE_WORDS)[:1] if options.quick else list(CLOSE_WORDS)
    return {
        f"{name}/{keyword}/{seed}": functools.partial(
            cell, options.data(), name, keyword, seed, 2 if options.quick else STEPS
        )
        for seed in options.seeds
        for name, method in METHODS.items()
        if method is not None or deep_sad.available()
        for keyword in keywords
    }


def settings(options: Options) -> dict[str, Any]:
    """Say what the cells depend on."""
    return {
        "methods": {name: method and of_method(method) for name, method in METHODS.items()},
        "close words": CLOSE_WORDS,
        "steps": STEPS,
        "batch size": BATCH_SIZE,
        "learning rate": LEARNING_RATE,
        "DeepSAD's": DEEP_SAD_RATE,
        "negatives per clip": NEGATIVES_PER_CLIP,
        "floor": speech.FLOOR,
        "coarse": speech.COARSE,
    }


EXPERIMENT = Experiment(
    name="wake-word",
    title="Section 5.2, figures 3 and 9: wake words with limited negatives (recall)",
    shows=("figure3", "figure9"),
    cells=cells,
    settings=settings,
    section=wake_word_page.section,
    draw=wake_word_page.draw,
)
