"""A table: train on normal rows, score others, ask why, save and load.

`python examples/tabular.py`
"""

from __future__ import annotations

import tempfile

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score

from drocc_ext import DROCC


def main() -> None:
    data = load_breast_cancer(as_frame=True)
    benign = data.target == 1
    normal, malignant = data.data[benign], data.data[~benign]
    train, fresh = normal[:250], normal[250:]

    detector = DROCC(contamination=0.05, random_state=0).fit(train)

    scores = [detector.decision_function(rows) for rows in (fresh, malignant)]  # high = anomalous
    truth = np.repeat([0, 1], [len(fresh), len(malignant)])
    print(f"AUC, malignant against benign: {roc_auc_score(truth, np.concatenate(scores)):.3f}")
    print(f"flagged: {detector.predict(fresh).mean():.0%} of the fresh benign rows (asked for 5 %)")
    print(f"         {detector.predict(malignant).mean():.0%} of the malignant rows")

    row = malignant.iloc[[0]]
    print(f"p-value of the first malignant row: {detector.p_value(row)[0]:.4f}")
    shares = detector.explain(row)[0]
    for column in np.argsort(-shares)[:3]:
        print(f"  {data.feature_names[column]:<24} adds {shares[column]:.2f} to its score")

    with tempfile.TemporaryDirectory() as directory:
        detector.save(directory)  # weights and JSON, no pickle
        again = DROCC.load(directory)
    assert np.array_equal(again.decision_function(malignant), scores[1])
    print("saved and loaded: the same scores")


if __name__ == "__main__":
    main()
