"""Chunks of the Bonn EEG, and how an LSTM learns them by DROCC."""

from __future__ import annotations

import functools
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from benchmarks.paper.speech import chrono_
from drocc_ext import DROCCLoss, SearchConfig, Trainer, suggest_radius
from drocc_ext.demo.methods import fit_with_linear_decay
from drocc_ext.estimators._core import Standardizer
from drocc_ext.metrics import roc_auc
from drocc_ext.models.networks import LSTMClassifier
from drocc_ext.training.callbacks import Callback

Rows = npt.NDArray[np.float64]

CHUNK = 178
SPLITS = ("chunks", "recordings")
HIDDEN = 128
GAMMA = 2.0
CLIP_NORM = 1.0
POINTS = 10  # of the curves
_CURVE_ROWS = 500
_HELD_OUT_ROWS = 256
_RADIUS_ROWS = 1000


@dataclass(frozen=True)
class Split:
    """Standardized rows: `train` `[N, 178]` normal, `test` `[M, 178]`; `normal` labels the test."""

    train: Rows
    test: Rows
    normal: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Setting:
    """How to start an LSTM and train it.

    Attributes:
        forget_bias: Of all units; "chrono" for the logarithms of times drawn uniformly from 1 to
            the length of the series, which are subtracted from the input gate (Tallec and Ollivier,
            2018); None for torch's start of all weights.
        input_scale: Standard deviation of the input's weights; None for torch's.
        orthogonal: Start recurrent weights as orthogonal matrices, one a gate.
        mean_pooling: The linear layer sees the mean of the hidden states, not the last one.
        radius: None for `suggest_radius`.
        num_steps: Of the search, 0.1 radii each; 0 is DROCC-Rand.
        mu: Weight of the adversarial term.
        learning_rate: Of Adam at the start; it falls linearly to 0.
        batch_size: Rows of a batch.
        iterations: Batches in all.
    """

    forget_bias: float | str | None = "chrono"
    input_scale: float | None = 1.0
    orthogonal: bool = True
    mean_pooling: bool = False
    radius: float | None = None
    num_steps: int = 5
    mu: float = 1.0
    learning_rate: float = 3e-3
    batch_size: int = 64
    iterations: int = 200


class MeanLSTM(LSTMClassifier):
    """An LSTM whose linear layer sees the mean of the hidden states: [B, T, in] -> [B, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(x)
        logits: Tensor = self.logit(states.mean(1))
        return logits


def load(directory: Path) -> tuple[Rows, npt.NDArray[np.bool_]]:
    """Read the recordings and cut them into chunks.

    Args:
        directory: Where `bonn_eeg.npz` is.

    Returns:
        Chunks `[R, C, 178]` of R recordings, and whether each recording is of a seizure, `[R]`.

    Raises:
        ValueError: If the file is missing or not of this kind.
    """
    path = directory / "bonn_eeg.npz"
    try:
        with np.load(path) as data:
            recordings, sets = data["recordings"], data["set_name"]
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"seizure: {path} must hold recordings and set_name, got {error}"
        ) from None
    if recordings.ndim != 2 or recordings.shape[1] < CHUNK or sets.shape != recordings.shape[:1]:
        raise ValueError(
            f"seizure: {path} must hold recordings of at least {CHUNK} samples and a set_name for "
            f"each, got {recordings.shape} and {sets.shape}"
        )
    seizure = sets == "S"
    if not 0 < seizure.sum() < len(seizure) / 2:
        raise ValueError(
            f"seizure: {path} must hold recordings of set S, and more of the others, got "
            f"{seizure.sum()} of S in {len(seizure)}"
        )
    count = recordings.shape[1] // CHUNK
    chunks = recordings[:, : count * CHUNK].astype(np.float64)
    return chunks.reshape(len(recordings), count, CHUNK), seizure


def split(chunks: Rows, seizure: npt.NDArray[np.bool_], kind: str, seed: int) -> Split:
    """Test on all seizures and as much else, train on the rest, as in the paper.

    Args:
        chunks: `[R, C, 178]`.
        seizure: `[R]`.
        kind: What is drawn for testing: "chunks", or whole "recordings", so that none is on both
            sides.
        seed: Draws.

    Returns:
        The rows, scaled by the training part (`Standardizer`: clipped to +-10 deviations).

    Raises:
        ValueError: If there is no such kind.
    """
    if kind not in SPLITS:
        raise ValueError(f"seizure: kind must be one of {', '.join(SPLITS)}, got {kind!r}")
    others = chunks[~seizure] if kind == "recordings" else chunks[~seizure].reshape(-1, 1, CHUNK)
    count = int(seizure.sum()) * chunks.shape[1] // others.shape[1]
    order = np.random.default_rng(seed).permutation(len(others))
    train = others[order[count:]].reshape(-1, CHUNK)
    held = others[order[:count]].reshape(-1, CHUNK)
    scaler = Standardizer.fit("seizure", train)
    test = np.concatenate([held, chunks[seizure].reshape(-1, CHUNK)])
    return Split(scaler.transform(train), scaler.transform(test), np.arange(len(test)) < len(held))


@functools.lru_cache(maxsize=1)
def loaded_split(directory: Path, kind: str, seed: int) -> Split:
    """Load and split; cells of one process that follow each other share it."""
    return split(*load(directory), kind, seed)


def start(setting: Setting, generator: torch.Generator, steps: int = CHUNK) -> LSTMClassifier:
    """Make a network.

    With torch's own start a unit forgets half of its memory at every step, and an input of one
    column is a tenth of its noise: the network sees the last few samples only, which the search
    can turn into whatever it likes, and its loss stays at 2 ln 2.

    Args:
        setting: Its start.
        generator: Draws the weights.
        steps: Length of the series.

    Returns:
        The network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        model = (MeanLSTM if setting.mean_pooling else LSTMClassifier)(1, HIDDEN)
        with torch.no_grad():
            lstm = model.lstm
            if setting.orthogonal:
                for gate in lstm.weight_hh_l0.split(HIDDEN):
                    nn.init.orthogonal_(gate)
            if setting.input_scale is not None:
                lstm.weight_ih_l0.normal_(0.0, setting.input_scale)
            if setting.forget_bias is not None:
                chrono_(lstm, steps)
                if setting.forget_bias != "chrono":
                    lstm.bias_ih_l0.zero_()
                    lstm.bias_ih_l0[HIDDEN : 2 * HIDDEN] = float(setting.forget_bias)
    return model


def fit(setting: Setting, data: Split, seed: int) -> tuple[Trainer, float, Curve]:
    """Train by DROCC.

    Args:
        setting: How.
        data: Its training rows; the test rows only draw the curve.
        seed: Of weights, order and noise.

    Returns:
        The trainer with its model, the radius, and the curve.
    """
    x = torch.from_numpy(data.train.astype(np.float32))
    radius = setting.radius
    if radius is None:
        radius = suggest_radius(data.train, max_rows=_RADIUS_ROWS)
    model = start(setting, torch.Generator().manual_seed(seed), x.shape[1])
    search = SearchConfig.from_relative_step(radius, num_steps=setting.num_steps, gamma=GAMMA)
    curve = Curve(setting.iterations, data)
    trainer = fit_with_linear_decay(
        model,
        DROCCLoss(search, mu=setting.mu),
        torch.optim.Adam(model.parameters(), setting.learning_rate),
        x[..., None],
        steps=setting.iterations,
        batch_size=setting.batch_size,
        seed=seed,
        clip_norm=CLIP_NORM,
        callbacks=[curve],
    )
    return trainer, radius, curve


class Curve(Callback):
    """Training loss and AUC of some test rows, `POINTS` times; nothing is chosen by it."""

    def __init__(self, iterations: int, data: Split) -> None:
        some = np.linspace(0, len(data.test) - 1, min(2 * _CURVE_ROWS, len(data.test))).astype(int)
        self.rows, self.normal = series(data.test[some]), data.normal[some]
        self.stops = {math.ceil(iterations * (at + 1) / POINTS) for at in range(POINTS)}
        self.losses: list[float] = []
        self.points: list[dict[str, float]] = []

    def on_batch_end(self, trainer: Trainer, step: int, losses: dict[str, float]) -> None:
        self.losses.append(losses["loss"])
        if step in self.stops:
            auc = roc_auc(trainer.score(self.rows, 256), self.normal)
            self.points.append({"step": step, "loss": _mean(self.losses), "auc": round(auc, 5)})
            self.losses = []


def held_out_loss(trainer: Trainer, rows: Rows, radius: float, num_steps: int) -> dict[str, float]:
    """Measure the objective on normal rows that were not trained on; it needs no anomaly.

    Args:
        trainer: Trained.
        rows: `[N, 178]`; the first 256 are used.
        radius: Of the search.
        num_steps: Of the search.

    Returns:
        "clean" and "adversarial", the mean losses of rows and of adversarial points.
    """
    loss = DROCCLoss(SearchConfig.from_relative_step(radius, num_steps=num_steps, gamma=GAMMA))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        terms = loss.eval()(trainer.model, series(rows[:_HELD_OUT_ROWS]), generator=generator)
    return {name: round(float(getattr(terms, name)), 4) for name in ("clean", "adversarial")}


def series(rows: Rows) -> Tensor:
    """Make `[N, 178, 1]` float32 of rows `[N, 178]`."""
    return torch.from_numpy(rows.astype(np.float32))[..., None]


def _mean(values: list[float]) -> float:
    return round(float(np.mean(values)), 5) if values else 0.0


def normal_rows(data: Split) -> Rows:
    """Return the test rows that are normal."""
    kept: Any = data.test[data.normal]
    return np.asarray(kept)
