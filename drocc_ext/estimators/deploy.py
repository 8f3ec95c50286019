"""A fitted detector as one module: for `torch.export`, ONNX, AOTInductor and C++."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from drocc_ext.estimators._snapshot import of_one_fit
from drocc_ext.estimators.columns import ArrayScaler, ColumnScaler, Scaler
from drocc_ext.estimators.moments import CLIP
from drocc_ext.estimators.usual_values import ROUNDING, rounding_types, usual_forms
from drocc_ext.models.modules import copied
from drocc_ext.models.networks import MLP, MLPEnsemble, NearestMLP

__all__ = ["Deployable", "DetectorModule"]

# Stored rows that all rows are measured from at once: 1 kB a row, where all of them took 65.
_BLOCK = 128


class DetectorModule(nn.Module):
    """Preprocessing, network and threshold of a fitted detector. Made by `to_module()`.

    It holds tensors and the network, nothing of scikit-learn or of this package's operators, so
    that what `torch.export`, ONNX or AOTInductor makes of it runs where the package is not
    installed. The network is a copy. The module stays as at inference time: `train()` does nothing.

    Attributes:
        network: Maps scaled rows to logits.
        threshold: Rows with a higher score are anomalous; float64, 0-dimensional.
    """

    threshold: Tensor
    mean: Tensor
    scale: Tensor
    weight: Tensor
    columns: Tensor
    rare: Tensor
    modes: Tensor
    rounds: Tensor
    reach: Tensor
    surprise: Tensor
    units: Tensor

    def __init__(self, scaler: Scaler, network: nn.Module, threshold: float, width: int) -> None:
        """Copy what a detector has learned.

        Args:
            scaler: From the rows of a user to the inputs of the network.
            network: The network.
            threshold: Rows with a higher score are anomalous.
            width: Number of columns D of a user's rows.
        """
        super().__init__()
        own = copied(network)
        self.network: nn.Module = own
        if isinstance(own, NearestMLP):
            self.network = _Nearest(own)
        elif isinstance(own, MLP | MLPEnsemble):
            self.network = _InDouble(own)
        self.network.eval()
        for parameter in self.network.parameters():  # TorchScript's modules have no method for it
            parameter.requires_grad_(False)
        kinds = [p.dtype for p in network.parameters() if p.is_floating_point()]
        self.dtype: torch.dtype = kinds[0] if kinds else torch.float32
        self.width: int = width
        self.takes_columns: bool = not isinstance(scaler, ArrayScaler)
        self.has_rare_columns: bool = isinstance(scaler, ColumnScaler) and len(scaler.rare) > 0
        self._keep("threshold", threshold)
        self._keep("mean", scaler.mean)
        self._keep("scale", scaler.scale)
        if isinstance(scaler, ColumnScaler):
            self._keep("columns", scaler.varying)
            self._keep("weight", scaler.weight)
            if self.has_rare_columns:  # torch.export.save takes no empty tensors
                self._keep("rare", scaler.rare)
                self._keep("modes", usual_forms(scaler.mode))
                self._keep("rounds", rounding_types(scaler.mode, scaler.digits[scaler.rare]))
                self._keep("reach", scaler.reach)
                self._keep("surprise", scaler.surprise)
                units = (scaler.most, scaler.spread, scaler.never, scaler.once)
                self._keep("units", np.asarray(units, dtype=np.float64))
        else:
            self._keep("weight", 1.0)
            if not isinstance(scaler, ArrayScaler):
                self._keep("columns", scaler.kept)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Score rows and compare with the threshold.

        Args:
            x: Rows as the detector takes them, `[N, D]` or, with a network for arrays, `[N, *]`,
                floating point. float64 rows give the detector's scores; those of float32 rows are
                of the values as rounded, and a column that hardly varied in training is compared in
                float32.

        Returns:
            Scores `[N]`, float64, higher = more anomalous, and whether they are above the
            threshold, boolean `[N]`. A row with a NaN, which the detector refuses, has the score
            NaN and is anomalous; infinity counts as the largest value.

        Raises:
            ValueError: If the number of columns is another.
        """
        if self.takes_columns:
            if not _is_traced() and (x.dim() != 2 or x.shape[1] != self.width):
                raise ValueError(
                    f"DetectorModule: x must have shape [N, {self.width}], got {tuple(x.shape)}"
                )
            x = x.reshape(x.shape[0], self.width)  # a trace keeps this, and not what is above
        rows = x[:, self.columns] if self.takes_columns else x
        inputs = ((rows.double() - self.mean) / self.scale).clamp(-CLIP, CLIP) * self.weight
        # The detector keeps its logits in float32 too.
        scores = -self.network(inputs.to(self.dtype)).reshape(x.shape[0]).float().double()
        if self.has_rare_columns:
            rare = x[:, self.rare].double()
            # As `usual_values.differs`: a table in float32 holds 0.1 as another number.
            deviates = (rare.float().double() != self.modes[0]) | ~self.rounds[0]
            deviates = deviates & ((rare.half().double() != self.modes[0]) | ~self.rounds[1])
            for form in self.modes.unbind():
                deviates = deviates & ((rare - form).abs() > ROUNDING * form.abs())
            beyond = deviates & ((rare < self.reach[0]) | (rare > self.reach[1]))
            seen = (deviates & ~beyond).double() @ self.surprise
            most, spread, never, once = self.units.unbind()
            excess = (seen - most).clamp(min=0.0) / spread
            many = beyond.double().sum(dim=1)
            scores = scores + excess + many * never + many.clamp(max=1.0) * once
        # Not left to the kernels below: some of ONNX take the maximum of NaN and 0 for 0.
        bad = x.flatten(1).isnan().any(dim=1)
        scores = torch.where(bad, torch.full_like(scores, torch.nan), scores)
        return scores, (scores > self.threshold) | scores.isnan()

    def train(self, mode: bool = True) -> DetectorModule:
        """Do nothing: a detector in use has no training mode.

        Args:
            mode: Not used.

        Returns:
            The module.
        """
        return self

    def _keep(self, name: str, value: float | npt.NDArray[Any]) -> None:
        self.register_buffer(name, torch.from_numpy(np.array(value)))


def _is_traced() -> bool:
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined,no-untyped-call]


class _InDouble(nn.Module):
    """One of our own networks, in float64 as the detector computes it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.double()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x.double())
        return logits


class _Nearest(nn.Module):
    """A `NearestMLP` in operators of PyTorch alone, for `nearest_row` is one of this package's."""

    def __init__(self, network: NearestMLP) -> None:
        super().__init__()
        self.network = network
        self.network.logits.double()

    def forward(self, x: Tensor) -> Tensor:
        rows, wide = self.network.rows, x.double()
        least, nearest = self._nearest(wide, 0)
        for begin in range(_BLOCK, len(rows), _BLOCK):
            order, index = self._nearest(wide, begin)
            closer = order < least
            least = torch.where(closer, order, least)
            nearest = torch.where(closer, index, nearest)
        gap = x - rows.index_select(0, nearest)
        distance = torch.linalg.vector_norm(gap, dim=1, keepdim=True)
        logits = self.network.logits(wide).to(x.dtype)
        return self.network.combined(logits, distance)

    def _nearest(self, x: Tensor, begin: int) -> tuple[Tensor, Tensor]:
        """Find the nearest row of a block; the measure is the squared distance without |x|^2."""
        block = self.network.rows[begin : begin + _BLOCK].double()
        order = torch.addmm(block.square().sum(dim=1), x, block.T, alpha=-2.0)
        least, index = order.min(dim=1)
        return least, index + begin


class Deployable:
    """What the estimators inherit: `to_module`."""

    @of_one_fit
    def to_module(self) -> DetectorModule:
        """Put preprocessing, network and threshold into one module, to be exported.

        The threshold is the one in force now; setting another later does not change the module.

        Returns:
            A module that maps rows `[N, D]` to scores `[N]` (float64, higher = more anomalous,
            for either convention) and labels `[N]` (True = anomalous), see `DetectorModule`.

        Raises:
            sklearn.exceptions.NotFittedError: Before the first fit.
        """
        check_is_fitted(self)
        fitted: Any = self
        by_offset = hasattr(type(self), "offset_")
        threshold = -fitted.offset_ if by_offset else fitted.threshold_
        return DetectorModule(fitted._scaler, fitted.network_, threshold, fitted.n_features_in_)
