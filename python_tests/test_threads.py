"""Threads and processes that share a model, a directory or the operators never spoil each other."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from drocc_ext import DROCC, DROCCLoss, SearchConfig, Trainer, adversarial_search, ops
from drocc_ext.estimators.fitting import _own_draws
from drocc_ext.models.modes import frozen
from drocc_ext.models.networks import MLP, LSTMClassifier
from drocc_ext.models.persistence import load_model, save_model
from drocc_ext.ops import _library
from drocc_ext.search.mlp.match import find_mlp

SEARCH = {"radius": 1.0, "step_size": 0.1, "num_steps": 3}


def together(threads: int, work: Callable[[int], Any]) -> list[Any]:
    """Run work in threads that start at once; an error of one is raised."""
    start = threading.Barrier(threads)

    def run(index: int) -> Any:
        start.wait()
        return work(index)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(run, range(threads)))


class Mixed(nn.Module):
    """Recurrent, normalizing, with dropout: every kind of flag that freezing touches."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 6, num_layers=2, dropout=0.5, batch_first=True)
        self.norm = nn.BatchNorm1d(6)
        self.fixed = nn.BatchNorm1d(6).eval()
        self.drop = nn.Dropout(0.5)
        self.logit = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        last = self.lstm(x)[1][0][-1]
        logits: Tensor = self.logit(self.drop(self.fixed(self.norm(last))))
        return logits


def flags(model: nn.Module) -> list[tuple[bool, float | None]]:
    return [(m.training, getattr(m, "dropout", None)) for m in model.modules()]


def test_scores_and_searches_of_one_model(seed: int) -> None:
    torch.manual_seed(seed)
    model = Mixed().train()
    model.fixed.eval()
    before = flags(model)
    x = torch.randn(32, 5, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, DROCCLoss(SearchConfig(**SEARCH)), optimizer, progress=False)
    expected = trainer.score(x)

    def search() -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return adversarial_search(model, x, generator=generator, **SEARCH)

    found = search()

    def work(index: int) -> None:
        for _ in range(15):
            if index % 2:
                assert torch.equal(trainer.score(x, batch_size=8 * index), expected)
            else:
                assert torch.equal(search(), found)

    together(4, work)
    assert flags(model) == before


def test_frozen_models_that_share_modules(seed: int) -> None:
    shared = nn.LSTM(3, 4, num_layers=2, dropout=0.3)
    first, second = nn.ModuleList([shared, nn.Dropout()]), nn.ModuleList([shared])
    before = flags(first)
    one, two = frozen(first), frozen(second)  # type: ignore[arg-type]
    one.__enter__()
    two.__enter__()
    one.__exit__(None, None, None)
    assert flags(second) == [(False, None), (True, 0.0)]
    assert first[1].training
    two.__exit__(None, None, None)
    assert flags(first) == before
    with pytest.raises(ZeroDivisionError), frozen(first):  # type: ignore[arg-type]
        raise ZeroDivisionError
    assert flags(first) == before


def test_operators_in_threads(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    h, grad = (torch.randn(64, 300, generator=generator) for _ in range(2))
    sigma = torch.rand(300, generator=generator) + 0.1

    def all_of_them() -> list[Tensor]:
        leaf = h.clone().requires_grad_()
        out = ops.l2_shell_step(leaf, grad, 0.3, 1.0, 2.0)
        shell = ops.project_mahalanobis_shell(leaf, sigma, 1.0, 2.0)
        (out.sum() + (shell * grad).sum()).backward()
        in_place = ops.project_l2_shell_(h.clone(), 1.0, 1.5)
        assert leaf.grad is not None
        return [out.detach(), shell.detach(), in_place, leaf.grad, ops.influence(grad)]

    expected = all_of_them()

    def work(index: int) -> None:
        for _ in range(10):
            for value, other in zip(all_of_them(), expected, strict=True):
                assert torch.equal(value, other)

    together(4, work)


def network(number: int) -> MLP:
    """A network whose weights and size tell its number."""
    model = MLP(3 + number, hidden=4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(number)
    return model


def check_whole(directory: Path) -> None:
    model, config = load_model(directory)
    number = config["number"]
    assert isinstance(model, MLP)
    assert model.config["in_features"] == 3 + number
    assert all(bool((parameter == number).all()) for parameter in model.parameters())


def save_often(directory: Path, number: int, times: int) -> None:
    for _ in range(times):
        save_model(directory, network(number), {"number": number})


def test_threads_save_into_one_directory(tmp_path: Path) -> None:
    save_often(tmp_path, 0, 1)
    done = threading.Event()
    reads = 0

    def work(index: int) -> None:
        nonlocal reads
        if index < 3:
            save_often(tmp_path, index, 15)
            if index == 0:
                done.set()
        else:
            while not done.is_set():
                check_whole(tmp_path)
                reads += 1

    together(5, work)
    assert reads > 0
    check_whole(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3  # description, weights, those before


def test_processes_save_into_one_directory(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    save_often(tmp_path, 9, 1)
    processes = [
        context.Process(target=save_often, args=(tmp_path, number, 8)) for number in range(2)
    ]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        check_whole(tmp_path)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    check_whole(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_reader_whose_weights_were_replaced_reads_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_often(tmp_path, 1, 1)
    read_bytes, saves = Path.read_bytes, iter([2, 3])

    def saved_in_between(path: Path) -> bytes:
        content = read_bytes(path)
        number = next(saves, None) if path.name == "config.json" else None
        if number is not None:
            monkeypatch.setattr(Path, "read_bytes", read_bytes)
            save_often(tmp_path, number, 2)  # the second removes what the reader looks for
            monkeypatch.setattr(Path, "read_bytes", saved_in_between)
        return content

    monkeypatch.setattr(Path, "read_bytes", saved_in_between)
    assert load_model(tmp_path)[1] == {"number": 3}


def test_recurrent_scores_do_not_depend_on_other_threads(seed: int) -> None:
    torch.manual_seed(seed)
    model, x = LSTMClassifier(3, hidden=5), torch.randn(6, 7, 3)
    with frozen(model):
        expected = model(x)

    def work(_: int) -> None:
        for _ in range(20):
            with frozen(model):
                assert torch.equal(model(x), expected)

    together(4, work)
    assert model.lstm.training


def test_explanations_beside_scores(seed: int, tmp_path: Path) -> None:
    x = np.random.default_rng(seed).normal(size=(50, 3))
    detector = DROCC(max_steps=5, network=8, random_state=0).fit(x)
    scores, parts = detector.decision_function(x), detector.explain(x)

    def work(index: int) -> None:
        if index == 0:
            for _ in range(5):
                np.testing.assert_array_equal(detector.explain(x), parts)
        for _ in range(50 if index == 1 else 0):
            np.testing.assert_array_equal(detector.decision_function(x), scores)
        for _ in range(10 if index == 2 else 0):
            detector.save(tmp_path)
            np.testing.assert_array_equal(DROCC.load(tmp_path).decision_function(x), scores)

    together(3, work)
    assert {p.dtype for p in detector.network_.parameters()} == {torch.float32}


@pytest.mark.skipif(_library.native_error("cpu") is not None, reason="needs the native operators")
def test_a_network_that_is_recognized_can_be_used_meanwhile(seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(5, 4)
    made = [nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)) for _ in range(150)]
    other = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
    with torch.no_grad():
        wanted, of_other = [model(x) for model in made], other(x)
    at = [0]
    call = nn.Module.__call__
    done = threading.Event()

    def use(index: int) -> int:
        if index == 0:
            try:
                for at[0] in range(len(made)):
                    assert find_mlp(made[at[0]]) is not None
            finally:
                done.set()
            return 0
        wrong = 0
        with torch.no_grad():
            while not done.is_set():
                here = at[0]
                wrong += nn.Module.__call__ is not call
                wrong += not torch.equal(made[here](x), wanted[here])
                wrong += not torch.equal(other(x), of_other)
        return wrong

    interval = sys.getswitchinterval()
    try:
        sys.setswitchinterval(1e-5)
        assert together(2, use) == [0, 0]
    finally:
        sys.setswitchinterval(interval)


def in_a_child(work: Callable[[], bool]) -> None:
    """Fork, and see that work is done there, in time, and gives True."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if work() else 3)
        except BaseException:
            os._exit(4)
    for _ in range(600):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail("the child does not end")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_forked_process_gets_back_what_other_threads_had_frozen() -> None:
    model = Mixed().train()
    before = flags(model)
    inside, done = threading.Event(), threading.Event()

    def hold() -> None:
        with frozen(model), _own_draws(torch.device("cpu"), 0):
            inside.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait()

    def work() -> bool:
        given_back = flags(model) == before
        with frozen(model), _own_draws(torch.device("cpu"), 0):
            held = flags(model) != before
        return given_back and held and flags(model) == before

    try:
        in_a_child(work)
        # What the forking thread itself holds it keeps, and gives back once.
        with frozen(model):
            in_a_child(lambda: flags(model) != before)
    finally:
        done.set()
        thread.join()
    assert flags(model) == before
