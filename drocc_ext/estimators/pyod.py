"""The estimator as one of PyOD's own: `isinstance(DROCC(), pyod.models.base.BaseDetector)`.

This module needs PyOD; nothing else in the package imports it.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import numpy.typing as npt

from drocc_ext.estimators._core import Floats
from drocc_ext.estimators._snapshot import of_one_fit, snapshot
from drocc_ext.estimators.drocc import DROCC as PlainDROCC

try:
    from pyod.models.base import BaseDetector
except ImportError as _error:
    raise ImportError(
        f"drocc_ext.estimators.pyod needs PyOD, pip install drocc-ext[pyod] ({_error})"
    ) from _error

__all__ = ["DROCC"]


class DROCC(PlainDROCC, BaseDetector):  # type: ignore[misc]
    """`drocc_ext.DROCC` with all methods of PyOD's detectors, for code that asks for one.

    Parameters, attributes and scores are those of `drocc_ext.DROCC`. PyOD's ensembles and
    combinations (LSCP, SUOD, FeatureBagging) take it as a base detector.

    The methods that speak of confidence and rejection are PyOD's. They ask how often a threshold at
    the share `contamination` of the *training scores* would label a row in the same way, whereas
    `threshold_` itself comes from rows not trained on, so that the two may disagree about rows
    close to it. For `contamination="auto"` they take the share that was labelled. A thresholder
    object of PyThresh is refused as `contamination`.
    """

    _classes = 2

    @of_one_fit
    def predict(  # type: ignore[override]
        self, X: Any, return_confidence: bool = False
    ) -> npt.NDArray[np.int64] | tuple[npt.NDArray[np.int64], Floats]:
        """Label rows.

        Args:
            X: Array-like, DataFrame or tensor `[N, D]`.
            return_confidence: Whether to give `predict_confidence` too.

        Returns:
            int64 `[N]`, 1 = anomalous, 0 = normal; with confidence a tuple of both.
        """
        labels = super().predict(X)
        return (labels, self.predict_confidence(X)) if return_confidence else labels

    @of_one_fit
    def predict_proba(  # type: ignore[override]
        self, X: Any, method: str = "linear", return_confidence: bool = False
    ) -> Floats | tuple[Floats, Floats]:
        """Map scores to [0, 1], see `drocc_ext.DROCC.predict_proba`.

        Args:
            X: Array-like, DataFrame or tensor `[N, D]`.
            method: "linear" or "unify".
            return_confidence: Whether to give `predict_confidence` too.

        Returns:
            float64 `[N, 2]`: normal, anomalous; with confidence a tuple of both.

        Raises:
            ValueError: If method is unknown.
        """
        shares = super().predict_proba(X, method)
        return (shares, self.predict_confidence(X)) if return_confidence else shares

    @of_one_fit
    def predict_confidence(self, X: Any) -> Floats:
        """Say how sure the labels of rows are.

        Args:
            X: Array-like, DataFrame or tensor `[N, D]`.

        Returns:
            float64 `[N]` in [0, 1]: the chance that training on other rows from the same source
            gives a row the same label (Perini et al., 2020).
        """
        confidence: Floats = BaseDetector.predict_confidence(self._with_share(), X)
        return confidence

    @of_one_fit
    def compute_rejection_stats(self, *args: Any, **settings: Any) -> tuple[float, float, float]:
        """Estimate what rejecting unsure predictions costs, see PyOD's `BaseDetector`.

        Args:
            args: As there.
            settings: As there.

        Returns:
            Expected share of rejected rows, an upper bound of it, and one of the cost.
        """
        stats = BaseDetector.compute_rejection_stats(self._with_share(), *args, **settings)
        expected, bound, cost = map(float, stats)
        return expected, bound, cost

    def predict_with_rejection(self, X: Any, *args: Any, **settings: Any) -> Any:
        """Label rows, -2 where the confidence is too low, see PyOD's `BaseDetector`.

        Args:
            X: Array-like, DataFrame or tensor `[N, D]`.
            args: As there.
            settings: As there.

        Returns:
            int64 `[N]` of 0, 1 and -2; with `return_stats=True` a tuple of these and the list that
            `compute_rejection_stats` gives.
        """
        twin = snapshot(self)._with_share()
        labels = BaseDetector.predict_with_rejection(twin, X, *args, **settings)
        self.rejection_threshold_: float = twin.rejection_threshold_
        return labels

    def _with_share(self) -> DROCC:
        """Return a view of the detector whose contamination is a number."""
        if self.contamination != "auto":
            return self
        labels = self.labels_
        twin = copy.copy(self)
        twin._chosen_threshold = self.threshold_
        twin.contamination = float(np.clip(labels.mean(), 1 / len(labels), 0.5))
        return twin

    # PyOD keeps these two for its own "unify".
    @property
    def _mu(self) -> float:
        return float(self.decision_scores_.mean())

    @property
    def _sigma(self) -> float:
        return float(self.decision_scores_.std())
