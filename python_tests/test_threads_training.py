"""A thread that trains a model, and others that score it or search: each as if it were alone."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from drocc_ext import DROCC, DROCCLoss, SearchConfig, Trainer, adversarial_search
from drocc_ext.compat._trainer import takes_channels_last
from drocc_ext.models import modes
from drocc_ext.models.modes import frozen, stepping
from drocc_ext.models.modules import draws_numbers

SEARCH = SearchConfig(radius=1.0, step_size=0.1, num_steps=2)


def normalizing(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = (nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 1))
    return nn.Sequential(*layers)


def perceptron(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))


def normalizing_without_dropout(seed: int) -> nn.Sequential:
    return nn.Sequential(*(m for m in normalizing(seed) if not isinstance(m, nn.Dropout)))


def trained(model: nn.Module, seed: int, work: Callable[[Trainer, Tensor], object] | None) -> int:
    """Train a model while another thread works; say how often it did."""
    x = torch.randn(320, 4, generator=torch.Generator().manual_seed(seed))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    trainer = Trainer(model, DROCCLoss(SEARCH), optimizer, progress=False)
    done, worked, error = threading.Event(), 0, []

    def run() -> None:
        nonlocal worked
        try:
            while work is not None:
                work(trainer, x[:40])
                worked += 1
                if done.is_set():
                    break
        except BaseException as caught:
            error.append(caught)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        torch.manual_seed(seed)  # for dropout
        trainer.fit(x, epochs=12, batch_size=32, seed=seed)
    finally:
        done.set()
        thread.join(60)
    assert not error, error
    assert all(module.training for module in model.modules())
    return worked


@pytest.mark.parametrize("make", [normalizing, perceptron])
@pytest.mark.parametrize("kind", ["score", "search"])
def test_a_fit_beside_scores_and_searches(
    make: Callable[[int], nn.Module], kind: str, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    work: dict[str, Callable[[Trainer, Tensor], object]] = {
        "score": lambda trainer, x: trainer.score(x, batch_size=1),
        "search": lambda trainer, x: adversarial_search(
            trainer.model, x, SEARCH, generator=generator
        ),
    }
    alone, beside = make(seed), make(seed)
    trained(alone, seed, None)
    assert trained(beside, seed, work[kind]) > 0
    for (name, expected), found in zip(
        alone.state_dict().items(), beside.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=0, msg=name)


def test_who_waits_goes_in_turn(seed: int) -> None:
    """A step, a score that asks during it, and the next step, which finds the score waiting."""
    model, order = normalizing(seed), []
    asked, other = threading.Event(), threading.Event()

    def score() -> None:
        asked.set()
        with frozen(model):
            order.append("score")
            other.set()
            time.sleep(0.05)
            assert not any(module.training for module in model.modules())
            with frozen(model):  # who holds it does not wait for those that wait
                order.append("within")

    thread = threading.Thread(target=score)
    with stepping(model):
        thread.start()
        asked.wait(10)
        while not modes._waiting:
            time.sleep(0.001)
        with frozen(model), stepping(model):  # one's own
            assert not model.training
        assert model.training
        order.append("step")
    with stepping(model):
        assert other.is_set()
        order.append("next")
    thread.join(10)
    assert order == ["step", "score", "within", "next"]
    assert not modes._held and not modes._waiting and not modes._steps


def test_models_that_share_no_module_do_not_wait(seed: int) -> None:
    one, other = normalizing(seed), normalizing(seed + 1)
    done = threading.Event()

    def work() -> None:
        with frozen(other), stepping(other):
            pass
        with stepping(other):
            done.set()

    with stepping(one):
        thread = threading.Thread(target=work)
        thread.start()
        assert done.wait(30)
        thread.join(10)


def test_a_search_that_a_step_waits_for_ends_in_a_sentence(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modes, "_PATIENCE", 0.05)
    monkeypatch.setattr(modes, "_LONGEST_WAIT", 0.05)
    model, told = normalizing(seed), []

    def score() -> None:
        with (
            pytest.warns(RuntimeWarning, match=r"waits for a step of training of the same model"),
            pytest.raises(RuntimeError, match=r"does that step wait for this thread\?$"),
            frozen(model),
        ):
            told.append("never")
        told.append("told")

    with stepping(model):
        thread = threading.Thread(target=score)
        thread.start()
        thread.join(30)
        assert all(module.training for module in model.modules())
    assert told == ["told"]
    assert not modes._held and not modes._waiting and not modes._steps


def test_a_step_waits_as_long_as_a_search_takes(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modes, "_PATIENCE", 0.05)
    model, order = normalizing(seed), []
    begun, goes_on = threading.Event(), threading.Event()

    def score() -> None:
        with frozen(model):
            begun.set()
            goes_on.wait(30)
            order.append("score")

    def warned(message: str, *_: object, **__: object) -> None:
        assert "a step of training waits for a search or score of the same model" in message
        order.append("warning")
        goes_on.set()

    monkeypatch.setattr(modes.warnings, "warn", warned)
    thread = threading.Thread(target=score)
    thread.start()
    assert begun.wait(30)
    with stepping(model):
        order.append("step")
        assert all(module.training for module in model.modules())
    thread.join(30)
    assert order == ["warning", "score", "step"]


def test_a_step_behind_a_search_that_gives_up_waiting_is_told(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modes, "_PATIENCE", 0.2)
    monkeypatch.setattr(modes, "_LONGEST_WAIT", 0.0)
    model, order, asked = normalizing(seed), [], threading.Event()

    def search() -> None:
        asked.set()
        with pytest.warns(RuntimeWarning), pytest.raises(RuntimeError), frozen(model):
            order.append("never")
        order.append("gave up")

    def step() -> None:
        with stepping(model):
            order.append("step")

    with stepping(model):
        searching = threading.Thread(target=search)
        searching.start()
        assert asked.wait(30)
        while not modes._waiting:
            time.sleep(0.001)
        later = threading.Thread(target=step)
        later.start()
        searching.join(30)
    later.join(30)
    assert order == ["gave up", "step"]
    assert not modes._held and not modes._waiting and not modes._steps


def test_scores_beside_epochs_by_one_operator_are_of_whole_steps(seed: int) -> None:
    torch.manual_seed(seed)
    start = nn.Sequential(nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
    start.append(nn.Linear(256, 1))
    x, asked = torch.randn(640, 16), torch.randn(5, 16)

    def made() -> Trainer:
        model = copy.deepcopy(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        return Trainer(model, DROCCLoss(SEARCH), optimizer, progress=False)

    def fit(trainer: Trainer, steps: int) -> None:
        trainer.fit(x, max_steps=steps, batch_size=64, seed=seed)

    known = [made() for _ in range(5)]
    for number, trainer in enumerate(known[1:], 1):
        fit(trainer, 10 * number)  # epochs of 10 steps, each by one call
    at_the_end = torch.stack([trainer.score(asked) for trainer in known])
    beside, found = made(), []
    thread = threading.Thread(target=fit, args=(beside, 40))
    thread.start()
    while thread.is_alive():
        found.append(beside.score(asked))
    thread.join()
    found.append(beside.score(asked))
    far = torch.cdist(torch.stack(found).double(), at_the_end.double()).min(1).values
    assert far.max() < 1e-4 * at_the_end.norm(dim=1).max()


def test_weights_that_are_gone_back_to(seed: int) -> None:
    """Of the best epoch, at the end of a fit: a search of another thread does not see half."""
    model, x, errors, done = normalizing(seed), torch.randn(64, 4), [], threading.Event()
    model[3] = nn.Identity()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    trainer = Trainer(model, DROCCLoss(SEARCH), optimizer, progress=False)

    def search() -> None:
        generator = torch.Generator().manual_seed(seed)
        try:
            while not done.is_set():
                adversarial_search(model, x, SEARCH, generator=generator)
        except BaseException as caught:
            errors.append(caught)

    thread = threading.Thread(target=search)
    thread.start()
    end = time.monotonic() + 2
    while time.monotonic() < end and not errors:
        trainer.fit(x, validation=x, epochs=1, batch_size=64, seed=seed)
    done.set()
    thread.join(30)
    assert not errors, errors


def test_a_trainer_made_beside_a_fit_moves_nothing(seed: int) -> None:
    """Where the model is on its device already: the other thread has its gradients in hand."""
    model, moved = normalizing(seed), []
    move = nn.Module._apply

    def noticed(self: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        moved.append(self)
        return move(self, *args, **kwargs)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "_apply", noticed)
        trainer = Trainer(model, DROCCLoss(SEARCH), optimizer, progress=False)
    assert trainer.model is model and not moved


def test_a_fit_of_a_module_that_draws_nothing_leaves_the_global_generator(seed: int) -> None:
    drawn, done = [], threading.Event()

    def draw() -> None:
        while not done.is_set():
            drawn.append(tuple(torch.rand(6, dtype=torch.float64).tolist()))

    network = normalizing_without_dropout(seed)
    images = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 1))
    thread = threading.Thread(target=draw)
    thread.start()
    x = np.random.default_rng(seed).normal(size=(100, 4))
    for radius in (0.5, 1.0, 2.0):
        DROCC(network=network, radius=radius, max_steps=30).fit(x)
        assert takes_channels_last(images, torch.zeros(8, 1, 8, 8))
    done.set()
    thread.join(30)
    assert len(drawn) > 20
    assert len(set(drawn)) == len(drawn)


def test_modules_that_may_draw_later_draw_by_the_seed(seed: int) -> None:
    """One forward does not tell of a dropout that grows with the steps."""

    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps = 0

        def forward(self, x: Tensor) -> Tensor:
            self.steps += self.training
            return F.dropout(x, min(0.3, 0.02 * self.steps), self.training)

    x = np.random.default_rng(seed).normal(size=(100, 5))
    network = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), Growing(), nn.Linear(8, 1))
    found = []
    for other in (1, 2):
        torch.manual_seed(other)
        before = torch.get_rng_state()
        fitted = DROCC(network=network, max_steps=20, batch_size=32, random_state=0).fit(x)
        assert torch.equal(torch.get_rng_state(), before)
        found.append(fitted.decision_function(x))
    np.testing.assert_array_equal(*found)


def test_who_draws(seed: int) -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum(1) + torch.randn(())

    rows, series = torch.randn(4, 6), torch.randn(4, 5, 6)
    layers = nn.Linear(6, 1), nn.BatchNorm1d(1)
    for model, x, draws in (
        (nn.Sequential(*layers), rows, False),
        (nn.Sequential(*layers, nn.Dropout(0.1)), rows, True),
        (nn.Sequential(*layers, nn.Dropout(0.1)).eval(), rows, True),
        (nn.Sequential(nn.Linear(6, 1), nn.RReLU()), rows, True),
        (Noisy(), rows, True),
        (nn.LSTM(6, 3, num_layers=2, dropout=0.2), series, True),
        (nn.LSTM(6, 3, num_layers=2), series, False),
        (nn.Linear(5, 1), rows, True),  # it fails, which tells nothing
    ):
        before, state = torch.get_rng_state(), copy.deepcopy(model.state_dict())
        mode = model.training
        assert draws_numbers(model, x) == draws, model
        assert torch.equal(torch.get_rng_state(), before) and model.training == mode
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_fit_is_stopped_amid_an_epoch_by_one_operator(seed: int) -> None:
    class Stopping(Trainer):
        asked = 0

        @property
        def should_stop(self) -> bool:
            self.asked += 1
            return self.asked > 6

        @should_stop.setter
        def should_stop(self, value: bool) -> None:
            pass

    model = perceptron(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    trainer = Stopping(model, DROCCLoss(SEARCH), optimizer, progress=False)
    history = trainer.fit(torch.randn(16_000, 4), epochs=1, batch_size=16, seed=seed)
    assert history[-1]["step"] in range(64, 1000, 64)
    assert all(p.grad is None for p in model.parameters())  # it was the operator


def test_noise_of_several_threads_is_drawn_once(seed: int) -> None:
    """Of the global generator: by searches, and by what else draws from it."""
    torch.manual_seed(seed)
    model, x = perceptron(seed), torch.zeros(1100, 4)
    still = SearchConfig(radius=1.0, step_size=0.0, num_steps=1)
    drawn: dict[str, list[tuple[float, ...]]] = {"search": [], "torch": []}

    def search() -> None:
        for _ in range(150):
            drawn["search"].append(tuple(adversarial_search(model, x, still)[0].tolist()))

    def plain() -> None:
        end = time.monotonic() + 60
        while len(drawn["search"]) < 300 and time.monotonic() < end:
            drawn["torch"].append(tuple(torch.rand(6, dtype=torch.float64).tolist()))

    threads = [threading.Thread(target=work) for work in (search, search, plain)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(drawn["search"]) == 300 and len(drawn["torch"]) > 0
    for values in drawn.values():
        assert len(set(values)) == len(values)
