"""DeepSAD by DeepOD, where that is installed.

DeepOD asks for a torch of 2022, so it is no extra of this project. It runs beside a current one:
`pip install --no-deps --target DIR deepod`, and DIR in PYTHONPATH.
"""

from __future__ import annotations

import importlib.util

import numpy as np
import torch

from benchmarks.paper.baselines import Rows
from benchmarks.paper.speech import Floats, chrono_

HIDDEN = 128


def available() -> bool:
    """Tell whether DeepOD is installed."""
    return importlib.util.find_spec("deepod") is not None


class DeepSAD:
    """DeepSAD with an LSTM of 128 units that starts as those it is compared with.

    The library's own `fit` and `decision_function` cut a running series into windows. A clip is
    one window, so their parts are called instead.

    Args:
        normal: Clips `[N, T, C]`.
        negatives: Clips `[M, T, C]`; batches hold as many of them as of normal ones on average.
        steps: Optimizer steps at least; the library counts in epochs.
        batch_size: Clips of a step.
        learning_rate: Of Adam, constant.
        seed: Seed of weights and batches; this sets the global generators.
    """

    def __init__(
        self,
        normal: Floats,
        negatives: Floats,
        *,
        steps: int,
        batch_size: int,
        learning_rate: float,
        seed: int,
    ) -> None:
        from deepod.models.time_series import DeepSADTS

        clips = np.concatenate([normal, negatives])
        labels = (np.arange(len(clips)) >= len(normal)).astype(int)
        self.model = DeepSADTS(
            epochs=-(-steps // -(-len(clips) // batch_size)),
            batch_size=batch_size,
            lr=learning_rate,
            network="LSTM",
            hidden_dims=str(HIDDEN),
            rep_dim=HIDDEN,
            bias=True,
            seq_len=clips.shape[1],
            device="cpu",
            verbose=0,
            random_state=seed,
        )
        self.model.n_samples, _, self.model.n_features = clips.shape
        loader, network, criterion = self.model.training_prepare(clips, labels)
        chrono_(network.lstm, clips.shape[1])
        criterion.c = self.model.c = self.model._set_c(network, loader)
        self.model.train_loader, self.model.net, self.model.criterion = loader, network, criterion
        self.model._training()

    def score(self, clips: Floats) -> Rows:
        """Score clips `[N, T, C]`: `[N]`, higher = more normal."""
        self.model.test_loader = self.model.inference_prepare(torch.from_numpy(clips))
        _, distances = self.model._inference()
        return -np.asarray(distances, dtype=np.float64)
