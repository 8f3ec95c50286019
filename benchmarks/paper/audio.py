"""Table 3, audio: each command word against all other words, speakers apart, AUC.

The paper's word "Marvin" has eleven clips in the test set that is read here, so each of the ten
command words takes its place.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.paper import baselines, speech
from benchmarks.paper.experiment import Compute, Content, Experiment, Options, by_seed, summary
from benchmarks.paper.hyperparameters import hyperparameters
from benchmarks.paper.pages import filled
from drocc_ext import DROCCLoss, SearchConfig, Trainer, suggest_radius
from drocc_ext.demo.methods import fit_with_linear_decay
from drocc_ext.demo.reporting import markdown_table
from drocc_ext.metrics import roc_auc


@dataclass(frozen=True)
class Training:
    """How DROCC is trained on a kind of features; a radius of None is `suggest_radius`."""

    steps: int
    learning_rate: float
    step_size: float  # of the search, in radii
    radius: float | None = None
    seeds: int | None = None  # the first so many only
    batch_size: int = 64
    gamma: float = 2.0
    mu: float = 1.0


COARSE, BANK, MFCC = "coarse filter bank", "filter bank", "MFCC"
FEATURES = {
    COARSE: Training(steps=300, learning_rate=2e-3, step_size=0.2),
    BANK: Training(steps=40, learning_rate=5e-3, step_size=0.1, radius=40.0, seeds=2),
    MFCC: Training(steps=40, learning_rate=5e-3, step_size=0.1, radius=40.0, seeds=2),
}
DROCC = ("DROCC", "DROCC-Rand")
METHODS = (*DROCC, "kNN", *baselines.DEEP)
BASELINE_EPOCHS = 100
# AUC of "Marvin" on the full data set, Table 3.
PAPER = {
    "DROCC": "70.21 +- 1.1",
    "kNN": "65.81",
    "autoencoder": "51.49 +- 1.9",
    "DeepSVDD": "68.38 +- 1.8",
}


@functools.cache
def _data(directory: Path, features: str) -> tuple[speech.Clips, speech.Floats]:
    clips = speech.load_clips(directory)
    if features == MFCC:
        return clips, clips.mfcc
    energies = speech.filter_bank(clips.mfcc)
    return clips, speech.coarse(energies) if features == COARSE else energies


def split(
    clips: speech.Clips, features: speech.Floats, word: str, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Make the parts of one word, standardized by its training clips.

    Args:
        clips: All clips.
        features: Theirs, `[N, T, C]`.
        word: The normal one.
        seed: Seed of the split.

    Returns:
        Training clips of the word; test clips of it and of all other words; their labels, 1 = the
        word. Background noise is no word and in neither.

    Raises:
        ValueError: If a part has no clip of the word, or the test part no other.
    """
    parts = speech.split_speakers(clips, seed)
    normal = clips.word == word
    train, test = parts.train & normal, parts.test & (clips.word != speech.SILENCE)
    counts = train.sum(), (test & normal).sum(), (test & ~normal).sum()
    if min(counts) == 0:
        raise ValueError(
            f"split: {word!r} must have clips for training and testing and others to be told "
            f"from, got {', '.join(map(str, counts))}"
        )
    standard = speech.standard_of(features[train])
    labels = torch.from_numpy(normal[test])
    return standard(features[train]), standard(features[test]), labels


def fit(
    train: Tensor, training: Training, *, ascent: bool, seed: int, steps: int
) -> tuple[Trainer, float]:
    """Train by Adam, its rate falling linearly to 0, in bfloat16; the last weights stay.

    Args:
        train: Clips of the word, `[N, T, C]`.
        training: How.
        ascent: Whether the search takes steps, or is DROCC-Rand.
        seed: Seed of weights, shuffling and noise.
        steps: Optimizer steps.

    Returns:
        The trainer, and the radius.
    """
    radius = suggest_radius(train) if training.radius is None else training.radius
    network = speech.chrono_lstm(train.shape[2], train.shape[1], seed)
    search = SearchConfig.from_relative_step(
        radius,
        step_size=training.step_size,
        num_steps=5 if ascent else 0,
        gamma=training.gamma,
    )
    trainer = fit_with_linear_decay(
        network,
        DROCCLoss(search, training.mu),
        torch.optim.Adam(network.parameters(), training.learning_rate),
        train,
        steps=steps,
        batch_size=training.batch_size,
        seed=seed,
        autocast_dtype=speech.autocast_dtype(steps == training.steps),
    )
    return trainer, radius


def _cell(
    directory: Path, features: str, method: str, word: str, seed: int, quick: bool
) -> dict[str, Any]:
    train, test, labels = split(*_data(directory, features), word, seed)
    sizes = {"train": len(train), "test": len(test), "test normal": int(labels.sum())}
    if method in DROCC:
        training, ascent = FEATURES[features], method == "DROCC"
        steps = 2 if quick else training.steps
        trainer, radius = fit(train, training, ascent=ascent, seed=seed, steps=steps)
        return {"auc": roc_auc(trainer.score(test, 256), labels), "radius": radius, **sizes}
    rows, others = (part.flatten(1).double().numpy() for part in (train, test))
    scores = baselines.scores(method, rows, others, seed, 1 if quick else BASELINE_EPOCHS)
    return {"auc": roc_auc(-scores, labels), **sizes}


def cells(options: Options) -> dict[str, Compute]:
    """List the cells, `features/method/word/seed`; quick ones are of one word."""
    return {
        f"{features}/{method}/{word}/{seed}": functools.partial(
            _cell, options.data(), features, method, word, seed, options.quick
        )
        for features, training in FEATURES.items()
        for seed in options.seeds[: training.seeds]
        for method in METHODS
        for word in (speech.WORDS[:1] if options.quick else speech.WORDS)
    }


def settings(options: Options) -> dict[str, Any]:
    """Say what the cells depend on."""
    return {
        "features": {name: asdict(training) for name, training in FEATURES.items()},
        "baseline epochs": BASELINE_EPOCHS,
        "floor": speech.FLOOR,
        "coarse": speech.COARSE,
        "split": [speech.TRAIN_SHARE, speech.VALIDATION_SHARE],
    }


def mean_over_words(content: Content, features: str, method: str) -> list[float]:
    """Take the mean over the words, for each seed that has them all."""
    words = [word for word in speech.WORDS if _of(content, features, method, word)]
    values = [_of(content, features, method, word) for word in words]
    seeds = min(map(len, values), default=0)
    return [sum(of[at] for of in values) / len(values) for at in range(seeds)]


def _of(content: Content, features: str, method: str, word: str) -> list[float]:
    return by_seed(content, f"{features}/{method}/{word}", "auc")


def section(content: Content) -> str:
    """Write the part of the page."""
    settings = content["settings"]
    shown = [name for name in settings["features"] if mean_over_words(content, name, "kNN")]
    columns = []
    for name in shown:
        count = len(mean_over_words(content, name, "kNN"))
        columns.append(f"{name} ({count} seed{'s' if count > 1 else ''})")
    means = [
        [
            method,
            PAPER.get(method, "-"),
            *(summary(mean_over_words(content, name, method)) for name in shown),
        ]
        for method in METHODS
    ]
    by_word = [
        [word, *(summary(_of(content, shown[0], method, word)) for method in METHODS)]
        for word in speech.WORDS
        if _of(content, shown[0], "kNN", word)
    ]
    return filled(
        "audio",
        example=next(iter(content["cells"].values())),
        floor=speech.FLOOR,
        coarse=speech.COARSE,
        means=markdown_table(["", "paper, Marvin", *columns], means),
        features=shown[0],
        by_word=markdown_table(["", *METHODS], by_word),
        outcome=_outcome(content, shown[0]),
        trainings="; ".join(_training(content, name) for name in shown),
        paper=hyperparameters()["time_series"]["paper"]["audio commands"],
        epochs=settings["baseline epochs"],
    )


def _training(content: Content, features: str) -> str:
    how = content["settings"]["features"][features]
    radii = [
        cell["radius"]
        for name, cell in content["cells"].items()
        if name.startswith(f"{features}/DROCC/")
    ]
    suggested = " on average (`suggest_radius`)" if how["radius"] is None else ""
    return (
        f"{features}: {how['steps']} steps, learning rate {how['learning_rate']:g}, radius "
        f"{sum(radii) / len(radii):.1f}{suggested}, 5 steps of {how['step_size']:g} radii"
    )


def _outcome(content: Content, features: str) -> str:
    means = {
        method: 100 * sum(of) / len(of)
        for method in METHODS
        if (of := mean_over_words(content, features, method))
    }
    ours = means.pop("DROCC")
    others = ", ".join(
        f"{abs(ours - mean):.1f} {'above' if ours >= mean else 'below'} {method}"
        for method, mean in means.items()
    )
    return f"{ours:.1f}, which is {others}"


EXPERIMENT = Experiment(
    name="audio",
    title="Table 3, audio keywords (AUC)",
    shows=("table3",),
    cells=cells,
    settings=settings,
    section=section,
)
