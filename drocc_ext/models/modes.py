"""The modes of anyone's module: frozen for a search or a score, kept for a step of training."""

from __future__ import annotations

import functools
import itertools
import math
import os
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import finalize, ref

from torch import nn

__all__ = ["frozen", "modules_of", "stepping"]

Context = TypeVar("Context")
_RECURRENT = (nn.RNN.forward, nn.LSTM.forward, nn.GRU.forward)


@dataclass
class _Held:
    """What a frozen module gets back, and who still holds it: the thread of each holder."""

    module: nn.Module
    training: bool
    dropout: float | None
    holders: dict[object, int] = field(default_factory=dict)


# Modules that are frozen now, by id: the flags belong to the module, so all threads share them.
_held: dict[int, _Held] = {}
# What could not be given back where it was collected, as somebody was at work.
_abandoned: list[tuple[Sequence[nn.Module], object]] = []
# Steps of training under way or waiting, and who waits for them: only those whose context lives.
# No WeakSet, which an interrupt can leave with a negative length.
_steps: list[ref[stepping]] = []
_waiting: list[ref[frozen]] = []
_tickets = itertools.count()
# A lock as C makes it, and no Condition or Event: an interrupt can leave the lock of these taken.
# One that knows its owner, for Python 3.14, where an interrupt can strike as `with` has taken it.
_lock = threading.RLock()
# What those who wait sleep on; who ends something lets all of them look again.
_bells: list[threading.Lock] = []
# Seconds until a wait is spoken of, and further ones until a search gives up: it may be that the
# step waits for it, by ways that cannot be seen here.
_PATIENCE = 60.0
_LONGEST_WAIT = 540.0


def _after_fork() -> None:
    """Give a forked process, which has one thread only, a lock, and what others had frozen back."""
    global _lock
    _lock = threading.RLock()
    _bells.clear()
    here = threading.get_ident()
    _waiting.clear()
    _steps[:] = [ref(step) for step in _living(_steps) if step.thread == here]
    for held in list(_held.values()):
        for holder, thread in list(held.holders.items()):
            if thread != here:
                _give_back([held.module], holder)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def modules_of(model: object) -> list[nn.Module]:
    """List a module and all in it.

    Args:
        model: A module, or a method of one, also in a `functools.partial`.

    Returns:
        The modules; none for a plain function, whose modules nobody can see.
    """
    while isinstance(model, functools.partial):
        model = model.func
    owner = model if isinstance(model, nn.Module) else getattr(model, "__self__", None)
    return list(owner.modules()) if isinstance(owner, nn.Module) else []


class frozen:
    """Run a model as at inference time, still able to differentiate through it.

    Every module is in eval mode, except torch's recurrent layers: cuDNN refuses their backward pass
    in eval mode, so these are in training mode with their dropout at 0, which computes the same. A
    layer of a class with its own forward, which may ask for the mode, is in eval mode too: on a GPU
    its backward needs `torch.backends.cudnn.flags(enabled=False)`. The flags are set directly: a
    module's own `train()` does not run.

    Several threads may freeze one model, or models that share modules: a module stays frozen until
    the last of them is done, and then gets back the mode and dropout that it had before the first.
    Where another thread is `stepping`, they wait until its step is done. A thread that trains the
    model without that would train it frozen.

    An interrupt may come at any place: to give back twice does no harm, so that it is done again.
    """

    modules: set[int]
    ticket = -1

    def __init__(self, model: Callable[..., object]) -> None:
        """Take note of the modules.

        Args:
            model: The module to freeze, or a method of one; a plain function is left alone.
        """
        self._holder = object()  # not this context, which would then never be collected
        self._modules = modules_of(model)
        # Where an interrupt comes before `__exit__` can begin. It is dropped where all went well:
        # an interrupt in what runs as an object is collected would be lost.
        self._lost = finalize(self, _collected, self._modules, self._holder)
        self._lost.atexit = False

    def __enter__(self) -> None:
        """Freeze them."""
        try:
            with _lock:
                _settle()
                if _steps:
                    self.modules = set(map(id, self._modules))
                    self.ticket = _ticket(threading.get_ident())
                    _waiting.append(ref(self))
                else:
                    self._freeze()
                    return
            if _wait(self._begin, _PATIENCE):
                return
            _warn("a search or score waits for a step of training")
            if not _wait(self._begin, _LONGEST_WAIT):
                raise RuntimeError(
                    "a search or score waited too long for another thread's step of training "
                    "to end; does that step wait for this thread?"
                )
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *error: object) -> None:
        """Give them back what they had, where nobody else holds them."""
        try:
            self._end()
        except BaseException:  # who keeps the interrupt keeps this context from being collected
            self._end()
            raise
        finally:
            _unlock()

    def _freeze(self) -> None:
        _remove(self, _waiting)  # with the lock in hand, as others look through it
        for module in self._modules:
            _take(module, self._holder)

    def _begin(self) -> bool:
        """Freeze them, where no step of another thread is under way or came before."""
        here = threading.get_ident()
        for step in _living(_steps):
            before = step.has_begun or step.ticket < self.ticket
            if before and step.thread != here and not self.modules.isdisjoint(step.modules):
                return False
        self._freeze()
        return True

    def _end(self) -> None:
        with _lock:
            _remove(self, _waiting)
            _give_back(self._modules, self._holder)
            _settle()
            _ring()
        self._lost.detach()


class stepping:
    """Train a model with the modes that it has, whatever other threads do with it.

    The step waits until no other thread holds a module `frozen`, and those that come meanwhile wait
    until it is done, each in turn. In its own thread it may search.
    """

    has_begun = False
    ticket = -1

    def __init__(self, model: nn.Module) -> None:
        """Take note of the modules.

        Args:
            model: What is trained.
        """
        self.thread: int = threading.get_ident()
        self.modules: set[int] = set(map(id, model.modules()))

    def __enter__(self) -> None:
        """Wait for one's turn."""
        try:
            with _lock:
                self.ticket = _ticket(self.thread)
                _steps.append(ref(self))
                self.has_begun = not (_held or _waiting or len(_steps) > 1)
            if not self.has_begun and not _wait(self._begin, _PATIENCE):
                _warn("a step of training waits for a search or score")
                _wait(self._begin, math.inf)
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *error: object) -> None:
        """Let the others go on."""
        try:
            self._end()
        except BaseException:  # as in `frozen`
            self._end()
            raise
        finally:
            _unlock()

    def _end(self) -> None:
        with _lock:
            _remove(self, _steps)
            _ring()

    def _begin(self) -> bool:
        _settle()
        held = [_held[at] for at in self.modules if at in _held]
        if any(thread != self.thread for one in held for thread in list(one.holders.values())):
            return False
        steps = [s for s in _living(_steps) if s.has_begun or s.ticket < self.ticket]
        before = [w for w in _living(_waiting) if w.ticket < self.ticket]
        others = [s.modules for s in steps if s.thread != self.thread]
        others += [waiting.modules for waiting in before]
        self.has_begun = all(map(self.modules.isdisjoint, others))
        return self.has_begun


def _living(contexts: list[ref[Context]]) -> list[Context]:
    return [context for one in contexts if (context := one()) is not None]


def _remove(context: Context, contexts: list[ref[Context]]) -> None:
    """Take a context off a list, and those that are gone."""
    if contexts:
        contexts[:] = [ref(one) for one in _living(contexts) if one is not context]


def _wait(begin: Callable[[], bool], longest: float) -> bool:
    """Try until it begins; now and then without a word of others, who may be gone.

    The sleep is without the lock, so that an interrupt amid it leaves nothing taken.
    """
    end = time.monotonic() + longest
    while True:
        bell = threading.Lock()
        bell.acquire()
        with _lock:
            if begin():
                return True
            _bells.append(bell)
        left = end - time.monotonic()
        if left <= 0:
            return False
        bell.acquire(timeout=min(1.0, left))


def _collected(modules: Sequence[nn.Module], holder: object) -> None:
    """Give back what a context held that nobody has any more."""
    if _is_mine(_lock) or not _lock.acquire(blocking=False):
        _abandoned.append((modules, holder))
        return
    try:
        _give_back(modules, holder)
        _ring()
    finally:
        _lock.release()


def _unlock() -> None:
    """Let go of the lock where an interrupt has left it to this thread, which needs it no more."""
    while _is_mine(_lock):
        _lock.release()


def _is_mine(lock: Any) -> bool:
    return bool(lock._is_owned())


def _ring() -> None:
    """Wake those who wait, with the lock in hand."""
    while _bells:
        _bells.pop().release()


def _warn(what: str) -> None:
    warnings.warn(
        f"drocc_ext: {what} of the same model in another thread, for {_PATIENCE:g} s now",
        RuntimeWarning,
        stacklevel=4,
    )


def _ticket(thread: int) -> int:
    """Give a thread its place among those that wait: before all where it has what they wait for."""
    holds = any(thread in held.holders.values() for held in list(_held.values()))
    steps = any(step.has_begun and step.thread == thread for step in _living(_steps))
    return -1 if holds or steps else next(_tickets)


def _take(module: nn.Module, holder: object) -> None:
    held = _held.get(id(module))
    if held is None:
        dropout = module.dropout if isinstance(module, nn.RNNBase) else None
        held = _held[id(module)] = _Held(module, module.training, dropout)
    held.holders[holder] = threading.get_ident()
    # Parametrizations make classes that inherit the forward.
    # The forward of a TorchScript module's class cannot be read.
    forward = getattr(type(module), "forward", None)
    usual = "forward" not in vars(module) and forward in _RECURRENT
    module.training = usual
    if isinstance(module, nn.RNNBase):
        module.dropout = 0.0


def _give_back(modules: Sequence[nn.Module], holder: object) -> None:
    for module in modules:
        held = _held.get(id(module))
        if held is None:
            continue
        held.holders.pop(holder, None)
        if held.holders:
            continue
        module.training = held.training
        if isinstance(module, nn.RNNBase) and held.dropout is not None:
            module.dropout = held.dropout
        _held.pop(id(module), None)


def _settle() -> None:
    while _abandoned:
        _give_back(*_abandoned[-1])
        _abandoned.pop()
