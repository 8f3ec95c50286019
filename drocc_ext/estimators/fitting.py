"""Training of an estimator's networks."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from drocc_ext.estimators.recipes import Recipe
from drocc_ext.models.modes import frozen
from drocc_ext.models.modules import copied, keeping_gradients, may_draw
from drocc_ext.models.networks import MLP
from drocc_ext.radius import suggest_radius
from drocc_ext.search import SearchConfig
from drocc_ext.search.noise import row_factor
from drocc_ext.training.checkpoint import History
from drocc_ext.training.data import Data
from drocc_ext.training.loss import DROCCLoss, Metric
from drocc_ext.training.ranks import Distributed, all_ranks, device_of
from drocc_ext.training.trainer import Trainer


@dataclass(frozen=True)
class Fitting:
    """What the networks of one fit have in common.

    Attributes:
        recipe: The settings.
        radius: Inner radius of the shell.
        noise_scale: Standard deviation of the starting noise.
        metric: Geometry of the shell.
        weight_decay: Adam's.
        device: Where to train.
        patience: Epochs without a better validation loss before the end; None for no such end.
        verbose: Whether to show progress.
    """

    recipe: Recipe
    radius: float
    noise_scale: float
    metric: Metric
    weight_decay: float
    device: str
    patience: int | None
    verbose: bool

    def train(
        self,
        network: nn.Module,
        rows: Tensor,
        negatives: Tensor | None,
        validation: Tensor | None,
        seed: int,
    ) -> History:
        """Train a network in place; it ends on the CPU in eval mode, in float32.

        Args:
            network: Where it begins.
            rows: Normal rows `[N, *]`, float32.
            negatives: Known anomalies, or None.
            validation: Normal rows that select the best epoch, or None.
            seed: Of shuffling and search.

        Returns:
            The history.

        Raises:
            ValueError: If a module of others does not take such rows.
            FloatingPointError: If training diverges.
        """
        recipe, ranks = self.recipe, all_ranks().size
        distributed: Distributed | None = None if ranks == 1 else "ddp"
        device = device_of(network, self.device, distributed)
        network = network.to(device, torch.float32)
        rows = rows.to(device)
        draws = not isinstance(network, MLP) and may_draw(network, rows[:2])
        with _own_draws(device, seed) if draws else nullcontext():
            _check_takes(network, rows)
        generator = torch.Generator(device).manual_seed(seed)
        shaped = recipe.noise in ("rows", "mixed", "blend")
        search = SearchConfig.from_relative_step(
            self.radius,
            step_size=recipe.step_size,
            num_steps=recipe.num_steps,
            noise_scale=self.noise_scale,
            gamma=recipe.gamma,
            radius_range=recipe.radius_range,
            noise=recipe.noise,
            noise_factor=row_factor(rows, generator=generator) if shaped else None,
            noise_rows=rows if recipe.noise in ("swaps", "blend") else None,
        )
        soft = recipe.labels == "distance"
        loss = DROCCLoss(
            search,
            mu=recipe.mu,
            metric=self.metric,
            labels=recipe.labels,
            rows=rows if soft else None,
        )
        optimizer = torch.optim.Adam(
            network.parameters(), lr=recipe.learning_rate, weight_decay=self.weight_decay
        )
        steps = recipe.max_steps
        trainer = Trainer(
            network,
            loss,
            optimizer,
            scheduler=LambdaLR(optimizer, lambda step: 1 - step / steps),
            scheduler_interval="step",
            progress=self.verbose,
            distributed=distributed,
        )
        data: Data = rows
        if negatives is not None:
            negatives = negatives.to(device)
            labels = torch.cat([rows.new_ones(len(rows)), rows.new_zeros(len(negatives))])
            data = (torch.cat([rows, negatives]), labels)
        with _own_draws(device, seed) if draws else nullcontext():
            history = trainer.fit(
                data,
                validation=validation,
                patience=self.patience if validation is not None else None,
                max_steps=steps,
                batch_size=-(-recipe.batch_size // ranks),  # the recipe's is that of a step
                seed=seed,
            )
        network.cpu().eval()
        return history


# torch's global generators serve one fit at a time: two threads would share their draws.
_GLOBAL_DRAWS = threading.RLock()


def _after_fork() -> None:
    """Give a forked process, which has one thread only, a lock that nobody else holds."""
    global _GLOBAL_DRAWS
    _GLOBAL_DRAWS = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def _own_draws(device: torch.device, seed: int) -> Iterator[None]:
    """Let what a module of others draws, such as dropout, follow from the seed too.

    Threads that fit such modules take turns; nothing else may draw from the global generator
    meanwhile, or the seed does not decide alone.
    """
    with _GLOBAL_DRAWS, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed((seed + all_ranks().rank) % 2**31)
        yield


def _check_takes(network: nn.Module, rows: Tensor) -> None:
    """Refuse a module of others that fails for a row: torch's sentence names neither."""
    if isinstance(network, MLP):
        return
    with torch.no_grad(), frozen(network):
        try:
            network(rows[:2])
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"network must take float32 rows of shape {tuple(rows.shape[1:])}, which are the "
                f"columns that vary, but failed: {reason}"
            ) from error


def new_network(widths: tuple[int, ...] | nn.Module, in_features: int, seed: int) -> nn.Module:
    """Make a network to train; torch's global generator is neither used nor changed.

    Args:
        widths: Units of the hidden layers; or a module, of which a copy is made.
        in_features: Inputs.
        seed: Of the weights, which are those that `MLP(in_features, widths)` would have after
            `torch.manual_seed(seed)`.

    Returns:
        The network, float32, on the CPU.
    """
    if isinstance(widths, nn.Module):
        return copied(widths)
    network = MLP(in_features, widths[0] if len(widths) == 1 else widths, device="meta")
    network = network.to_empty(device="cpu").to(torch.float32)
    generator = torch.Generator("cpu").manual_seed(seed)
    with torch.no_grad():
        for layer in (*network.layers, network.logit):
            nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
            bound = 1 / math.sqrt(layer.in_features)
            nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
    return network


def choose_radius(radius: float | None, rows: Tensor, seed: int) -> float:
    """Choose the inner radius of the shell.

    Args:
        radius: What the estimator was given, or None.
        rows: Scaled training rows `[N, *]`.
        seed: Of the rows that `suggest_radius` draws.

    Returns:
        The radius.
    """
    if radius is not None:
        return float(radius)
    try:
        return suggest_radius(rows, k=min(5, len(rows) - 1), seed=seed)
    except ValueError:  # many copies: the spacing of different rows then
        different = torch.unique(rows.flatten(1), dim=0)
        return suggest_radius(different, k=min(5, len(different) - 1), seed=seed)


@contextmanager
def plain_torch() -> Iterator[None]:
    """Leave `no_grad`, `inference_mode`, `autocast` and a default device of the caller's outside.

    A network that trains in somebody's `autocast` would go on with weights that it has cached.
    """
    with keeping_gradients(), ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for kind in ("cpu", "cuda", "xpu", "mps"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield
