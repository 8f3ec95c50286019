"""Interrupts at any place, as a signal or a test runner's limit brings them."""

from __future__ import annotations

import inspect
import itertools
import random
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn

from drocc_ext import DROCCLoss, SearchConfig, Trainer, adversarial_search
from drocc_ext.models import modes
from drocc_ext.models.modes import frozen, stepping


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = (nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 1))
    return nn.Sequential(*layers)


class Interrupt:
    """Interrupts a thread where a call begins or one of C ended: where signals are looked at."""

    def __init__(self, place: int, *, spares_exits: bool = False) -> None:
        self.left = place
        self.spares_exits = spares_exits

    def __call__(self, frame: FrameType, event: str, arg: object) -> None:
        if self.spares_exits and event == "call" and frame.f_code.co_name == "__exit__":
            return
        self.left -= event in ("call", "c_return")
        if self.left == -1:
            raise KeyboardInterrupt


def took_lock(found: list[bool]) -> None:
    found.append(modes._lock.acquire(timeout=1))
    if found[0]:
        modes._lock.release()


class LockOfPython:
    """A lock that an interrupt can leave taken, as `with` of Python 3.14 can that of C."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.acquire, self.release = self.lock.acquire, self.lock.release
        self._is_owned = self.lock._is_owned  # type: ignore[attr-defined]

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()


@pytest.mark.parametrize("keeps", [False, True])  # the exception, and what it refers to
@pytest.mark.parametrize("lock", [None, LockOfPython()], ids=["c", "python"])
@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("context", [frozen, stepping])
def test_an_interrupt_at_any_place(
    context: Any, waits: bool, lock: Any, keeps: bool, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modes, "_lock", modes._lock if lock is None else lock)
    model, begun, lost, kept = network(seed), threading.Event(), [], []
    monkeypatch.setattr(sys, "unraisablehook", lambda told: lost.append(told.object))

    def other() -> None:
        with stepping(model) if context is frozen else frozen(model):
            begun.set()
            time.sleep(0.003)

    for place in itertools.count():
        thread = threading.Thread(target=other)
        if waits:
            begun.clear()
            thread.start()
            assert begun.wait(30)
        # Before the first line of `__exit__` nothing can be done: the context has to be collected.
        interrupt = Interrupt(place, spares_exits=keeps)
        try:
            sys.setprofile(interrupt)
            with context(model):
                pass
        except KeyboardInterrupt as error:
            kept = [error] if keeps else []
        finally:
            sys.setprofile(None)
        if waits:
            thread.join(30)
            assert not thread.is_alive()
        free = threading.Thread(target=took_lock, args=(found := [],))
        free.start()
        free.join(30)
        assert found == [True], place
        assert not modes._held, place
        assert not modes._living(modes._waiting) and not modes._living(modes._steps), place
        assert all(module.training for module in model.modules()), place
        if interrupt.left >= 0:
            break
    assert place > 20 and len(kept) == keeps
    assert all(inspect.isgenerator(each) for each in lost), lost


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # in generators
@pytest.mark.parametrize("kind", ["search", "score"])
def test_torch_is_as_it_was_wherever_an_interrupt_strikes(kind: str, seed: int) -> None:
    torch.manual_seed(seed)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)), torch.randn(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, DROCCLoss(SearchConfig(1.0, 0.1, 2)), optimizer, progress=False)
    for place in itertools.count():
        interrupt = Interrupt(place)
        try:
            sys.setprofile(interrupt)
            if kind == "search":
                adversarial_search(model, x, radius=1.0, step_size=0.1, num_steps=1)
            else:
                trainer.score(x)
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled(), place
        assert all(module.training for module in model.modules()), place
        if interrupt.left >= 0:
            break
    assert place > 100


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the system has no such timer")
def test_an_interrupt_leaves_no_module_frozen(seed: int) -> None:
    chance, armed = random.Random(seed), False

    def interrupt(*_: Any) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise KeyboardInterrupt

    layers = [m for _ in range(10) for m in (nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh())]
    model = nn.Sequential(nn.Linear(4, 8), *layers, nn.Linear(8, 1)).train()
    x, former, count = torch.randn(64, 4), signal.signal(signal.SIGALRM, interrupt), 0
    grad_enabled = torch.is_grad_enabled()
    try:
        end = time.monotonic() + 4
        while time.monotonic() < end:
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-4, 1e-2))
                for _ in range(20):
                    adversarial_search(model, x, radius=1.0, step_size=0.1, num_steps=3)
            except KeyboardInterrupt:
                count += 1
            armed = False
            assert torch.is_grad_enabled() == grad_enabled
            assert all(module.training for module in model.modules())
            assert not modes._held
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    assert count > 0
