"""What both estimators share: preprocessing, training, scores, calibration."""

from __future__ import annotations

import inspect
import os
import warnings
from abc import ABC
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state, gen_batches
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from drocc_ext.estimators import _files
from drocc_ext.estimators._snapshot import give_back, of_one_fit, snapshot
from drocc_ext.estimators.calibration import Calibration, Floats, held_out_rows, marks_of
from drocc_ext.estimators.columns import (
    ArrayScaler,
    ColumnScaler,
    Scaler,
    Standardizer,
)
from drocc_ext.estimators.deploy import Deployable
from drocc_ext.estimators.explanation import contributions
from drocc_ext.estimators.fitting import Fitting, choose_radius, new_network, plain_torch
from drocc_ext.estimators.inputs import (
    check_contamination,
    check_negatives,
    check_no_table,
    check_parameters,
    check_rows,
    digits_of,
    parameters_of,
    warn_of_columns,
    warn_of_dropped,
)
from drocc_ext.estimators.nearest import (
    chosen_rows,
    distance_to_others,
    normal_rows,
    set_units,
    without_copies,
)
from drocc_ext.estimators.recipes import Recipe, recipe_of
from drocc_ext.estimators.scoring import logits_of
from drocc_ext.models.modules import copied
from drocc_ext.models.networks import MLP, MLPEnsemble, NearestMLP
from drocc_ext.training.checkpoint import History
from drocc_ext.training.loss import Metric
from drocc_ext.training.ranks import all_ranks

__all__ = ["BaseDROCC", "Floats", "Standardizer"]

Estimator = TypeVar("Estimator", bound="BaseDROCC")

_SCORE_ROWS = 4096
# Fewer calibrate badly after a further training on them alone.
_FEW_ROWS = 100


class BaseDROCC(Deployable, BaseEstimator, ABC):  # type: ignore[misc]
    """Parameters, training and files of the two estimators. Not for use by itself."""

    _parameter_names: ClassVar[tuple[str, ...]]
    _learned: npt.NDArray[np.uint32]

    def __init__(
        self,
        contamination: float | str = 0.1,
        *,
        network: Any = None,
        hidden: int | None = None,
        radius: float | None = None,
        radius_range: tuple[float, float] | None = None,
        gamma: float | None = None,
        num_steps: int | None = None,
        step_size: float | None = None,
        noise: str | None = None,
        noise_scale: float = 1.0,
        labels: str | None = None,
        nearest: bool | None = None,
        mu: float | None = None,
        max_steps: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        weight_decay: float = 0.0,
        metric: Metric = "l2",
        calibration: str | float | None = None,
        validation_fraction: float = 0.0,
        patience: int | None = None,
        warm_start: bool = False,
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ) -> None:
        self.contamination = contamination
        self.network = network
        self.hidden = hidden
        self.radius = radius
        self.radius_range = radius_range
        self.gamma = gamma
        self.num_steps = num_steps
        self.step_size = step_size
        self.noise = noise
        self.noise_scale = noise_scale
        self.labels = labels
        self.nearest = nearest
        self.mu = mu
        self.max_steps = max_steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.metric = metric
        self.calibration = calibration
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.warm_start = warm_start
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(self: Estimator, X: Any, y: Any = None, *, X_negative: Any = None) -> Estimator:
        """Train on rows that are normal, or nearly all normal.

        In a process group of `torch.distributed` the processes train one network together: each
        calls this with the same rows and takes its part of each batch, and all end with the same.

        Args:
            X: Array-like, DataFrame or tensor `[N, D]` of finite numbers, N >= 2; with a module as
                network also arrays `[N, *]`, which are scaled as a whole.
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
                fit it or has no rows, or if a parameter is out of range.
            FloatingPointError: If training diverges.
        """
        return self._fit(X, y, X_negative, again=False)

    def partial_fit(self: Estimator, X: Any, y: Any = None, *, X_negative: Any = None) -> Estimator:
        """Train on with further normal rows, from the weights as they are.

        Scaling and radius stay those of the first fit. Rows of X that are held out take the place
        of those that calibrated before. Without a fit before it, this is `fit`.

        Args:
            X: Rows as in `fit`; soft labels know these rows only.
            y: Not used.
            X_negative: Known anomalies, as in `fit`.

        Returns:
            The estimator itself.

        Raises:
            TypeError: As `fit`.
            ValueError: As `fit`, and if X has other columns than before, or the parameters ask
                for another network.
            FloatingPointError: If training diverges.
        """
        return self._fit(X, y, X_negative, again=hasattr(self, "network_"))

    @of_one_fit
    def p_value(self, X: Any) -> Floats:
        """Conformal p-values: the chance of a normal row to look as anomalous.

        For a fresh row from the source of the training rows `P(p <= a) <= a` for every a, if
        `calibration` is not "training".

        Args:
            X: Rows as in `fit`.

        Returns:
            float64 `[N]` in (0, 1], small = anomalous; at least 1 / (n + 1) for n calibrating rows.
        """
        scores = self._scores(X)
        return self._calibration.p_value(scores)

    @of_one_fit
    def explain(self, X: Any) -> Floats:
        """Contributions of the columns to the scores of rows.

        A row walks back, up the gradient of the logit, until the network takes it for as normal as
        the middle of the rows that calibrate. Where the gradient leads nowhere, the way goes
        straight on to the nearest of the training rows that are as normal; a network that keeps no
        rows stops there. What each column adds to the fall of the score on that way (the integral
        of the gradient along it) is its contribution; they sum up to the fall. What rare deviations
        add to the score belongs to the columns that deviate, as far as it lifts the score above
        that of the middle row.

        Args:
            X: Rows as in `fit`.

        Returns:
            float64, shape of X, higher = speaks more for an anomaly.
        """
        check_is_fitted(self)
        x = check_rows(self, X, reset=False)
        usual = float(np.median(self._calibration.scores))
        with plain_torch():
            network = copied(self.network_).double()  # other threads may score meanwhile
            normal = normal_rows(network, -usual)
            parts = [
                contributions(
                    network,
                    torch.from_numpy(self._scaler.transform(x[batch])),
                    -usual,
                    self.radius_,
                    normal,
                ).numpy()
                for batch in gen_batches(len(x), _SCORE_ROWS)
            ]
        surplus = np.maximum(self._raw_logits(x, self.network_) + usual, 0.0)
        return self._scaler.to_columns(np.concatenate(parts), x, surplus)

    @of_one_fit
    def save(self, directory: str | os.PathLike[str]) -> None:
        """Save the fitted estimator without pickle: safetensors weights and a JSON description.

        A `random_state` that is not an integer is saved as None, and so is a module as `network`:
        `load` wants one of that form back. A threshold of your own is saved too.

        Args:
            directory: Where to save; made where missing. A former model there is replaced.

        Raises:
            OSError: If the directory cannot be written.
            ValueError: If the parameters are no longer those of the fit, so that `load` would not
                give this estimator. Nothing is written then.
        """
        check_is_fitted(self)
        _files.save(self, directory)

    @classmethod
    def load(
        cls: type[Estimator],
        directory: str | os.PathLike[str],
        network: nn.Module | None = None,
    ) -> Estimator:
        """Load what `save` of either estimator has saved. Runs no code from the files.

        Args:
            directory: Where it was saved.
            network: A module of that form, where the estimator was given a module; the weights go
                into a copy of it.

        Returns:
            The fitted estimator.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file is damaged, or the model was not saved by an estimator.
        """
        loaded: Estimator = _files.load(cls, directory, network)
        return loaded

    def _fit(self: Estimator, X: Any, y: Any, X_negative: Any, *, again: bool) -> Estimator:
        name = f"{type(self).__name__}.{'partial_fit' if again else 'fit'}"
        recipe = check_parameters(self)
        check_no_table(name, y)
        # On a copy: a fit that fails leaves the former one, and other threads may score meanwhile.
        fitted = snapshot(self)
        before = fitted.__dict__.copy()
        fitted._fit_anew(name, X, X_negative, recipe, again=again)
        give_back(self, before, fitted)
        return self

    def _fit_anew(self, name: str, X: Any, X_negative: Any, recipe: Recipe, *, again: bool) -> None:
        x = check_rows(self, X, reset=not again, ensure_min_samples=2)
        negatives = None if X_negative is None else check_negatives(self, X_negative)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        seed = all_ranks().shared(seed)
        marks = marks_of(x)
        goes_on = again or (self.warm_start and hasattr(self, "network_"))
        learned = getattr(self, "_learned", marks[:0]) if goes_on else marks[:0]
        can_tell = len(marks) == len(x)
        unlearned = ~np.isin(marks, learned) if can_tell else np.full(len(x), True)
        draw = np.random.RandomState(seed)
        # A copy of a row that calibrates must not be trained on.
        names = marks if can_tell else np.arange(len(x))
        once = np.sort(np.unique(names, return_index=True)[1])
        held = once[held_out_rows(len(once), recipe.calibration, draw, unlearned[once])]
        kept = np.flatnonzero(~np.isin(names, names[held]))
        if not again:
            try:  # rows that calibrate must be as strange to the columns' scales as fresh ones
                self._scaler = self._new_scaler(name, x[kept], recipe, digits_of(X))
            except ValueError:  # they all vary less than rounding, or the others alone do
                self._scaler = self._new_scaler(name, x, recipe, digits_of(X))
        if negatives is not None:
            warn_of_dropped(type(self).__name__, self._scaler, x, negatives)
        with plain_torch():
            rows = self._inputs(x)
            if not again:
                self.radius_: float = choose_radius(self.radius, rows, seed)
            self._train(
                rows,
                None if negatives is None else self._inputs(negatives),
                recipe,
                seed,
                kept,
                again=again,
            )
        self._chosen_threshold: float | None = None
        self._learned = np.union1d(learned, marks[kept]) if can_tell else learned
        self._set_scores(x, held)
        if not unlearned[held].all():
            warnings.warn(
                f"{name}: threshold and p-values come from {len(held)} rows, of which the network "
                f"had learned {int((~unlearned[held]).sum())} before, so that more normal rows may "
                "be flagged than contamination says; pass new rows, or set the threshold",
                stacklevel=4,
            )
        if again and len(x) < _FEW_ROWS:
            warnings.warn(
                f"{name}: threshold and p-values come from the rows of this call alone, and "
                f"{len(x)} are few: the share of normal rows that is flagged may be far from "
                f"contamination; pass {_FEW_ROWS} or more at once, or set the threshold",
                stacklevel=4,
            )

    def _train(
        self,
        rows: Tensor,
        negatives: Tensor | None,
        recipe: Recipe,
        seed: int,
        kept: npt.NDArray[np.int64],
        *,
        again: bool,
    ) -> None:
        former = self._members() if again or (self.warm_start and hasattr(self, "network_")) else []
        own = isinstance(self.network, nn.Module)
        mine, validation = rows[torch.from_numpy(kept)], None
        if self.validation_fraction > 0:
            size = min(max(1, round(self.validation_fraction * len(mine))), len(mine) - 1)
            mine, validation = mine[size:], mine[:size]
        few = len(rows) < recipe.few_rows and not own
        members = len(former) if again else recipe.members_on_few_rows if few else 1
        fitting = Fitting(
            recipe,
            self.radius_,
            float(self.noise_scale),
            self.metric,
            float(self.weight_decay),
            str(self.device),
            self.patience,
            bool(self.verbose),
        )
        nearest = recipe.nearest and not own and self.metric == "l2"
        if again and nearest != isinstance(self.network_, NearestMLP):
            raise ValueError(self._other_form())
        networks, histories = [], []
        for number in range(members):
            own_seed = (seed + number) % 2**31
            widths = self.network if own else recipe.network
            network = new_network(widths, rows[0].numel(), own_seed)
            same = number < len(former) and _same_form(network, former[number])
            if again and not same:
                raise ValueError(self._other_form())
            if same:
                network.load_state_dict(former[number].state_dict())
            histories.append(fitting.train(network, mine, negatives, validation, own_seed))
            networks.append(network)
        plain = [network for network in networks if isinstance(network, MLP)]
        self.network_: nn.Module
        if nearest:
            before = self.network_.rows if again else rows[:0]
            # Rows that are learned again stand there once.
            bank, where = without_copies(torch.cat([before, rows]))
            measured = chosen_rows(len(bank), seed)
            self.network_ = NearestMLP.of(plain, bank[torch.from_numpy(measured)])
            places = np.full(len(bank), -1)
            places[measured] = np.arange(len(measured))
            self._places = torch.from_numpy(places[where[len(before) :]])
        else:
            self.network_ = networks[0] if members == 1 else MLPEnsemble.of(plain)
        self.network_.to(torch.float64 if recipe.scores_in_double else torch.float32)
        self.history_: History | list[History]
        self.history_ = histories[0] if members == 1 else histories

    def _set_scores(self, x: Floats, held: npt.NDArray[np.int64]) -> None:
        """Calibrate; set the attributes that depend on the training rows' scores."""
        if isinstance(self.network_, NearestMLP):
            scores = self._scores_among_others(x, self.network_, held)
        else:
            scores = -self._raw_logits(x, self.network_)
        strange = np.flatnonzero(~np.isfinite(scores))
        if len(strange) > 0:  # the last step's loss was finite, but what it left is not
            raise FloatingPointError(
                f"{type(self).__name__}.fit: scores of training rows must be finite, got "
                f"{scores[strange[0]]} for row {strange[0]}: training has diverged; a lower "
                "learning_rate may help"
            )
        if isinstance(self._scaler, ColumnScaler):
            self._scaler = self._scaler.in_units_of(scores[held] if len(held) else scores)
            scores = self._scaler.penalty(x) + scores
        self._training_logits = -scores
        chosen = scores[held] if len(held) else scores
        self._calibration = Calibration(np.sort(chosen), unseen=len(held) > 0)

    def _scores_among_others(
        self, x: Floats, network: NearestMLP, held: npt.NDArray[np.int64]
    ) -> Floats:
        """Scores `[N]` of training rows with the distance to the others; sets the units before.

        Without what rare columns add.
        """
        logits = self._raw_logits(x, network.logits)
        with plain_torch():
            distances = distance_to_others(self._inputs(x), network.rows, self._places)
            del self._places
            away = distances.double().numpy()
            set_units(network, logits[held] if len(held) else logits, away, self.radius_)
            parts = (torch.from_numpy(part).float() for part in (logits, away))
            combined: Floats = network.combined(*parts).double().numpy()
        return -combined

    def _other_form(self) -> str:
        return (
            f"{type(self).__name__}.partial_fit: network, hidden, metric and nearest must be as in "
            "the fit before, for training goes on from its weights; fit begins anew"
        )

    def _members(self) -> list[nn.Module]:
        network = self.network_
        if isinstance(network, NearestMLP):
            network = network.logits
        return list(network.members) if isinstance(network, MLPEnsemble) else [network]

    def _threshold(self) -> float:
        chosen = self._chosen_threshold
        if chosen is None:  # it may have been changed since the fit
            check_contamination(type(self).__name__, self.contamination)
        return self._calibration.threshold(self.contamination) if chosen is None else chosen

    def _scores(self, X: Any) -> Floats:
        check_is_fitted(self)
        x = check_rows(self, X, reset=False)
        warn_of_columns(self, self._scaler, x)
        scores = self._raw_scores(x)
        strange = np.flatnonzero(np.isnan(scores))
        if len(strange) > 0:  # NaN is above no threshold, and so would pass for normal
            raise FloatingPointError(
                f"{type(self).__name__}: scores must be numbers, got nan from the network for row "
                f"{strange[0]}"
            )
        return scores

    def _raw_scores(self, x: Floats) -> Floats:
        """Scores `[N]` of checked rows, higher = more anomalous: negative logit plus penalty."""
        penalty: Floats = self._scaler.penalty(x)
        return penalty - self._raw_logits(x, self.network_)

    def _raw_logits(self, x: Floats, network: nn.Module) -> Floats:
        logits = np.empty(len(x))
        for batch in gen_batches(len(x), _SCORE_ROWS):
            rows = self._scaler.transform(x[batch])
            logits[batch] = logits_of(network, rows, type(self).__name__)
        return logits

    def _score_type(self) -> torch.dtype:
        double = recipe_of(parameters_of(self)).scores_in_double
        return torch.float64 if double else torch.float32

    def _new_scaler(self, name: str, x: Floats, recipe: Recipe, digits: Floats) -> Scaler:
        if x.ndim > 2:
            return ArrayScaler.fit(name, x)
        if recipe.keeps_rare_columns:
            return ColumnScaler.fit(name, x, digits)
        return Standardizer.fit(name, x)

    def _inputs(self, x: Floats) -> Tensor:
        return torch.from_numpy(self._scaler.transform(x).astype(np.float32))

    @property
    def _standardizer(self) -> Scaler:
        return self._scaler


def _same_form(one: nn.Module, other: nn.Module) -> bool:
    shapes = [{n: tuple(t.shape) for n, t in m.state_dict().items()} for m in (one, other)]
    return shapes[0] == shapes[1]


BaseDROCC._parameter_names = tuple(inspect.signature(BaseDROCC.__init__).parameters)[1:]
