"""DROCC as a skorch net, for scikit-learn's searches over networks of one's own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset

from drocc_ext.models.modules import as_logits
from drocc_ext.search import SearchConfig
from drocc_ext.training.loss import DROCCLoss, LossTerms

try:
    from skorch import NeuralNet
    from skorch.dataset import unpack_data
    from skorch.utils import to_tensor
except ImportError as _error:
    raise ImportError(
        f"drocc_ext.integrations.skorch needs skorch, pip install skorch ({_error})"
    ) from _error

__all__ = ["DROCCNet"]

_SEARCH = "search__"


class DROCCNet(NeuralNet):  # type: ignore[misc]
    """A skorch `NeuralNet` whose criterion is `DROCCLoss`.

    All of skorch's arguments work, and `criterion__...` are those of `DROCCLoss`. Single settings
    of the search go by `criterion__search__radius` and the like, in `set_params` and in grids too.
    Together with `criterion__search`, a `SearchConfig`, they take the place of its fields; without
    it they are the arguments of `SearchConfig.from_relative_step`, whose `step_size` is in radii.

    `fit(X)` takes all rows for normal, and so it does with a skorch `Dataset` that has no y, or a
    part of one. Labels in `fit(X, y)`, or of a dataset, are 1 = normal and 0 = negative, which
    makes it DROCC-OE (or -LF). Validation rows are read by the labels that they have. No rows are
    set aside for validation unless `train_split` says so. Batches of training have no `y_pred` for
    skorch's callbacks: a score of training rows needs `EpochScoring(..., on_train=True,
    use_caching=False)`.

    Args:
        module: Maps `[B, *]` to one logit per row, higher = more normal; a class or an instance.
        criterion: `DROCCLoss` or a subclass.
        train_split: As skorch's, but None by default.
        settings: skorch's other arguments.
    """

    _labelled: bool = True

    def __init__(
        self,
        module: Any,
        *,
        criterion: Any = DROCCLoss,
        train_split: Any = None,
        **settings: Any,
    ) -> None:
        """Keep the settings."""
        super().__init__(module, criterion=criterion, train_split=train_split, **settings)

    def get_params_for(self, prefix: str) -> dict[str, Any]:
        """Collect the arguments of a part; those of the criterion with its search put together.

        Args:
            prefix: Name of the part.

        Returns:
            The arguments.
        """
        given: dict[str, Any] = super().get_params_for(prefix)
        if prefix != "criterion":
            return given
        single = {k.removeprefix(_SEARCH): v for k, v in given.items() if k.startswith(_SEARCH)}
        rest = {name: value for name, value in given.items() if not name.startswith(_SEARCH)}
        if single:
            whole = rest.get("search")
            make = SearchConfig.from_relative_step
            rest["search"] = make(**single) if whole is None else replace(whole, **single)
        return rest

    def fit_loop(self, X: Any, y: Any = None, *args: Any, **settings: Any) -> Any:
        """Train, as skorch's, which uses the y beside a dataset for splits only.

        Args:
            X: Rows, or a dataset that serves rows and labels.
            y: Labels, or None.
            args: skorch's.
            settings: skorch's.

        Returns:
            The net.

        Raises:
            TypeError: If a subclass has a `get_loss` of its own, which would not be called.
            ValueError: If y is given beside a dataset that serves none.
        """
        if type(self).get_loss is not NeuralNet.get_loss:
            raise TypeError(
                "DROCCNet.fit: get_loss is not called, for the loss needs the module; a term of "
                "one's own goes into the criterion, a subclass of DROCCLoss"
            )
        if y is not None and isinstance(X, Dataset) and not _serves_labels(X):
            raise ValueError(
                f"DROCCNet.fit: X must serve labels where y is given, got a {type(X).__name__} "
                "without; give them to the dataset"
            )
        return super().fit_loop(X, y, *args, **settings)

    def run_single_epoch(self, iterator: Any, *args: Any, **settings: Any) -> None:
        """Train or validate, as skorch's, which hands zeros on where a dataset has no labels.

        Args:
            iterator: Of batches; None for no epoch.
            args: skorch's.
            settings: skorch's.
        """
        self._labelled = _serves_labels(getattr(iterator, "dataset", None))
        super().run_single_epoch(iterator, *args, **settings)

    def on_epoch_begin(self, net: Any, *args: Any, **settings: Any) -> None:
        """Begin an epoch of the loss.

        Args:
            net: This net.
            args: skorch's.
            settings: skorch's.
        """
        super().on_epoch_begin(net, *args, **settings)
        self.criterion_.start_epoch()

    def train_step_single(self, batch: Any, **settings: Any) -> dict[str, Any]:
        """Compute the objective of a batch and its gradients.

        Args:
            batch: Rows and labels.
            settings: Not used.

        Returns:
            "loss", and "y_pred", which is None.
        """
        self._set_training(True)
        total = self._terms(batch).total
        total.backward()  # type: ignore[no-untyped-call]
        return {"loss": total, "y_pred": None}

    def validation_step(self, batch: Any, **settings: Any) -> dict[str, Any]:
        """Compute the objective and the logits of a batch.

        Args:
            batch: Rows and labels.
            settings: Not used.

        Returns:
            "loss" and "y_pred", the logits.
        """
        self._set_training(False)
        with torch.no_grad():
            total = self._terms(batch).total
            logits = self.infer(unpack_data(batch)[0])
        return {"loss": total, "y_pred": logits}

    def decision_function(self, X: Any) -> npt.NDArray[np.float64]:
        """Score rows.

        Args:
            X: Rows, as skorch takes them.

        Returns:
            Logits, float64 `[N]`, higher = more normal.
        """
        parts = list(self.forward_iter(X))
        whole = torch.cat([as_logits(part, len(part)) for part in parts])
        scores: npt.NDArray[np.float64] = whole.double().cpu().numpy()
        return scores

    def predict(self, X: Any) -> npt.NDArray[np.int64]:
        """Label rows by the sign of the logit.

        Args:
            X: Rows, as skorch takes them.

        Returns:
            int64 `[N]`, 1 = normal, 0 = anomalous.
        """
        return (self.decision_function(X) > 0).astype(np.int64)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.estimator_type = "outlier_detector"  # whose scorers ask for decision_function
        return tags

    def _terms(self, batch: Any) -> LossTerms:
        rows, labels = unpack_data(batch)
        x = to_tensor(rows, device=self.device)
        y = to_tensor(labels, device=self.device) if self._labelled else None
        terms: LossTerms = self.criterion_(self.module_, x, y)
        return terms


def _serves_labels(dataset: Any) -> bool:
    """Say whether a dataset serves labels; skorch's without y serves zeros in their place."""
    if isinstance(dataset, Subset):
        return _serves_labels(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        found = {_serves_labels(part) for part in dataset.datasets}
        if len(found) > 1:
            raise ValueError(
                "DROCCNet.fit: all parts of a ConcatDataset must have labels, or none, got both"
            )
        return True in found
    return getattr(dataset, "y", True) is not None
