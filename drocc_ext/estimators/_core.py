"""What both estimators share: preprocessing, training, scores, files."""

from __future__ import annotations

import math
import os
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state, gen_batches
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from drocc_ext.estimators._files import check_fitted, check_parameters
from drocc_ext.models.networks import MLP
from drocc_ext.models.persistence import load_model, save_model
from drocc_ext.radius import suggest_radius
from drocc_ext.search import SearchConfig
from drocc_ext.training.data import Data
from drocc_ext.training.loss import METRICS, DROCCLoss, Metric
from drocc_ext.training.trainer import Trainer

Floats = npt.NDArray[np.float64]
Estimator = TypeVar("Estimator", bound="BaseDROCC")

_CONSTANT_SHARE = 0.99
_CLIP = 10.0
_SCORE_ROWS = 4096
_LARGEST = float(torch.finfo(torch.float32).max)


@dataclass(frozen=True)
class Standardizer:
    """Drops near-constant columns, standardizes the others and clips them to +-10.

    Attributes:
        kept: Positions of the kept columns, `[K]`.
        mean: Their means, `[K]`.
        scale: Their standard deviations, `[K]`.
    """

    kept: npt.NDArray[np.int64]
    mean: Floats
    scale: Floats

    @classmethod
    def fit(cls, caller: str, x: Floats) -> Standardizer:
        """Learn from training rows.

        Args:
            caller: Name to begin an error with.
            x: Rows, `[N, D]`, finite.

        Returns:
            The standardizer.

        Raises:
            ValueError: If no column is left, or a column's deviation overflows or underflows.
        """
        # A value that more than half of the rows share is the median.
        medians = np.partition(x, len(x) // 2, axis=0)[len(x) // 2]
        kept = np.flatnonzero(np.mean(x == medians, axis=0) < _CONSTANT_SHARE)
        if kept.size == 0:
            raise ValueError(
                f"{caller}: a column must vary to be used, got {x.shape[1]} columns that each have "
                f"one value in at least {_CONSTANT_SHARE:.0%} of the rows"
            )
        x = x[:, kept]
        with np.errstate(over="ignore", invalid="ignore"):
            mean, scale = x.mean(axis=0), x.std(axis=0)
        bad = kept[~((scale > 0) & np.isfinite(scale))]
        if bad.size:
            raise ValueError(
                f"{caller}: values of column {bad[0]} are too large or too close to standardize in "
                "float64"
            )
        return cls(kept, mean, scale)

    def transform(self, x: Floats) -> Floats:
        """Apply to rows `[N, D]`, giving `[N, K]`."""
        with np.errstate(over="ignore"):
            scaled = (x[:, self.kept] - self.mean) / self.scale
        return np.clip(scaled, -_CLIP, _CLIP, out=scaled)


class BaseDROCC(BaseEstimator, ABC):  # type: ignore[misc]
    """Parameters, training and files of the two estimators. Not for use by itself."""

    def __init__(
        self,
        contamination: float = 0.1,
        *,
        radius: float | None = None,
        gamma: float = 2.0,
        num_steps: int = 5,
        step_size: float = 0.1,
        noise_scale: float = 1.0,
        mu: float = 2.0,
        hidden: int = 128,
        max_steps: int = 300,
        batch_size: int = 256,
        learning_rate: float = 2e-3,
        weight_decay: float = 0.0,
        metric: Metric = "l2",
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ) -> None:
        self.contamination = contamination
        self.radius = radius
        self.gamma = gamma
        self.num_steps = num_steps
        self.step_size = step_size
        self.noise_scale = noise_scale
        self.mu = mu
        self.hidden = hidden
        self.max_steps = max_steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.metric = metric
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(self: Estimator, X: Any, y: Any = None, *, X_negative: Any = None) -> Estimator:
        """Train on rows that are normal, or nearly all normal.

        Args:
            X: Array-like, DataFrame or tensor `[N, D]` of finite numbers, N >= 2.
            y: Not used; there by convention.
            X_negative: Known anomalies `[M, D]`, of the same kinds and columns, M >= 1: DROCC-OE,
                or DROCC-LF with the metric "mahalanobis". They are only trained on: scaling,
                radius, threshold and scores of training rows are those of X. The steps of a
                pipeline before this one do not transform them. None: no anomalies are known.

        Returns:
            The estimator itself.

        Raises:
            TypeError: If X or X_negative is sparse, or a parameter has the wrong type.
            ValueError: If X is not a finite table with a column that varies, if X_negative does not
                fit it or has no rows, if a parameter is out of range, or if copies of rows leave no
                radius to suggest.
            FloatingPointError: If training diverges.
        """
        self._check_parameters()
        if getattr(y, "ndim", 1) == 2 and y.shape[1] > 1:
            raise ValueError(
                f"{type(self).__name__}.fit: y is not used and must not be a table, got shape "
                f"{tuple(y.shape)}; known anomalies go by name, fit(X, X_negative=...)"
            )
        x = self._check_rows(X, ensure_min_samples=2)
        negatives = None if X_negative is None else self._check_negatives(X_negative)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self._standardizer = Standardizer.fit(f"{type(self).__name__}.fit", x)
        if negatives is not None:
            self._warn_of_dropped(x, negatives)
        rows = self._standardized(x)
        self.radius_ = (
            suggest_radius(rows, k=min(5, len(rows) - 1), seed=seed)
            if self.radius is None
            else float(self.radius)
        )
        self.network_ = self._train(
            rows, None if negatives is None else self._standardized(negatives), seed
        )
        self._set_scores(self._logits(x))
        return self

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Save the fitted estimator without pickle: safetensors weights and a JSON description.

        A `random_state` that is not an integer is saved as None.

        Args:
            directory: Where to save; made where missing. A former model there is replaced.

        Raises:
            OSError: If the directory cannot be written.
        """
        check_is_fitted(self)
        parameters = {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in self.get_params(deep=False).items()
        }
        if not isinstance(parameters["random_state"], int):
            parameters["random_state"] = None
        names = getattr(self, "feature_names_in_", None)
        config = {
            "parameters": {**parameters, "device": str(self.device)},
            "n_features_in": self.n_features_in_,
            "feature_names_in": None if names is None else list(names),
            "radius": self.radius_,
            "kept": self._standardizer.kept.tolist(),
            "mean": self._standardizer.mean.tolist(),
            "scale": self._standardizer.scale.tolist(),
            "training_logits": self._training_logits.tolist(),
        }
        save_model(directory, self.network_, {"estimator": config})

    @classmethod
    def load(cls: type[Estimator], directory: str | os.PathLike[str]) -> Estimator:
        """Load what `save` of either estimator has saved. Runs no code from the files.

        Args:
            directory: Where it was saved.

        Returns:
            The fitted estimator.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file is damaged, or the model was not saved by an estimator.
        """
        network, config = load_model(directory)
        try:
            saved = config.get("estimator")
            if not isinstance(saved, dict):
                raise ValueError("it has no 'estimator'")
            parameters = check_parameters(saved.get("parameters"), cls)
            fitted = check_fitted(saved, network)
        except ValueError as error:
            raise ValueError(
                f"{cls.__name__}.load: {os.fspath(directory)} holds no saved estimator: {error}"
            ) from error
        estimator = cls(**parameters)
        estimator.n_features_in_ = fitted["n_features_in"]
        if fitted["feature_names_in"] is not None:
            estimator.feature_names_in_ = fitted["feature_names_in"]
        estimator.radius_ = fitted["radius"]
        estimator._standardizer = Standardizer(fitted["kept"], fitted["mean"], fitted["scale"])
        estimator.network_ = fitted["network"]
        estimator._set_scores(fitted["training_logits"])
        return estimator

    @abstractmethod
    def _set_scores(self, logits: Floats) -> None:
        """Set the fitted attributes that depend on the training rows' logits."""
        self._training_logits = logits

    def _logits(self, x: Floats) -> Floats:
        """Logits `[N]` of checked rows, higher = more normal, computed in batches.

        The network runs on the CPU in float64 and the result is rounded to float32: rows then score
        the same whatever batch they are in and wherever the network was trained.
        """
        logits = np.empty(len(x), dtype=np.float32)
        with torch.inference_mode():
            for batch in gen_batches(len(x), _SCORE_ROWS):
                rows = torch.from_numpy(self._standardizer.transform(x[batch]))
                logits[batch] = self.network_(rows).squeeze(1).numpy()
        return logits.astype(np.float64)

    def _check_rows(self, X: Any, **checks: Any) -> Floats:
        """Bring X to float64 `[N, D]`; in `fit` also learn the number and names of the columns."""
        if isinstance(X, Tensor):
            X = X.detach().cpu()
            X = (X.double() if X.is_floating_point() else X).numpy()
        rows: Floats = validate_data(self, X, dtype=np.float64, **checks)
        return rows

    def _check_negatives(self, X_negative: Any) -> Floats:
        """Bring X_negative to float64 `[M, D]`; columns are those of X, which is checked."""
        name = f"{type(self).__name__}.fit: X_negative"
        try:
            rows = self._check_rows(X_negative, reset=False, ensure_min_samples=0)
        except (TypeError, ValueError) as error:
            # scikit-learn's sentences speak of X.
            raise type(error)(f"{name}: {str(error).splitlines()[0]}") from error
        if len(rows) == 0:
            raise ValueError(
                f"{name} must hold at least one row, got shape {rows.shape}; leave it out where no "
                "anomalies are known"
            )
        return rows

    def _warn_of_dropped(self, x: Floats, negatives: Floats) -> None:
        dropped = np.setdiff1d(np.arange(x.shape[1]), self._standardizer.kept)
        differs = np.mean(negatives[:, dropped] != np.median(x[:, dropped], axis=0), axis=0)
        columns = dropped[differs > 1 - _CONSTANT_SHARE]
        if len(columns) > 0:
            warnings.warn(
                f"{type(self).__name__}.fit: X_negative differs from X in columns that are dropped "
                f"because {_CONSTANT_SHARE:.0%} of the rows of X share one value there (from 0): "
                f"{', '.join(map(str, columns[:8]))}",
                stacklevel=3,
            )

    def _standardized(self, x: Floats) -> Tensor:
        return torch.from_numpy(self._standardizer.transform(x).astype(np.float32))

    def _check_parameters(self) -> None:
        name = type(self).__name__
        if self.metric not in METRICS:
            raise ValueError(
                f"{name}: metric must be one of {', '.join(METRICS)}, got {self.metric!r}"
            )
        for parameter, least in (("hidden", 1), ("max_steps", 1), ("batch_size", 1)):
            value = getattr(self, parameter)
            if not isinstance(value, Integral) or isinstance(value, bool):
                raise TypeError(f"{name}: {parameter} must be an integer, got {value!r}")
            if int(value) < least:
                raise ValueError(f"{name}: {parameter} must be >= {least}, got {value}")
        lengths = ("step_size", "noise_scale")
        for parameter in ("contamination", *lengths, "learning_rate", "weight_decay"):
            value = getattr(self, parameter)
            if not isinstance(value, Real) or isinstance(value, bool):
                raise TypeError(f"{name}: {parameter} must be a number, got {value!r}")
            if not 0 <= float(value) < math.inf:
                raise ValueError(f"{name}: {parameter} must be >= 0 and finite, got {value}")
            if float(value) > _LARGEST:
                raise ValueError(f"{name}: {parameter} must fit float32, got {value}")
        if not 0 < self.contamination <= 0.5:
            raise ValueError(f"{name}: contamination must be in (0, 0.5], got {self.contamination}")
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{name}: cannot use device {self.device!r}: {reason}") from error
        if torch.device(self.device).type == "meta":
            raise ValueError(f"{name}: cannot use device 'meta': it computes nothing")

    def _train(self, rows: Tensor, negatives: Tensor | None, seed: int) -> MLP:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # not torch.manual_seed: it reseeds GPUs too
            network = MLP(rows.shape[1], self.hidden).to(self.device)
        search = SearchConfig.from_relative_step(
            self.radius_,
            step_size=self.step_size,
            num_steps=self.num_steps,
            noise_scale=self.noise_scale,
            gamma=self.gamma,
        )
        optimizer = torch.optim.Adam(
            network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
        )
        trainer = Trainer(
            network,
            DROCCLoss(search, mu=self.mu, metric=self.metric),
            optimizer,
            scheduler=LambdaLR(optimizer, lambda step: 1 - step / self.max_steps),
            scheduler_interval="step",
            progress=bool(self.verbose),
        )
        data: Data = rows
        if negatives is not None:
            labels = torch.cat([torch.ones(len(rows)), torch.zeros(len(negatives))])
            data = (torch.cat([rows, negatives]), labels)
        trainer.fit(data, max_steps=self.max_steps, batch_size=self.batch_size, seed=seed)
        return network.cpu().double().eval()
