"""Who trains: the published trainers, ours with their signatures, and our `Trainer`."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.training import published
from benchmarks.training.cases import Case, Split
from drocc_ext import DROCCLoss, SearchConfig, Trainer
from drocc_ext.compat import _search, edgeml
from drocc_ext.metrics import roc_auc
from drocc_ext.training.callbacks import Callback


@dataclass
class Outcome:
    """What one training gave.

    Attributes:
        epoch_seconds: Training part of each epoch, without validation.
        losses: Clean and adversarial loss of each epoch.
        auc: On the test rows, with the weights of the last epoch.
        projection_seconds: Time within projections, in all epochs.
    """

    epoch_seconds: list[float]
    losses: list[tuple[float, float]]
    auc: float
    projection_seconds: float = 0.0


Provider = Callable[[Case, Split], Outcome]

_clock = time.perf_counter


def use_cpu_time() -> None:
    """Measure the time that this process computes instead of the time that passes."""
    global _clock
    _clock = time.process_time


def now() -> float:
    """Read the clock, in seconds."""
    return _clock()


def providers(case: Case, edgeml_checkout: Path | None) -> dict[str, Provider]:
    """Name the providers that can run a case, the published one first."""
    lf = case.limited_negatives
    made = {
        "published": _through(_published_class(case, edgeml_checkout)),
        "compat": _through(edgeml.DROCCLFTrainer if lf else edgeml.DROCCTrainer),
        "trainer": _fast(),
        "5 steps": _fast(preset=True),
    }
    if case.bfloat16:
        made["bfloat16"] = _fast(autocast=torch.bfloat16)
    return made


class _Rows(Dataset[Any]):
    """Row by row, as the published scripts serve theirs: float64 arrays, and a third element."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x.double().numpy(), y.double().numpy()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        return torch.from_numpy(self.x[index]), self.y[index], torch.tensor([0])


class _Clock:
    """Times the training part of epochs: from the schedule's call to the validation's begin."""

    def __init__(self, validation: Any) -> None:
        self.validation, self.seconds, self.begin = validation, [], 0.0

    def schedule(self, *_: Any) -> None:
        self.begin = now()

    def __iter__(self) -> Iterator[Any]:
        if len(self.validation) and self.begin:
            self.seconds.append(now() - self.begin)
            self.begin = 0.0
        return iter(self.validation)


class _EpochClock(Callback):
    """The same for `Trainer`, which validates nothing here."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.begin = 0.0

    def on_epoch_start(self, trainer: Trainer, epoch: int) -> None:
        self.begin = now()

    def on_epoch_end(self, trainer: Trainer, record: dict[str, float]) -> None:
        self.seconds.append(now() - self.begin)


def _through(trainer_class: Any) -> Provider:
    """Train with a class of the published signatures."""

    def run(case: Case, split: Split) -> Outcome:
        x, y, test_x, test_y = split
        model = _network(case, x)
        optimizer = torch.optim.Adam(model.parameters(), case.learning_rate)
        loader = DataLoader(_Rows(x, y), case.batch_size, shuffle=True)
        validation = DataLoader(_Rows(test_x, test_y), case.batch_size)
        clock = _Clock(validation)
        device = torch.device("cpu")
        trainer = trainer_class(model, optimizer, case.mu, case.radius, case.gamma, device)
        loaders = [loader, clock, validation] if case.limited_negatives else [loader, clock]
        projections = _Projections(trainer_class) if case.limited_negatives else None
        with contextlib.redirect_stdout(io.StringIO()) as out, projections or _nothing():
            trainer.train(
                *loaders,
                case.learning_rate,
                clock.schedule,
                case.epochs,
                only_ce_epochs=0,
                ascent_step_size=case.step_size,
                ascent_num_steps=case.num_steps,
            )
        found = re.findall(r"CE Loss: (\S+), AdvLoss: ([-\w.]+)", out.getvalue())
        return Outcome(
            clock.seconds,
            [(float(clean), float(against)) for clean, against in found],
            _auc(model, test_x, test_y),
            projections.seconds if projections else 0.0,
        )

    return run


def _fast(preset: bool = False, autocast: torch.dtype | None = None) -> Provider:
    """Train with our `Trainer`: rows as tensors, frozen search, one forward, fused Adam.

    Args:
        preset: Search with 5 steps of 0.1 radii instead of the case's steps.
        autocast: For mixed precision.
    """

    def run(case: Case, split: Split) -> Outcome:
        x, y, test_x, test_y = split
        model = _network(case, x)
        optimizer = torch.optim.Adam(model.parameters(), case.learning_rate, fused=True)
        clock = _EpochClock()
        trainer = Trainer(
            model,
            fast_loss(case, preset),
            optimizer,
            autocast_dtype=autocast,
            channels_last=x.dim() == 4,
            callbacks=[clock],
            progress=False,
        )
        data = (x, y) if case.limited_negatives else x
        with (
            _Projections(DROCCLoss) if case.limited_negatives else _nothing() as projections,
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", "the adversarial search travels")  # as published
            history = trainer.fit(data, epochs=case.epochs, batch_size=case.batch_size, seed=0)
        return Outcome(
            clock.seconds,
            [(record["clean"], record["adversarial"]) for record in history],
            _auc(model, test_x, test_y),
            projections.seconds if projections else 0.0,
        )

    return run


def fast_loss(case: Case, preset: bool = False) -> DROCCLoss:
    """Make our objective with the published settings, or with fewer steps."""
    metric: Any = "mahalanobis" if case.limited_negatives else "l2"
    if preset:
        search = SearchConfig.from_relative_step(case.radius, gamma=case.gamma)
    else:
        search = SearchConfig(
            case.radius,
            case.step_size,
            case.num_steps,
            gamma=case.gamma,
            project_every=5 if case.limited_negatives else 10,
            project_start=False,
        )
    return DROCCLoss(search, mu=case.mu, metric=metric)


class _Projections:
    """Counts the time within the projection that a trainer calls, by a stand-in for its name."""

    def __init__(self, trainer_class: Any) -> None:
        self.seconds = 0.0
        if trainer_class is DROCCLoss:
            import drocc_ext.search.search as module

            names = ("mahalanobis_shell_step_", "project_mahalanobis_shell_")
        elif trainer_class is edgeml.DROCCLFTrainer:
            module, names = _search, ("project_mahalanobis_shell_",)
        else:
            module, names = _module_of(trainer_class), ("optim_solver",)
        self.module = module
        self.originals = {name: getattr(module, name) for name in names if hasattr(module, name)}

    def __enter__(self) -> _Projections:
        for name, original in self.originals.items():
            setattr(self.module, name, self._timed(original))
        return self

    def __exit__(self, *_: object) -> None:
        for name, original in self.originals.items():
            setattr(self.module, name, original)

    def _timed(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            begin = now()
            result = original(*args, **options)
            self.seconds += now() - begin
            return result

        return call


@contextlib.contextmanager
def _nothing() -> Iterator[None]:
    yield None


_modules: dict[str, ModuleType] = {}


def _published_class(case: Case, checkout: Path | None) -> Any:
    name = "drocclf_trainer" if case.limited_negatives else "drocc_trainer"
    class_name = "DROCCLFTrainer" if case.limited_negatives else "DROCCTrainer"
    if checkout is None:
        return getattr(published, class_name)
    if name not in _modules:
        path = checkout / "pytorch" / "edgeml_pytorch" / "trainer" / f"{name}.py"
        if not path.is_file():
            raise SystemExit(f"--edgeml must be a checkout of microsoft/EdgeML, {path} is missing")
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        _modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(_modules[name])
    return getattr(_modules[name], class_name)


def _module_of(trainer_class: Any) -> ModuleType:
    return (
        published
        if trainer_class.__module__ == published.__name__
        else _modules[trainer_class.__module__]
    )


def _network(case: Case, x: Tensor) -> nn.Module:
    torch.manual_seed(0)
    return case.network(x.shape[1])


def _auc(model: nn.Module, x: Tensor, y: Tensor) -> float:
    model.eval()
    with torch.no_grad():
        scores = torch.cat([model(rows).reshape(-1) for rows in x.split(256)])
    return roc_auc(scores, y) if bool(scores.isfinite().all()) else float("nan")
