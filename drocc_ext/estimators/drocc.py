"""The estimator in PyOD's convention."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.utils.validation import check_is_fitted

from drocc_ext.estimators._core import BaseDROCC, Floats


class DROCC(BaseDROCC):
    """DROCC for tables in PyOD's convention: higher = more anomalous, labels 0 and 1.

    Columns in which 99 % of the training rows share one value are dropped, the others standardized
    and clipped to +-10; `radius` is in units of the result. A network with one hidden layer is then
    trained by Algorithm 1 with Adam, its learning rate falling linearly to 0. PyTorch's global
    random generators are neither used nor changed. Known anomalies, few as they may be, go to `fit`
    as `X_negative`.

    Args:
        contamination: Share of training rows to be labelled anomalous, in (0, 0.5]; sets the
            threshold only.
        radius: Inner radius of the shell, > 0; None for `suggest_radius`.
        gamma: Outer radius divided by inner radius, >= 1.
        num_steps: Ascent steps of the search, >= 0.
        step_size: Length of a step, in units of the radius.
        noise_scale: Standard deviation of the noise a search starts from; 0.1 to 0.3 helps the
            metric "mahalanobis" where many columns are noise.
        mu: Weight of the adversarial term.
        hidden: Hidden units.
        max_steps: Optimizer steps.
        batch_size: Rows per step.
        learning_rate: Adam's learning rate at the start.
        weight_decay: Adam's weight decay, the paper's lambda.
        metric: Geometry of the shell: "l2", or "mahalanobis", which weighs each column by its
            influence on the score (DROCC-LF where anomalies are known).
        device: Where to train; scores are computed on the CPU.
        random_state: Integer for the same result in every fit, or a `RandomState`; None draws from
            numpy's global one.
        verbose: Show a progress bar.

    Attributes:
        decision_scores_: Scores of the training rows, `[N]`, higher = more anomalous.
        threshold_: Rows with a higher score are labelled anomalous.
        labels_: Labels of the training rows, `[N]`, 1 = anomalous.
        radius_: The radius used.
        network_: The trained network, on the CPU in float64.
        n_features_in_: Columns of X.
        feature_names_in_: Their names, if X had any.
    """

    decision_scores_: Floats
    threshold_: float
    labels_: npt.NDArray[np.int64]

    def decision_function(self, X: Any) -> Floats:
        """Score rows: the negative logit.

        Args:
            X: Array-like, DataFrame or tensor `[N, D]`.

        Returns:
            float64 `[N]`, higher = more anomalous.
        """
        check_is_fitted(self)
        return -self._logits(self._check_rows(X, reset=False))

    def predict(self, X: Any) -> npt.NDArray[np.int64]:
        """Label rows.

        Args:
            X: Array-like, DataFrame or tensor `[N, D]`.

        Returns:
            int64 `[N]`, 1 = anomalous, 0 = normal.
        """
        return (self.decision_function(X) > self.threshold_).astype(np.int64)

    def predict_proba(self, X: Any, method: str = "linear") -> Floats:
        """Map scores to [0, 1]. As in PyOD these are not calibrated probabilities.

        Args:
            X: Array-like, DataFrame or tensor `[N, D]`.
            method: "linear" maps the range of the training scores to [0, 1]; "unify" maps the error
                function of the score, standardized by the training scores, negative values to 0.

        Returns:
            float64 `[N, 2]`: normal, anomalous; each row adds up to 1.

        Raises:
            ValueError: If method is unknown.
        """
        scores = self.decision_function(X)
        if method == "linear":
            low, high = self.decision_scores_.min(), self.decision_scores_.max()
            anomalous = (scores - low) / (high - low or 1.0)
        elif method == "unify":
            mean, deviation = self.decision_scores_.mean(), self.decision_scores_.std()
            standardized = (scores - mean) / ((deviation or 1.0) * math.sqrt(2))
            anomalous = torch.erf(torch.from_numpy(standardized)).numpy()
        else:
            raise ValueError(
                f'DROCC.predict_proba: method must be "linear" or "unify", got {method!r}'
            )
        anomalous = np.clip(anomalous, 0, 1)
        return np.stack([1 - anomalous, anomalous], axis=1)

    def fit_predict(
        self, X: Any, y: Any = None, *, X_negative: Any = None
    ) -> npt.NDArray[np.int64]:
        """Fit, then give `labels_`.

        Args:
            X: Array-like, DataFrame or tensor `[N, D]`.
            y: Not used.
            X_negative: Known anomalies `[M, D]`, as in `fit`.

        Returns:
            int64 `[N]`, 1 = anomalous, 0 = normal.
        """
        return self.fit(X, X_negative=X_negative).labels_

    def _set_scores(self, logits: Floats) -> None:
        super()._set_scores(logits)
        self.decision_scores_ = -logits
        self.threshold_ = float(np.quantile(self.decision_scores_, 1 - self.contamination))
        self.labels_ = (self.decision_scores_ > self.threshold_).astype(np.int64)
