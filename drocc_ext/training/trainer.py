"""Training: epochs, selection on held-out data, checkpoints, scores."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from tqdm.auto import tqdm

from drocc_ext import metrics
from drocc_ext._checks import as_int
from drocc_ext.models.modes import stepping
from drocc_ext.models.modules import fresh_casts, keeping_gradients, to_device
from drocc_ext.radius import warn_if_short_travel
from drocc_ext.training.callbacks import Callback
from drocc_ext.training.checkpoint import Checkpointer, FitState, History
from drocc_ext.training.data import Batches, Data, TensorBatches, as_batches
from drocc_ext.training.evaluation import Monitor, check_labels, collect_scores, monitored_value
from drocc_ext.training.fit_checks import (
    check_can_be_restored,
    check_finite,
    check_fit,
    check_parameters,
    check_parts,
    check_record,
    check_state_is_here,
)
from drocc_ext.training.loss import DROCCLoss
from drocc_ext.training.mlp_epoch import MLPTraining, find_training
from drocc_ext.training.ranks import Distributed, device_of, find_ranks

__all__ = ["History", "Trainer"]

_VALIDATION = "Trainer.fit: validation"


class Trainer:
    """Trains a model by Algorithm 1, with any optimizer that steps without a closure.

    The paper's regularization lambda is the optimizer's `weight_decay`. Selection and stopping look
    at validation data only, never at test data.

    Args:
        model: Module with one logit per row, `[B]` or `[B, 1]`, higher = more normal.
        loss: The objective.
        optimizer: Over the model's parameters. A perceptron's steps may be taken by one operator: a
            hook on a module, parameter or optimizer makes it a loop of torch's own, one on a node
            of autograd's graph (`AccumulateGrad`) cannot be seen.
        scheduler: Learning-rate scheduler. `ReduceLROnPlateau` gets the monitored value, or the
            training loss without validation.
        scheduler_interval: Whether the scheduler steps after each "epoch" or optimizer "step".
        device: Where to train; the model moves there. None: where its parameters are.
        clip_norm: Largest l2 norm of the gradient, > 0; None for no clipping.
        autocast_dtype: `torch.bfloat16` or `torch.float16` (with loss scaling) for mixed precision.
        channels_last: Keep images `[B, C, H, W]` and the model's convolutions in that memory
            format, in which convolutions and pooling are faster; the model may not `view` an
            activation as if it were in the other. The model stays in it.
        callbacks: Called in this order, on every rank unless they say otherwise.
        progress: Show a progress bar, on rank 0.
        distributed: For processes that `torchrun` started: "ddp" wraps the model in
            `DistributedDataParallel`, "fsdp" shards it by `fully_shard`. None: the model is as it
            is to be, wrapped by yourself or not. See docs/scale.md.

    Raises:
        TypeError: If model, loss, optimizer, scheduler or a callback has the wrong type.
        ValueError: If another argument is out of range, the optimizer needs a closure, or the
            scheduler is one of another.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: DROCCLoss,
        optimizer: Optimizer,
        *,
        scheduler: LRScheduler | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
        device: str | torch.device | None = None,
        clip_norm: float | None = None,
        autocast_dtype: torch.dtype | None = None,
        channels_last: bool = False,
        callbacks: Iterable[Callback] = (),
        progress: bool = True,
        distributed: Distributed | None = None,
    ) -> None:
        """Check and keep the parts."""
        callbacks = tuple(callbacks) if isinstance(callbacks, Iterable) else callbacks
        check_parts(model, loss, optimizer, scheduler, scheduler_interval, callbacks)
        self.device: torch.device = device_of(model, device, distributed)
        self.model: nn.Module = to_device(model, self.device, channels_last)
        self.channels_last = channels_last
        self.loss = loss
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.scheduler_interval = scheduler_interval
        self.callbacks: tuple[Callback, ...] = tuple(callbacks)
        self.progress = progress
        self.should_stop: bool = False
        self.model, self._ranks = find_ranks(self.model, optimizer, self.device, distributed)
        self._step = self._ranks.step_type(
            self.model, loss, optimizer, clip_norm=clip_norm, autocast_dtype=autocast_dtype
        )
        self._step.ranks = self._ranks

    def fit(
        self,
        train: Data,
        *,
        validation: Data | None = None,
        epochs: int | None = None,
        max_steps: int | None = None,
        batch_size: int = 256,
        warmup_epochs: int = 0,
        monitor: Monitor = "loss",
        patience: int | None = None,
        restore_best: bool = True,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        resume: bool = False,
        seed: int | None = None,
    ) -> History:
        """Train until `epochs`, `max_steps`, `patience` or a callback ends it.

        The model is put in training mode once, at the start; modes that a callback sets afterwards
        stay. Validation and `score` give every module its mode back.

        Checkpoints are written before the first epoch and after each complete one. A fit that
        ended within an epoch, whatever the reason, resumes at that epoch's start, and a resumed fit
        continues bit by bit as if it had not ended, given the same data and settings. What counts
        is the state of model, loss, optimizer, scheduler and of all random generators, a loader's
        included; workers of a loader and callbacks keep their state to themselves.

        The loss of the metric "mahalanobis" starts without a sigma, and gets that of the epoch
        before at the start of each epoch. Validation uses the sigma in force and is not counted.

        Args:
            train: Tensor or array `[N, *]`, tuple (x, y) of those, `Dataset` of x or (x, y, ...),
                or an iterable of such batches. Tensors go to the device once and are shuffled
                there. Labels: 1 = normal, 0 = negative; without labels all rows are normal.
            validation: The same kinds, not shuffled. None: no selection, the last weights stay.
            epochs: Epochs in all, resumed ones included. This or max_steps is required.
            max_steps: Optimizer steps in all, resumed ones included.
            batch_size: Rows per batch and rank, for all but loaders.
            warmup_epochs: First epochs without the adversarial term (n0 of Algorithm 1, in epochs).
                They are not candidates for the best epoch, and patience starts after them.
            monitor: What selects the best epoch. "loss": the objective, warm-up or not, on the
                normal rows of validation and adversarial points from noise of a fixed seed, lower
                is better; needs no anomalies. "auc": ROC AUC on labelled validation data. Or a
                function of scores `[n]` and labels `[n]` (numpy; labels 0 or 1), higher is better.
            patience: Stop after so many epochs without a better monitored value.
            restore_best: At the end, load the weights of the best epoch.
            checkpoint_dir: Where to keep the checkpoint; made where missing. Ranks that train one
                model write one, from rank 0; ranks that each train their own have a file each.
                None: none is kept.
            resume: Continue from the checkpoint there, if there is one. False starts anew and
                overwrites it.
            seed: Seed of shuffling and search noise. None draws one from torch's global generator.

        Returns:
            The history, of resumed epochs too.

        Raises:
            TypeError: If data is of no known kind or x is not floating point.
            ValueError: If an argument is out of range, if data is empty or does not fit the
                monitor, or if the checkpoint is damaged or not of this model.
            RuntimeError: If gradients are switched off.
            FloatingPointError: If a loss, gradient or monitored value is not finite. Weights,
                BatchNorm statistics and the loss's sigma are then as before that batch. Also if
                the last step left weights that are not finite; no checkpoint holds such.
        """
        epochs, max_steps, patience, batch_size, warmup_epochs = check_fit(
            validation=validation,
            epochs=epochs,
            max_steps=max_steps,
            batch_size=batch_size,
            warmup_epochs=warmup_epochs,
            monitor=monitor,
            patience=patience,
            checkpoint_dir=checkpoint_dir,
            resume=resume,
            seed=seed,
        )
        check_parameters("Trainer.fit", self.model, self.optimizer)
        if checkpoint_dir is not None:
            check_state_is_here(self.optimizer)
        if checkpoint_dir is not None or (validation is not None and restore_best):
            check_can_be_restored(self.model)
        search = self.loss.search
        assert not isinstance(search.radius, Tensor)  # refused by __init__
        if self._ranks.is_first:
            warn_if_short_travel(search.num_steps, search.step_size, search.radius)
        with self._ranks.watched(), keeping_gradients(), fresh_casts(self.device.type):
            seed = self._ranks.shared(
                int(torch.randint(2**62, (), device="cpu") if seed is None else seed)
            )
            order = torch.Generator(self.device)
            order.manual_seed(seed)
            noise = self._ranks.noise_generator(order)
            batches = self._batches("Trainer.fit: train", train, batch_size, order)
            held_out = None
            if validation is not None:
                held_out = self._batches(_VALIDATION, validation, batch_size)
                if monitor != "loss" and isinstance(held_out, TensorBatches):
                    # Known before the first epoch, so said before it.
                    rows = held_out.x.shape[0]
                    check_labels(_VALIDATION, held_out.y, rows, both_classes=monitor == "auc")
                held_out = self._ranks.split(held_out, seed, trains=False)
            batches = self._ranks.split(batches, seed)

            self.should_stop = False
            with stepping(self.model):
                self.model.train()
                self.loss.train()
            self.loss.reset()  # it may have served another model
            self._notify("on_fit_start")
            state, checkpointer = FitState(_name(monitor)), None
            if checkpoint_dir is not None:
                path = Path(checkpoint_dir).absolute() / self._ranks.checkpoint_name()
                checkpointer = self._checkpointer(path, order, noise, batches, held_out)
                with stepping(self.model):
                    state = checkpointer.start(state, resume=resume)
                if restore_best and state.best_weights is None:
                    # A best epoch whose weights were not kept cannot be gone back to.
                    state.best_epoch = state.best_value = None
            batches = self._ranks.in_step(batches, self)

            last_epoch = math.inf if epochs is None else epochs
            last_step = math.inf if max_steps is None else max_steps
            with self._progress_bar(batches, state, last_epoch, last_step) as bar:
                while (
                    state.epoch < last_epoch
                    and state.step < last_step
                    and (patience is None or state.stale_epochs < patience)
                    and not self._ranks.any(self.should_stop)
                ):
                    warmup = state.epoch < warmup_epochs
                    self._notify("on_epoch_start", state.epoch + 1)
                    if self._ranks.any(self.should_stop):
                        break  # an epoch of no steps has no loss
                    record, complete = self._train_epoch(
                        batches, state, noise, adversarial=not warmup, last_step=last_step, bar=bar
                    )
                    if held_out is not None:
                        record["monitor"] = self._monitored(monitor, held_out, state.epoch)
                        if not warmup:
                            state.select(
                                record["monitor"],
                                self.model,
                                lower=monitor == "loss",
                                keep_weights=restore_best,
                            )
                    record = self._ranks.shared(record)
                    if self.scheduler_interval == "epoch":
                        self._step_scheduler(record.get("monitor", record["loss"]))
                    state.records.append(record)
                    bar.set_postfix({k: record[k] for k in ("loss", "monitor") if k in record})
                    self._notify("on_epoch_end", record)
                    if checkpointer is not None and complete:
                        check_finite(self.model, self.optimizer, self._ranks, state.step)
                        check_record(record)
                        checkpointer.save(state)

            if restore_best and held_out is not None and state.best_weights is not None:
                with stepping(self.model):
                    self.model.load_state_dict(state.best_weights)
            check_finite(self.model, self.optimizer, self._ranks, state.step)
        history = state.history()
        if held_out is None:  # a fit before may have had some to select by
            history.best_epoch = history.best_value = None
        self._notify("on_fit_end", history)
        return history

    def score(self, x: Data, batch_size: int = 4096) -> Tensor:
        """Score rows with the model as at inference time; modules get their modes back.

        Another thread may be in `fit`: its steps and these batches take turns.

        Args:
            x: Rows `[N, *]`, or data as in `fit`; labels are ignored.
            batch_size: Rows per forward, for all but loaders.

        Returns:
            Logits `[N]` on the CPU, in order, higher = more normal.

        Raises:
            TypeError: If x is of no known kind or not floating point.
            ValueError: If batch_size is out of range.
        """
        batch_size = as_int("Trainer.score", "batch_size", batch_size, 1)
        batches = self._batches("Trainer.score: x", x, batch_size, resident=False)
        return collect_scores(self.model, batches, self._step.autocast)[0]

    def evaluate(self, test: Data, batch_size: int = 4096) -> dict[str, float]:
        """Score labelled rows and compare, see `drocc_ext.metrics`.

        Args:
            test: Labelled data as in `fit`, both classes present.
            batch_size: Rows per forward, for all but loaders.

        Returns:
            "auc", "recall_at_fpr_3", "recall_at_fpr_5" (false positive rate of 3 and 5 %) and
            "f1_top_n", each in [0, 1].

        Raises:
            TypeError: If test is of no known kind or x is not floating point.
            ValueError: If labels are missing, of one class, or neither 0 nor 1.
        """
        batch_size = as_int("Trainer.evaluate", "batch_size", batch_size, 1)
        batches = self._batches("Trainer.evaluate: test", test, batch_size, resident=False)
        scores, y = collect_scores(self.model, batches, self._step.autocast)
        labels = check_labels("Trainer.evaluate: test", y, scores.shape[0], both_classes=True)
        return {
            "auc": metrics.roc_auc(scores, labels),
            "recall_at_fpr_3": metrics.recall_at_fpr(scores, labels, 0.03),
            "recall_at_fpr_5": metrics.recall_at_fpr(scores, labels, 0.05),
            "f1_top_n": metrics.f1_top_n(scores, labels),
        }

    def _train_epoch(
        self,
        batches: Batches,
        state: FitState,
        generator: torch.Generator,
        *,
        adversarial: bool,
        last_step: float,
        bar: tqdm[Any],
    ) -> tuple[dict[str, float], bool]:
        started = time.perf_counter()
        sums, rows, complete = [0.0, 0.0, 0.0], 0, True
        batches.set_epoch(state.epoch)
        self._ranks.start_epoch(self.loss)
        state.epoch += 1
        stops = self.should_stop
        with stepping(self.model):
            whole = None if stops else self._whole_epoch(batches)
        self._step.start_epoch(batches)
        if whole is not None and isinstance(batches, TensorBatches):
            most_steps = int(min(last_step - state.step, len(batches)))
            complete = most_steps == len(batches)
            end = state.step + most_steps
            for count, values in whole.run_epoch(
                batches,
                generator,
                most_steps,
                f"epoch {state.epoch}",
                adversarial=adversarial,
                stops=lambda: self.should_stop,
            ):
                sums = [old + value * count for old, value in zip(sums, values, strict=True)]
                rows += count
                state.step += 1
                bar.update()
            complete = complete and state.step == end
        for number, (x, y) in enumerate(batches if whole is None else (), 1):
            # Asked before each batch, so that an epoch that ends just here counts as complete.
            if self._ranks.stops(self.should_stop) or state.step >= last_step:
                complete = False
                break
            place = f"epoch {state.epoch}, batch {number}"
            with stepping(self.model):
                values = self._step(x, y, adversarial=adversarial, generator=generator, place=place)
            count = self._step.count_rows(x)
            if self.scheduler_interval == "step":
                self._step_scheduler(values[0])
            sums = [old + value * count for old, value in zip(sums, values, strict=True)]
            rows += count
            state.step += 1
            bar.update()
            if self.callbacks:
                self._notify("on_batch_end", state.step, _named(self._ranks.add(values)))
        if rows == 0 and complete:
            raise ValueError(
                f"Trainer.fit: train must hold rows in every epoch, got none in epoch {state.epoch}"
                " (an iterator serves one epoch only; pass a DataLoader or a list)"
            )
        sums = self._ranks.end_epoch(self.model, sums)
        record = {
            "epoch": state.epoch,
            "step": state.step,
            **_named([total / max(rows, 1) for total in sums]),
            "lr": float(self.optimizer.param_groups[0]["lr"]),
            "seconds": time.perf_counter() - started,
        }
        return record, complete

    def _whole_epoch(self, batches: Batches) -> MLPTraining | None:
        """Find out whether one call can take all steps of an epoch."""
        if not isinstance(batches, TensorBatches) or len(batches) == 0:
            return None
        if any(_watches_batches(callback) for callback in self.callbacks):
            return None
        if self._step.autocast_dtype is not None or batches.generator is None:
            return None
        scheduler = self.scheduler if self.scheduler_interval == "step" else None
        clip_norm = self._step.clip_norm
        return find_training(self.model, self.loss, self.optimizer, scheduler, clip_norm, batches.x)

    def _step_scheduler(self, value: float) -> None:
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(value)
        elif self.scheduler is not None:
            self.scheduler.step()

    def _batches(
        self,
        caller: str,
        data: Data,
        batch_size: int,
        generator: torch.Generator | None = None,
        *,
        resident: bool = True,
    ) -> Batches:
        types = (p.dtype for p in self.model.parameters() if p.is_floating_point())
        return as_batches(
            caller,
            data,
            batch_size=batch_size,
            device=self.device,
            dtype=next(types, torch.get_default_dtype()),
            generator=generator,
            resident=resident,
            channels_last=self.channels_last,
        )

    def _checkpointer(
        self,
        path: Path,
        order: torch.Generator,
        noise: torch.Generator,
        batches: Batches,
        held_out: Batches | None,
    ) -> Checkpointer:
        generators = [order, *batches.generators()]
        if held_out is not None:
            generators += held_out.generators()
        different = list({id(generator): generator for generator in generators}.values())
        return self._ranks.checkpointer(
            noise,
            path=path,
            model=self.model,
            loss=self.loss,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            scaler=self._step.scaler,
            generators=different,
        )

    def _monitored(self, monitor: Monitor, held_out: Batches, epoch: int) -> float:
        return monitored_value(
            f"{_VALIDATION} in epoch {epoch}",
            monitor,
            self.loss,
            self.model,
            held_out,
            self._step.autocast,
            self._ranks,
        )

    def _progress_bar(
        self, batches: Batches, state: FitState, last_epoch: float, last_step: float
    ) -> tqdm[Any]:
        total = min(last_step, last_epoch * (len(batches) or math.inf))
        return tqdm(
            total=None if total == math.inf else int(total),
            initial=state.step,
            unit="batch",
            disable=not (self.progress and self._ranks.is_first),
        )

    def _notify(self, hook: str, *args: Any) -> None:
        for callback in self.callbacks:
            if self._ranks.is_first or getattr(callback, "on_every_rank", True):
                getattr(callback, hook)(self, *args)


def _watches_batches(callback: Callback) -> bool:
    """Say whether a callback does something after each step."""
    return getattr(callback.on_batch_end, "__func__", None) is not Callback.on_batch_end


def _named(values: list[float]) -> dict[str, float]:
    return dict(zip(("loss", "clean", "adversarial"), values, strict=True))


def _name(monitor: Monitor) -> str:
    if isinstance(monitor, str):
        return monitor
    return str(getattr(monitor, "__name__", type(monitor).__name__))
