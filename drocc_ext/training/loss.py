"""The training objective: eq. (1), its inner maximum taken by `adversarial_search`."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drocc_ext._checks import as_float, check_rows, describe
from drocc_ext.models.modes import frozen
from drocc_ext.models.modules import bare, runs_by_itself, uncompiled, unwrap
from drocc_ext.ops import influence as influence_of
from drocc_ext.ops.nearest import nearest_distance
from drocc_ext.search.config import SearchConfig
from drocc_ext.search.gradients import input_gradient
from drocc_ext.search.mlp.joint import has_losses, mlp_losses
from drocc_ext.search.mlp.match import as_hidden_layers, find_mlp
from drocc_ext.search.mlp.search import is_compatible, joint_losses, pays
from drocc_ext.search.search import adversarial_search, draw_start
from drocc_ext.training.influence_tracker import InfluenceTracker
from drocc_ext.training.spare import is_sharded, joint_forward, spare_row, zero_of_model

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Metric: TypeAlias = Literal["l2", "mahalanobis"]
Labels: TypeAlias = Literal["hard", "distance"]

METRICS = ("l2", "mahalanobis")
_INFLUENCES = ("epoch", "sample")
_LABELS = ("hard", "distance")
# The names of the tracker's state before there was one.
_FORMER_STATE = {
    "sigma": "sigma",
    "_influence_sum": "influence_sum",
    "_influence_rows": "row_count",
}


class LossTerms(NamedTuple):
    """The objective and its two parts, 0-dimensional tensors with gradient history.

    Attributes:
        total: `clean + mu * adversarial`, the one to minimize.
        clean: Mean loss of the given rows at their labels.
        adversarial: Mean loss of the adversarial points at the anomalous label; 0 in warm-up and
            in a batch without normal rows.
    """

    total: Tensor
    clean: Tensor
    adversarial: Tensor


class DROCCLoss(nn.Module):
    """Objective of DROCC and, with labelled negatives, of DROCC-OE and DROCC-LF (eq. (1) and (2)).

    `total = mean BCE(f(x), y) + mu * mean BCE(f(x_adv), 0)`: the first mean is over all rows, the
    second over one adversarial point for each normal row. Weight decay, the paper's lambda, is the
    optimizer's. Without labels this is DROCC; with labelled negatives it is DROCC-OE in the metric
    "l2" and DROCC-LF in the metric "mahalanobis".

    Equation (1) takes points for anomalous that are at least r away from ALL training rows, which
    Algorithm 1 relaxes to the one row a point was sought around. `labels="distance"` asks all of
    them: with d the distance to the nearest of `rows`, a found point's target is
    `max(0, 1 - d / r)` instead of 0. So a point on another row's doorstep is not held to be
    anomalous, and one that is nearer than r teaches how near it is.

    Clean and adversarial rows go through the model in one joint forward. In two, BatchNorm in
    training mode would normalize each group by its own statistics, and a network trained that way
    fails once it uses the running ones.

    A multilayer perceptron of linear layers and ReLUs is not called where there are native kernels
    and the search's method is "auto": operators search and give losses and gradients of first
    order (on a GPU, for one hidden layer; with more of them only the search is an operator's).
    Method "autograd" always calls the model.

    The Mahalanobis metric weighs each coordinate by its influence sigma on the logit: the absolute
    value of the gradient of the logit at a clean normal row, divided by its mean over the
    coordinates (`ops.influence`), in the `frozen` model. A coordinate that the network ignores
    then costs no distance. The mean of sigma is 1, so `radius` keeps its order of magnitude. With
    `influence="epoch"`, as in the paper, one sigma `[*]` serves all rows of an epoch: the mean over
    the normal rows of the epoch before. `start_epoch` begins an epoch; `Trainer` calls it, a loop
    of your own has to:

        for epoch in range(epochs):
            loss.start_epoch()
            for x, y in batches:
                optimizer.zero_grad()
                loss(model, x, y).total.backward()
                optimizer.step()

    Until there has been such an epoch, sigma is the mean over the batch at hand. Only forwards in
    training mode with the adversarial term are counted: call `loss.eval()` for validation. Rows
    whose influence is not finite are left out of the means. The means are part of `state_dict`.
    Under `DistributedDataParallel` give `start_epoch` the process group, or each process has its
    own. With `influence="sample"` every row has its own sigma `[B, *]` and nothing is kept.

    Args:
        search: Settings of the search.
        mu: Weight of the adversarial term, >= 0 and finite.
        metric: Geometry of the shell, "l2" or "mahalanobis".
        influence: Where the sigma of "mahalanobis" comes from, "epoch" or "sample".
        labels: Targets of the points found: "hard", all 0, or "distance".
        rows: All training rows `[N, *]` for the labels "distance"; moved with the module, no part
            of its state.

    Attributes:
        sigma: The sigma in force, `[*]`, float64 (`sigma.to(x)` fits it to rows x); None before
            the second epoch and where none is kept.

    Raises:
        TypeError: If search is not a SearchConfig or mu not a number.
        ValueError: If mu is out of range, or metric or influence does not exist.
    """

    def __init__(
        self,
        search: SearchConfig,
        mu: float = 1.0,
        metric: Metric = "l2",
        influence: Literal["epoch", "sample"] = "epoch",
        labels: Labels = "hard",
        rows: Tensor | None = None,
    ) -> None:
        """Check and keep the settings."""
        super().__init__()
        if not isinstance(search, SearchConfig):
            raise TypeError(
                f"DROCCLoss: search must be a SearchConfig, got {type(search).__name__}"
            )
        if not 0 <= as_float("DROCCLoss", "mu", mu) < math.inf:
            raise ValueError(f"DROCCLoss: mu must be >= 0 and finite, got {mu}")
        for name, value, known in (
            ("metric", metric, METRICS),
            ("influence", influence, _INFLUENCES),
            ("labels", labels, _LABELS),
        ):
            if value not in known:
                raise ValueError(
                    f"DROCCLoss: {name} must be one of {', '.join(known)}, got {value!r}"
                )
        if labels == "distance" and not isinstance(rows, Tensor):
            raise TypeError(
                "DROCCLoss: the labels 'distance' need rows, a tensor of all training rows, got "
                f"{describe(rows)}"
            )
        _check_radii(search.radius)
        self.search = search
        self.mu: float = float(mu)
        self.labels = labels
        self.rows: Tensor | None
        self.register_buffer("rows", rows if labels == "distance" else None, persistent=False)
        self.metric = metric
        self.influence = influence
        kept = self._keeps_means()
        self.tracker: InfluenceTracker | None = InfluenceTracker() if kept else None

    @property
    def sigma(self) -> Tensor | None:
        """The sigma in force, None before the second epoch and where none is kept."""
        return None if self.tracker is None else self.tracker.sigma

    if TYPE_CHECKING:
        # nn.Module's own gives Any.
        def __call__(  # noqa: D102
            self,
            model: nn.Module,
            x: Tensor,
            y: Tensor | None = None,
            *,
            adversarial: bool = True,
            generator: torch.Generator | None = None,
        ) -> LossTerms: ...

    def forward(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor | None = None,
        *,
        adversarial: bool = True,
        generator: torch.Generator | None = None,
    ) -> LossTerms:
        """Compute the objective on one batch.

        Args:
            model: Maps `[B, *]` to logits `[B]` or `[B, 1]`, higher = more normal. A function that
                calls one is searched in the mode that its modules are in.
            x: Rows, `[B, *]`, floating point.
            y: Labels, `[B]` or `[B, 1]`, boolean, integer or floating point: 1 = normal,
                0 = negative. None: every row is normal.
            adversarial: False leaves out the search and its term (the n0 initial steps of
                Algorithm 1).
            generator: Source of the search's noise, on the device of x.

        Returns:
            The terms, in float32 (float64 for float64 logits). An empty batch gives zeros, the
            total connected to the parameters so that `backward` gives zero gradients; a model of
            several ranks is called nevertheless, as often as the others call it. A joint forward of
            one single row, for which BatchNorm in training mode is not defined, runs in the
            `frozen` model; parameters still get gradients.

        Raises:
            TypeError: If x is not a floating-point tensor, or y not a tensor.
            ValueError: If y does not fit x or holds another label, if rows are not of the shape of
                the epoch's sigma, and for all that `adversarial_search` refuses.
        """
        return self._terms(model, x, y, adversarial, generator)

    @partial(runs_by_itself, name="DROCCLoss")
    def _terms(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor | None,
        adversarial: bool,
        generator: torch.Generator | None,
    ) -> LossTerms:
        check_rows("DROCCLoss", x)
        if x.dim() == 1 and self.metric == "mahalanobis":
            raise ValueError(
                "DROCCLoss: the metric 'mahalanobis' needs rows with features, shape [B, *], got "
                f"{tuple(x.shape)}"
            )
        if x.is_inference() and not torch.is_inference_mode_enabled():
            x = x.clone()  # autograd keeps none of those
        is_normal = None if y is None else as_normal_mask("DROCCLoss", y, x.shape[0]).to(x.device)
        if x.shape[0] == 0:
            if adversarial:
                self._search_in_step(model, x)
            total = zero_of_model(model, x)
            return LossTerms(total, total.detach(), total.detach().clone())
        hidden = self._hidden_losses(model, x, is_normal, generator) if adversarial else None
        if hidden is not None:
            clean, against = hidden
            return LossTerms(clean + self.mu * against, clean, against)
        rows, measured = x, None
        if adversarial:
            x_adv, measured = self._search(model, x, is_normal, generator)
            rows = torch.cat([x, x_adv])
        logits = joint_forward(model, rows)
        if measured is not None and self.tracker is not None and self.training:
            self.tracker.count(measured)  # now, so that a forward that fails leaves no trace
        clean_logits, adv_logits = logits[: x.shape[0]], logits[x.shape[0] :]
        target = torch.ones_like(clean_logits) if is_normal is None else is_normal.to(logits.dtype)
        clean = F.binary_cross_entropy_with_logits(clean_logits, target)
        if adv_logits.shape[0] == 0:
            return LossTerms(clean, clean, torch.zeros_like(clean))
        targets = torch.zeros_like(adv_logits)
        if self.rows is not None:
            found = self._distance_labels(rows[x.shape[0] :], is_normal)
            targets = found.detach().to(targets)  # of the points, not of their radii
        against = F.binary_cross_entropy_with_logits(adv_logits, targets)
        return LossTerms(clean + self.mu * against, clean, against)

    def start_epoch(self, group: ProcessGroup | None = None) -> None:
        """Begin an epoch: sigma becomes the mean over the normal rows since the last call.

        Where there were none, as in warm-up, sigma stays. Does nothing where no mean is kept.

        Args:
            group: Processes that share an epoch's rows, each of which has to call this: sigma is
                the mean over the rows of all. None: over those of this process.
        """
        if self.tracker is not None:
            self.tracker.start_epoch(group)

    def reset(self) -> None:
        """Forget sigma and what was counted, as if newly made; for another model or other data."""
        if self.tracker is not None:
            self.tracker.reset()

    def extra_repr(self) -> str:
        """Describe the settings, for `repr`.

        Returns:
            One line.
        """
        text = f"search={self.search}, mu={self.mu}, metric={self.metric!r}"
        if self.labels != "hard":
            text = f"{text}, labels={self.labels!r}"
        return text if self.metric == "l2" else f"{text}, influence={self.influence!r}"

    def _hidden_losses(
        self,
        model: nn.Module,
        x: Tensor,
        is_normal: Tensor | None,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor] | None:
        """Search and joint forward at once, where the network is a multilayer perceptron."""
        config = self.search
        if self.metric != "l2" or config.method not in ("auto", "hidden") or config.num_steps == 0:
            return None
        layers = find_mlp(uncompiled(model))
        # Inference tensors cannot be kept for a backward.
        if layers is None or x.requires_grad or x.is_inference():
            return None
        soft = self.labels == "distance"
        # On a GPU one hidden layer has operators, which know label 0 only.
        hidden = None if soft or x.is_cpu else as_hidden_layers(layers)
        if not (has_losses(layers, x) if hidden is None else is_compatible(hidden, x)):
            return None
        if config.method == "auto" and not pays(layers, x.shape[0], config.num_steps):
            return None
        config = self._config_of(is_normal)
        targets = partial(self._distance_labels, is_normal=is_normal) if soft else None
        if is_normal is not None and bool(is_normal.all()):
            is_normal = None
        around = x if is_normal is None else x[is_normal]
        if around.shape[0] == 0:
            return None
        with torch.inference_mode(False), torch.no_grad():
            config = config.with_drawn_radii(around, generator)
            h = draw_start("DROCCLoss", around, config, generator)
        if hidden is None:
            return mlp_losses(layers, x, is_normal, h, config, targets)
        return joint_losses(hidden, x, is_normal, h, config)

    def _distance_labels(self, x_adv: Tensor, is_normal: Tensor | None) -> Tensor:
        """Targets of found points, `[B]`: 1 on a training row, 0 from r on."""
        assert self.rows is not None
        radius = self._config_of(is_normal).radius
        if self.rows.shape[1:] != x_adv.shape[1:]:
            raise ValueError(
                f"DROCCLoss: rows must be training rows [N, {', '.join(map(str, x_adv.shape[1:]))}]"
                f" like x, got shape {tuple(self.rows.shape)}"
            )
        distance = nearest_distance(x_adv, self.rows.to(x_adv))
        return (1 - distance / radius).clamp(min=0.0).to(x_adv.dtype)

    def _config_of(self, is_normal: Tensor | None) -> SearchConfig:
        """Give the settings for the normal rows of a batch."""
        radius = self.search.radius
        if is_normal is None or not isinstance(radius, Tensor):
            return self.search
        if radius.shape != is_normal.shape:
            raise ValueError(
                f"DROCCLoss: a radius tensor must have shape {tuple(is_normal.shape)}, one "
                f"radius per row, got {tuple(radius.shape)}"
            )
        return self.search.of_rows(is_normal)

    def _search(
        self,
        model: nn.Module,
        x: Tensor,
        is_normal: Tensor | None,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Find the adversarial points; give what was measured of the rows' influence too."""
        config = self._config_of(is_normal)
        if is_normal is not None:
            every = x
            x = x[is_normal]
            if x.shape[0] == 0:
                self._search_in_step(model, every)
        sigma, measured = None, None
        if self.metric == "mahalanobis" and x.shape[0] > 0:
            sigma, measured = self._measure(model, x)
        return adversarial_search(model, x, config, sigma=sigma, generator=generator), measured

    def _search_in_step(self, model: nn.Module, x: Tensor) -> None:
        """Call a sharded model as the other ranks do, which have normal rows."""
        if not is_sharded(model):
            return
        config, row = self.search, spare_row(x)
        if isinstance(config.radius, Tensor):
            config = replace(config, radius=1.0)
        sigma = self._measure(model, row)[0] if self.metric == "mahalanobis" else None
        noise = torch.Generator(x.device).manual_seed(0)  # that of other rows stays as it is
        adversarial_search(model, row, config, sigma=sigma, generator=noise)

    def _measure(self, model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Give the sigma for these rows and, where it was needed, each row's influence."""
        if self.tracker is None:
            return _influence(model, x), None
        self.tracker.check_shape("DROCCLoss", x)
        sigma = self.tracker.sigma
        if sigma is not None and not self.training:
            return sigma.to(x), None
        rows = _influence(model, x)
        return (self.tracker.mean_of(rows) if sigma is None else sigma).to(x), rows

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        if self.tracker is not None:  # a state of the first version had no tracker
            for old, new in _FORMER_STATE.items():
                if prefix + old in state_dict:
                    state_dict[f"{prefix}tracker.{new}"] = state_dict.pop(prefix + old)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _keeps_means(self) -> bool:
        return self.metric == "mahalanobis" and self.influence == "epoch"


def as_normal_mask(caller: str, y: Tensor, batch_size: int) -> Tensor:
    """Check labels and turn them into a mask of the normal rows.

    Args:
        caller: Name to begin an error with.
        y: Labels, `[B]` or `[B, 1]`: 1 = normal, 0 = negative.
        batch_size: Number of rows B.

    Returns:
        Boolean tensor `[B]`, True = normal, on the device of y.

    Raises:
        TypeError: If y is not a tensor.
        ValueError: If y has another shape or holds another value.
    """
    if not isinstance(y, Tensor):
        raise TypeError(f"{caller}: labels must be a tensor, got {type(y).__name__}")
    if y.shape not in ((batch_size,), (batch_size, 1)):
        raise ValueError(
            f"{caller}: labels must have shape ({batch_size},) or ({batch_size}, 1), got "
            f"{tuple(y.shape)}"
        )
    y = y.reshape(batch_size)
    is_normal = y == 1
    if bool(is_normal.all()):  # the usual case, answered soon
        return is_normal
    others = y[~is_normal & (y != 0)]
    if others.numel() > 0:
        raise ValueError(
            f"{caller}: labels must be 1 (normal) or 0 (negative), got {others[0].item()}"
        )
    return is_normal


def _check_radii(radius: float | Tensor) -> None:
    """Refuse radii of rows that are none: the mean loss of all rows would be NaN.

    A search makes NaN of such a row alone. On a device the values are not read, which would wait.
    """
    if isinstance(radius, Tensor) and radius.is_cpu and radius.is_floating_point():
        bad = torch.nonzero(~((radius > 0) & radius.isfinite()).reshape(-1))
        if len(bad) > 0:
            where = int(bad[0])
            raise ValueError(
                f"DROCCLoss: a radius tensor must be > 0 and finite, got "
                f"{radius.reshape(-1)[where].item():g} in row {where}"
            )


def _influence(model: nn.Module, x: Tensor) -> Tensor:
    """Influence of each coordinate of each row on the logit, `[B, *]`, without a graph."""
    module = unwrap(model)
    # Leaving inference mode turns gradients on, so no_grad has to come after it.
    with torch.inference_mode(False), torch.no_grad(), frozen(module):
        x = bare(x)
        leaf = torch.empty_like(x, requires_grad=True)  # `requires_grad_` fails in torch.func
        leaf.copy_(x)
        return influence_of(input_gradient("DROCCLoss", module, leaf)).to(x.dtype)
