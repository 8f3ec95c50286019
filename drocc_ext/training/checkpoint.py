"""Checkpoints of a fit: all that the next epoch depends on, in tensors and plain values."""

from __future__ import annotations

import copy
import io
import random
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from drocc_ext import __version__
from drocc_ext._checks import describe
from drocc_ext._files import atomic_write, clear_temporaries
from drocc_ext.models.states import bare_names, check_state_fits, for_model
from drocc_ext.training.checkpoint_checks import (
    check_content,
    find_foreign,
    plain,
    tensors_to_arrays,
)
from drocc_ext.training.loss import DROCCLoss
from drocc_ext.training.optimizer_checks import check_optimizer, check_scheduler

FORMAT = "drocc_ext.checkpoint"
FORMAT_VERSION = 1


class History(list[dict[str, float]]):
    """One dict per epoch: epoch, step, loss, clean, adversarial, lr, seconds and, if any, monitor.

    "epoch" counts from 1, "step" is the number of optimizer steps so far, the losses are means over
    the epoch's rows, "lr" is the first group's at the epoch's end.

    Attributes:
        best_epoch: Epoch of the best monitored value, None without validation.
        best_value: That value.
    """

    best_epoch: int | None = None
    best_value: float | None = None


@dataclass
class FitState:
    """How far a fit has come.

    Attributes:
        monitor: Name of the monitored value.
        epoch: Epochs done.
        step: Optimizer steps done.
        stale_epochs: Epochs since the monitored value was best.
        best_value: Best monitored value so far.
        best_epoch: Its epoch, from 1.
        best_weights: The model's state there, on the CPU.
        records: The history.
    """

    monitor: str
    epoch: int = 0
    step: int = 0
    stale_epochs: int = 0
    best_value: float | None = None
    best_epoch: int | None = None
    best_weights: dict[str, Any] | None = None
    records: list[dict[str, float]] = field(default_factory=list)

    def history(self) -> History:
        """Return the history so far.

        Returns:
            A list of its own, of the records themselves.
        """
        history = History(self.records)
        history.best_epoch, history.best_value = self.best_epoch, self.best_value
        return history

    def select(self, value: float, model: nn.Module, *, lower: bool, keep_weights: bool) -> None:
        """Note the monitored value of the epoch just done.

        Args:
            value: The value.
            model: The model, whose state is kept if the value is the best.
            lower: Whether lower is better.
            keep_weights: Whether to keep the state.
        """
        best = self.best_value
        if best is not None and not (value < best if lower else value > best):
            self.stale_epochs += 1
            return
        self.stale_epochs, self.best_value, self.best_epoch = 0, value, self.epoch
        if keep_weights:
            self.best_weights = {
                name: part.detach().to("cpu", copy=True) if isinstance(part, Tensor) else part
                for name, part in model.state_dict().items()
            }


@dataclass
class Checkpointer:
    """Saves and loads all that the next epoch depends on.

    Attributes:
        path: The file.
        model: The model, its own tensors and buffers.
        loss: The objective, its sigma and the settings that decide it.
        optimizer: The optimizer.
        scheduler: The scheduler, if any.
        scaler: The loss scaling, enabled or not.
        generators: Generators of the fit and its loader; the global ones are always included.
    """

    path: Path
    model: nn.Module
    loss: DROCCLoss
    optimizer: Optimizer
    scheduler: LRScheduler | None
    scaler: torch.amp.GradScaler
    generators: list[torch.Generator]

    def start(self, state: FitState, *, resume: bool) -> FitState:
        """Begin a fit: from the checkpoint, if there is one and it is wanted, or with a new one.

        Args:
            state: That of a new fit.
            resume: Whether to go on from a checkpoint.

        Returns:
            How far the fit has come.

        Raises:
            OSError: As `save`.
            ValueError: As `load` and `save`.
        """
        clear_temporaries(self.path.parent, self.path.name)
        if resume and self.path.is_file():
            return self.load(state.monitor)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.save(state)
        read_checkpoint(self.path)  # a part that cannot be read back shows now
        return state

    def save(self, state: FitState) -> None:
        """Write the checkpoint in place of the former one.

        Args:
            state: How far the fit has come.

        Raises:
            OSError: If it cannot be written; the former one then stays.
            ValueError: If a part holds what could not be read back, likewise.
        """
        self._write(self._content(state))

    def _content(self, state: FitState) -> dict[str, Any]:
        bare = bare_names(self.model)
        fit = dict(vars(state))
        if state.best_weights is not None:
            fit["best_weights"] = {bare[name]: part for name, part in state.best_weights.items()}
        content = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "library": f"drocc_ext {__version__}",
            **self._state(),
            "names": self._names(),
            "fit": fit,
        }
        content["model"] = {bare[name]: part for name, part in content["model"].items()}
        return content

    def _write(self, content: dict[str, Any]) -> None:
        content = {name: plain(part) for name, part in content.items()}
        for name, part in content.items():
            foreign = find_foreign(name, part)
            if foreign is not None:
                raise ValueError(
                    f"{self.path}: the checkpoint cannot hold {foreign[0]}, a {foreign[1]}; plain "
                    "numbers, strings and tensors can be read back, such as float(value)"
                )
        atomic_write(self.path, lambda file: write_checkpoint(content, file))

    def load(self, monitor: str) -> FitState:
        """Bring everything to the state of the checkpoint, or nothing.

        Args:
            monitor: Name of the monitored value, which has to be the same.

        Returns:
            How far the fit had come.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If it is damaged or malformed, or of another model, optimizer, scheduler,
                metric, monitor or number of parts. Everything is then as it was.
        """
        return self._apply(self._complete(read_checkpoint(self.path)), monitor)

    def _complete(self, content: dict[str, Any]) -> dict[str, Any]:
        """Add what the file does not hold: nothing, for the file of a whole model."""
        if "shards" in content:
            raise ValueError(
                f"{self.path}: the checkpoint must be of a whole model, as this one is, got one of "
                "a sharded model; distributed='fsdp' goes on from it, on one rank too"
            )
        return content

    def _apply(self, content: dict[str, Any], monitor: str) -> FitState:
        check_content(str(self.path), content, FitState)
        # The first version had one metric and no state of the loss.
        former: dict[str, Any] = {"metric": "l2", "influence": self.loss.influence, "state": {}}
        loss = content.setdefault("loss", former)
        state = FitState(**content["fit"])
        content["model"] = for_model(self.model, content["model"])
        check_state_fits(str(self.path), self.model, content["model"])
        if state.best_weights is not None:
            state.best_weights = for_model(self.model, state.best_weights)
            check_state_fits(f"{self.path}, best weights", self.model, state.best_weights)
        names, saved_names = self._names(), content.get("names")
        if not isinstance(saved_names, dict):  # former versions did not keep them
            saved_names = names
        for name, saved, current in (
            ("monitor", state.monitor, monitor),
            ("the loss's metric", loss["metric"], self.loss.metric),
            ("the loss's influence", loss["influence"], self.loss.influence),
            ("a scheduler", content["scheduler"] is not None, self.scheduler is not None),
            ("loss scaling", bool(content["scaler"]), self.scaler.is_enabled()),
            ("number of generators", len(content["generators"]), len(self.generators)),
            *((f"the {part}", saved_names.get(part), names[part]) for part in names),
        ):
            if type(saved) is not type(current) or saved != current:
                shown = repr(saved) if isinstance(saved, str | bool | int) else describe(saved)
                raise ValueError(
                    f"{self.path}: a resumed fit must be as before, but {name} was {shown} and is "
                    f"{current!r}"
                )
        check_optimizer(str(self.path), self.optimizer, content["optimizer"])
        if self.scheduler is not None:
            check_scheduler(str(self.path), self.scheduler, content["scheduler"])
        before = copy.deepcopy(self._state())
        try:
            self._set_state(content)
        except Exception as error:
            self._set_state(before)
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(f"{self.path}: the checkpoint does not fit: {reason}") from error
        return state

    def _names(self) -> dict[str, str | None]:
        scheduler = None if self.scheduler is None else type(self.scheduler).__name__
        return {"optimizer": type(self.optimizer).__name__, "scheduler": scheduler}

    def _state(self) -> dict[str, Any]:
        return {
            "model": dict(self.model.state_dict()),
            "loss": {
                "metric": self.loss.metric,
                "influence": self.loss.influence,
                "state": self.loss.state_dict(),
            },
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "generators": [generator.get_state() for generator in self.generators],
            "rng": get_rng_state(),
        }

    def _set_state(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.model.load_state_dict(state["model"])
        self.loss.load_state_dict(state["loss"]["state"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        for generator, generator_state in zip(self.generators, state["generators"], strict=True):
            generator.set_state(generator_state)
        set_rng_state(state["rng"])


def checkpoint_name() -> str:
    """Name the checkpoint file of this process.

    Ranks of a distributed fit may share a directory: each has its own file, because each has its
    own generators.

    Returns:
        "checkpoint.pt", or "checkpoint.rank1.pt" for the rank 1 of a process group and so on.
    """
    distributed = torch.distributed
    rank = (
        distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
    )
    return "checkpoint.pt" if rank == 0 else f"checkpoint.rank{rank}.pt"


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, tensors on the CPU. Runs no code from the file.

    Args:
        path: File to read.

    Returns:
        Its content.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it is damaged, of another format, or holds more than plain values.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: the checkpoint does not exist")
    with open(path, "rb") as file:
        return parse_checkpoint(path, file)


def parse_checkpoint(path: Path, file: BinaryIO) -> dict[str, Any]:
    """Do what `read_checkpoint` does with a file that is open already.

    Args:
        path: Its name, for errors.
        file: The file.

    Returns:
        Its content.

    Raises:
        ValueError: As `read_checkpoint`.
    """
    try:
        check_bytes(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes fail in any way
        raise ValueError(f"{path}: the checkpoint cannot be read: {reason_of(error)}") from error
    if not isinstance(content, dict) or not _is(content.get("format"), FORMAT):
        raise ValueError(f"{path}: this is not a checkpoint of {FORMAT}")
    version = content.get("version")
    if not _is(version, FORMAT_VERSION):
        got = version if isinstance(version, int) else describe(version)
        raise ValueError(
            f"{path}: the checkpoint must be of format version {FORMAT_VERSION}, got {got}"
        )
    return content


def write_checkpoint(content: dict[str, Any], file: BinaryIO) -> None:
    """Write a checkpoint with checksums, whatever torch is set to.

    Args:
        content: Tensors and plain values.
        file: Where to.
    """
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(True)
    # Not into the file: an interrupt amid torch's calls to write would leave it a closed one.
    whole = io.BytesIO()
    try:
        torch.save(content, whole)
    finally:
        torch.serialization.set_crc32_options(before)
    file.write(whole.getbuffer())


def reason_of(error: Exception) -> str:
    """Say why a file of torch's cannot be read.

    Args:
        error: What reading it raised.

    Returns:
        Its first sentence: torch's next ones advise to load the file without its safeguard.
    """
    return str(error).strip().partition("\n")[0].partition(". ")[0] or "it ends too early"


def check_bytes(file: BinaryIO) -> None:
    """Compare the checksums, which `torch.load` does not: a changed byte would change a result.

    Args:
        file: What `torch.save` wrote; read from its start, and left there.

    Raises:
        ValueError: If a part is damaged.
    """
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} in it is damaged, its checksum is not the recorded one")
    file.seek(0)


def _is(value: Any, wanted: str | int) -> bool:
    return type(value) is type(wanted) and bool(value == wanted)


def get_rng_state() -> dict[str, Any]:
    """Collect the state of the global generators of torch (CPU, CUDA), numpy and python.

    Returns:
        Tensors and plain values, for `set_rng_state`.
    """
    return {
        "torch": torch.get_rng_state(),
        # Asking would initialize CUDA, which a forked process may not.
        "cuda": torch.cuda.get_rng_state_all() if _cuda_in_use() else [],
        "numpy": _arrays_to_tensors(np.random.get_state(legacy=False)),
        "python": random.getstate(),
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Set the global generators.

    Args:
        state: Result of `get_rng_state`; states of CUDA devices that are not here are skipped.
    """
    torch.set_rng_state(state["torch"])
    for index, cuda_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(cuda_state, index)
    np.random.set_state(tensors_to_arrays(state["numpy"]))
    random.setstate(state["python"])


def _cuda_in_use() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _arrays_to_tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _arrays_to_tensors(item) for key, item in value.items()}
    return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value
