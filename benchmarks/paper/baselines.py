"""The baselines of the paper's tables: calls of scikit-learn and PyOD, no code of our own."""

from __future__ import annotations

import contextlib
import io
import random
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Rows = npt.NDArray[np.float64]

CLASSICAL = ("OC-SVM", "LOF", "isolation forest", "kNN")
DEEP = ("autoencoder", "DeepSVDD")


def scores(
    name: str,
    train: Rows,
    test: Rows,
    seed: int,
    epochs: int = 100,
    hidden: Sequence[int] | None = None,
) -> Rows:
    """Fit a baseline on normal rows and score others.

    Args:
        name: One of `CLASSICAL` or `DEEP`.
        train: `[N, D]`, preprocessed; one hidden layer of 128 units for the deep ones, as in the
            paper's tabular experiments.
        test: `[M, D]`, preprocessed alike.
        seed: Seed of those that draw random numbers; global generators are left as they were.
        epochs: Epochs of the deep ones.
        hidden: Units of the deep ones' layers up to the code; None for 128, then DeepSVDD's code of
            32.

    Returns:
        `[M]`, higher = more anomalous.

    Raises:
        ValueError: If there is no such baseline.
    """
    with _seeded(seed), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        detector = _detector(name, train.shape[1], len(train), seed, epochs, hidden)
        detector.fit(train)
        return np.asarray(detector.decision_function(test), dtype=np.float64)


def _detector(
    name: str,
    features: int,
    rows: int,
    seed: int,
    epochs: int,
    hidden: Sequence[int] | None,
) -> Any:
    # The rows are preprocessed already, and what a detector takes for outliers among the training
    # rows is not looked at: PyOD's contamination decides nothing here.
    batch = min(256, rows)
    if name == "OC-SVM":
        from pyod.models.ocsvm import OCSVM

        return OCSVM()
    if name == "LOF":
        from pyod.models.lof import LOF

        return LOF()
    if name == "isolation forest":
        from pyod.models.iforest import IForest

        return IForest(random_state=seed)
    if name == "kNN":
        from pyod.models.knn import KNN

        return KNN()
    if name == "autoencoder":
        from pyod.models.auto_encoder import AutoEncoder

        return AutoEncoder(
            preprocessing=False,
            hidden_neuron_list=list(hidden or [128]),
            epoch_num=epochs,
            batch_size=batch,
            random_state=seed,
            verbose=0,
        )
    if name == "DeepSVDD":
        from pyod.models.deep_svdd import DeepSVDD

        return DeepSVDD(
            n_features=features,
            preprocessing=False,
            hidden_neurons=list(hidden or [128, 32]),
            epochs=epochs,
            batch_size=batch,
            random_state=seed,
            verbose=0,
        )
    raise ValueError(f"scores: name must be one of {', '.join(CLASSICAL + DEEP)}, got {name!r}")


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    states = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            yield
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])
