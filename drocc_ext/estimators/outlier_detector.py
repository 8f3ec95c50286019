"""The estimator in scikit-learn's convention."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import OutlierMixin
from sklearn.utils.validation import check_is_fitted

from drocc_ext.estimators._core import BaseDROCC, Floats
from drocc_ext.estimators._snapshot import of_one_fit
from drocc_ext.estimators.inputs import as_threshold, check_contamination


class DROCCOutlierDetector(OutlierMixin, BaseDROCC):  # type: ignore[misc]
    """DROCC for tables in scikit-learn's convention: higher = more normal, labels +1 and -1.

    Parameters and method are those of `DROCC`: `metric` chooses the shell, "l2" or "mahalanobis",
    and known anomalies go to `fit` as `X_negative`.

    For a search over parameters give labels as +1 (normal) and -1: with 0 and 1 scikit-learn's
    scorers take 1 for the class of high scores, which is right only where 1 means normal. A search
    passes `X_negative` on whole, but takes the fold's rows of one that has as many rows as X.

    Attributes:
        offset_: `decision_function` is `score_samples - offset_`, below 0 for the share
            `contamination` of normal rows. Follows `contamination`, until it is set.
        radius_ (float): The radius used.
        network_ (torch.nn.Module): The trained network, on the CPU in float64.
        n_features_in_ (int): Columns of X.
        feature_names_in_ (numpy.ndarray): Their names, if X had any.
    """

    @of_one_fit
    def score_samples(self, X: Any) -> Floats:
        """Score rows: the logit, less the distance and what deviations in rare columns take away.

        Args:
            X: Array-like, DataFrame or tensor `[N, D]`.

        Returns:
            float64 `[N]`, higher = more normal.
        """
        return -self._scores(X)

    @of_one_fit
    def decision_function(self, X: Any) -> Floats:
        """Score rows against the threshold.

        Args:
            X: Array-like, DataFrame or tensor `[N, D]`.

        Returns:
            float64 `[N]`, `score_samples(X) - offset_`, negative = anomalous.
        """
        return self.score_samples(X) - self.offset_

    @of_one_fit
    def predict(self, X: Any) -> npt.NDArray[np.int64]:
        """Label rows.

        Args:
            X: Array-like, DataFrame or tensor `[N, D]`.

        Returns:
            int64 `[N]`, +1 = normal, -1 = anomalous.
        """
        return np.where(self.decision_function(X) < 0, -1, 1)

    def fit_predict(
        self, X: Any, y: Any = None, *, X_negative: Any = None
    ) -> npt.NDArray[np.int64]:
        """Fit, then label the training rows as if each had not been among them.

        `predict(X)` afterwards would find each row beside itself.

        Args:
            X: Rows as in `fit`.
            y: Ignored.
            X_negative: Known anomalies, as in `fit`.

        Returns:
            int64 `[N]`, +1 = normal, -1 = anomalous.
        """
        return self.fit(X, X_negative=X_negative)._training_labels()

    @of_one_fit
    def _training_labels(self) -> npt.NDArray[np.int64]:
        return np.where(self._training_logits < self.offset_, -1, 1)

    @property
    @of_one_fit
    def offset_(self) -> float:
        """Score below which a row is labelled anomalous."""
        check_is_fitted(self)
        if self._chosen_threshold is None:
            check_contamination(type(self).__name__, self.contamination)
        by_training = self._chosen_threshold is None and not self._calibration.unseen
        if by_training and not isinstance(self.contamination, str):
            return float(np.quantile(self._training_logits, self.contamination))
        return -self._threshold()

    @offset_.setter
    def offset_(self, value: float) -> None:
        self._chosen_threshold = -as_threshold(type(self).__name__, "offset_", value)
