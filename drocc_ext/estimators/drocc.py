"""The estimator in PyOD's convention."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.utils.validation import check_is_fitted

from drocc_ext.estimators._core import BaseDROCC, Floats
from drocc_ext.estimators._snapshot import of_one_fit
from drocc_ext.estimators.inputs import as_threshold


class DROCC(BaseDROCC):
    """DROCC for tables in PyOD's convention: higher = more anomalous, labels 0 and 1.

    The default goes beyond the paper: two hidden layers; searches half of which start with noise of
    the rows' own covariance, half towards another row in some of the columns; radii drawn for each
    point; and soft labels by the distance to all training rows (eq. (1) as stated,
    `DROCCLoss(labels="distance")`). Where that distance, which the network learns, is larger than
    usual it counts itself too: the score is the negative logit plus the distance, each in units of
    what normal rows have (`NearestMLP`). Columns are scaled as `ColumnScaler` says, and the
    threshold comes from rows that the network has not seen. `hidden=128` is Algorithm 1 to the
    letter, with its own defaults: one hidden layer, N(0, I), the shell around the point's own
    row, columns with one value in 99 % of the rows dropped, a threshold from training rows.

    PyTorch's global random generators are neither used nor changed, except by a module that may
    draw from them in training, as dropout and modules of your own classes do: it then draws by
    `random_state`, they are put back after the fit, and other threads should not draw from them
    meanwhile. Known anomalies, few as they may be, go to `fit` as `X_negative`.

    A parameter that is None has the value given here for the default, then for `hidden`.

    Args:
        contamination: Share of normal rows that may be labelled anomalous, in (0, 0.5], or "auto"
            for those apart from the others: 1.5 interquartile ranges above the upper quartile. Sets
            the threshold only, and can be changed without a new fit.
        network: Units of the hidden layers, (256, 256); or a module that maps `[B, *]` to logits,
            of which each fit trains a copy.
        hidden: Units of the one hidden layer of Algorithm 1; None for the default.
        radius: Inner radius of the shell, > 0, in units of the scaled columns; None for
            `suggest_radius`.
        radius_range: Each point's radius is drawn between these multiples of `radius`, (0.4, 2.5);
            with `hidden` it is `radius`.
        gamma: Outer radius divided by inner radius, >= 1; 1, 2.
        num_steps: Ascent steps of the search, >= 0; 3, 5.
        step_size: Length of a step, in units of the radius; 0.2, 0.1.
        noise: Shape of the starting noise, see `SearchConfig`; "blend", "isotropic".
        noise_scale: Standard deviation of the noise a search starts from; 0.1 to 0.3 helps the
            metric "mahalanobis" where many columns are noise.
        labels: Targets of the points found, see `DROCCLoss`; "distance", "hard".
        nearest: Whether the distance to the nearest training row counts beside the logit, from
            4096 rows at the most; True, False. Networks that are modules, and the metric
            "mahalanobis", go without it.
        mu: Weight of the adversarial term; 1, 2.
        max_steps: Optimizer steps; 400, 300.
        batch_size: Rows per step; 128, 256.
        learning_rate: Adam's at the start, it falls linearly to 0; 3e-3, 2e-3.
        weight_decay: Adam's weight decay, the paper's lambda.
        metric: Geometry of the shell: "l2", or "mahalanobis", which weighs each column by its
            influence on the score (DROCC-LF where anomalies are known).
        calibration: Where the scores come from that set threshold and p-values. "auto": from rows
            that are not trained on, a tenth of all, but at least 100 or a fifth, and at least 20 or
            a third. A number in (0, 1) is that share. "training": the scores of training rows, with
            which no promise holds. "auto", "training".
        validation_fraction: Share of the training rows that select the best epoch by the objective;
            0 for none.
        patience: Epochs without a better one before training ends; None for no such end.
        warm_start: Whether `fit` begins from the weights of the fit before.
        device: Where to train; scores are computed on the CPU.
        random_state: Integer for the same result in every fit, or a `RandomState`; None draws from
            numpy's global one.
        verbose: Show a progress bar.

    Attributes:
        decision_scores_: Scores of the training rows, `[N]`, higher = more anomalous, with the
            distance to the nearest other row.
        threshold_: Rows with a higher score are labelled anomalous. Follows `contamination`, until
            it is set.
        labels_: Labels of the training rows, `[N]`, 1 = anomalous.
        radius_ (float): The radius used.
        network_ (torch.nn.Module): The trained network, on the CPU.
        history_ (History | list[History]): What `Trainer.fit` returned, a list of these where
            several networks were trained.
        n_features_in_ (int): Columns of X.
        feature_names_in_ (numpy.ndarray): Their names, if X had any.
    """

    @of_one_fit
    def decision_function(self, X: Any) -> Floats:
        """Score rows: negative logit, distance, and what deviations in rare columns add.

        Args:
            X: Array-like, DataFrame or tensor `[N, D]`.

        Returns:
            float64 `[N]`, higher = more anomalous.
        """
        return self._scores(X)

    @of_one_fit
    def predict(self, X: Any) -> npt.NDArray[np.int64]:
        """Label rows.

        Args:
            X: Array-like, DataFrame or tensor `[N, D]`.

        Returns:
            int64 `[N]`, 1 = anomalous, 0 = normal.
        """
        return (self.decision_function(X) > self.threshold_).astype(np.int64)

    @of_one_fit
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

    @property
    @of_one_fit
    def decision_scores_(self) -> Floats:
        """Scores of the training rows."""
        check_is_fitted(self)
        return -self._training_logits

    @property
    @of_one_fit
    def threshold_(self) -> float:
        """Rows with a higher score are labelled anomalous."""
        check_is_fitted(self)
        return self._threshold()

    @threshold_.setter
    def threshold_(self, value: float) -> None:
        self._chosen_threshold = as_threshold(type(self).__name__, "threshold_", value)

    @property
    @of_one_fit
    def labels_(self) -> npt.NDArray[np.int64]:
        """Labels of the training rows."""
        return (self.decision_scores_ > self.threshold_).astype(np.int64)
