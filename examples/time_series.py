"""A time series: windows of a signal, an LSTM, and where the signal is not as usual.

`python examples/time_series.py`
"""

from __future__ import annotations

import numpy as np
import torch

from drocc_ext import DROCCLoss, SearchConfig, Trainer, networks, suggest_radius

WINDOW = 32


def signal(rng: np.random.Generator, length: int) -> np.ndarray:
    """A wave of a wandering period around 12 samples, with noise."""
    phase = np.cumsum(2 * np.pi / (12 + np.cumsum(rng.normal(0, 0.02, length))))
    return np.sin(phase) + rng.normal(0, 0.05, length)


def windows(series: np.ndarray, every: int) -> torch.Tensor:
    """Cut `[N, WINDOW, 1]`."""
    starts = range(0, len(series) - WINDOW + 1, every)
    cut = np.stack([series[start : start + WINDOW] for start in starts])
    return torch.from_numpy(cut).float()[:, :, None]


def main() -> None:
    rng = np.random.default_rng(0)
    train = windows(signal(rng, 4000), every=4)
    test = signal(rng, 2000)
    test[1200:1300] = signal(rng, 200)[::2]  # twice as fast for a while

    torch.manual_seed(0)
    model = networks.LSTMClassifier(1, hidden=32)
    search = SearchConfig.from_relative_step(suggest_radius(train))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    trainer = Trainer(model, DROCCLoss(search), optimizer, progress=False)
    trainer.fit(train, epochs=12, batch_size=64, seed=0)

    scores = -trainer.score(windows(test, every=1)).numpy()  # high = anomalous
    worst = int(scores.argmax())
    fast = np.zeros(len(scores), bool)
    fast[1200 : 1300 - WINDOW] = True  # windows within the fast part
    usual = np.ones(len(scores), bool)
    usual[1200 - WINDOW : 1300] = False
    print(f"the most anomalous window begins at {worst}; the signal is fast from 1200 to 1300")
    above = (scores[fast] > np.quantile(scores[usual], 0.99)).mean()
    print(f"{above:.0%} of the fast windows are above 99 % of the usual ones")


if __name__ == "__main__":
    main()
