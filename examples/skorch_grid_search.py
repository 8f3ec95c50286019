"""skorch: the radius and the weight of the search chosen by scikit-learn's grid search.

`python examples/skorch_grid_search.py`
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, PredefinedSplit

from drocc_ext import networks

try:
    import skorch  # noqa: F401
except ImportError:
    sys.exit("this example needs skorch: pip install skorch")

from drocc_ext.integrations.skorch import DROCCNet


def main() -> None:
    torch.manual_seed(0)
    pixels, digit = load_digits(return_X_y=True)
    pixels = (pixels / 8 - 1).astype(np.float32)
    normal = digit == 3
    # Trained on the first 120 threes alone; the grid is judged by other threes and 8 known others.
    others = np.flatnonzero(~normal)
    known, test = others[:8], others[8:]
    threes = np.flatnonzero(normal)
    train, judge, fresh = threes[:120], threes[120:140], threes[140:]
    chosen = np.concatenate([train, judge, known])
    fold = PredefinedSplit(np.repeat([-1, 0, 0], [len(train), len(judge), len(known)]))
    net = DROCCNet(
        networks.MLP,
        module__in_features=64,
        optimizer=torch.optim.Adam,
        lr=1e-3,
        max_epochs=40,
        batch_size=64,
        verbose=0,
    )
    grid = {"criterion__search__radius": [0.5, 2.0, 4.0], "criterion__mu": [0.5, 2.0]}
    search = GridSearchCV(net, grid, cv=fold, scoring="roc_auc", refit=False)
    search.fit(pixels[chosen], normal[chosen].astype(np.int64))
    print(f"best of {len(search.cv_results_['params'])}: {search.best_params_}")

    best = net.set_params(**search.best_params_).fit(pixels[train])  # all rows are normal
    scores = best.decision_function(pixels[np.concatenate([fresh, test])])
    better = (scores[: len(fresh), None] > scores[None, len(fresh) :]).mean()
    print(f"AUC on digits that chose nothing: {better:.3f}")


if __name__ == "__main__":
    main()
