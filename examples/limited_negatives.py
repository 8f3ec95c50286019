"""A few known anomalies beside the normal rows, in a pipeline that scales both.

`python examples/limited_negatives.py`
"""

from __future__ import annotations

import numpy as np
import sklearn
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from drocc_ext import DROCC


def rows(rng: np.random.Generator, count: int, displacement: float) -> np.ndarray:
    """A sine in two of ten columns, the others are noise; displaced points are anomalous."""
    x = rng.uniform(-3, 3, count)
    side = rng.choice([-1.0, 1.0], count)
    y = np.sin(x) + rng.normal(0, 0.05, count) + displacement * side
    return np.column_stack([x, y, rng.normal(size=(count, 8))])


def main() -> None:
    rng = np.random.default_rng(0)
    train, known = rows(rng, 1000, 0.0), rows(rng, 50, 1.0)
    test = np.concatenate([rows(rng, 500, 0.0), rows(rng, 500, 0.5)])  # closer than the known ones
    truth = np.repeat([0, 1], 500)

    # The pipeline's scaler transforms X_negative too, and hands it on to `fit`.
    sklearn.set_config(enable_metadata_routing=True)
    for title, metric, negatives in (
        ("DROCC, no anomalies known", "l2", None),
        ("DROCC-OE, 50 known", "l2", known),
        ("DROCC-LF, 50 known", "mahalanobis", known),
    ):
        detector = DROCC(metric=metric, noise_scale=0.3, random_state=0)
        detector.set_fit_request(X_negative=True)
        steps = [("scale", StandardScaler()), ("detect", detector)]
        pipeline = Pipeline(steps, transform_input=["X_negative"])
        given = {} if negatives is None else {"X_negative": negatives}
        scores = pipeline.fit(train, **given).decision_function(test)
        print(f"{title:<26} AUC {roc_auc_score(truth, scores):.3f}")


if __name__ == "__main__":
    main()
