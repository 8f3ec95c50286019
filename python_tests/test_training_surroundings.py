"""What surrounds a fit: a caller's autocast, generators, a former fit, other optimizers."""

from __future__ import annotations

import functools
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from training_cases import CONFIG, Rows, assert_same_state, rows, state_of, trainer

from drocc_ext import DROCC
from drocc_ext.compat.edgeml import DROCCTrainer
from drocc_ext.models.networks import MLP
from drocc_ext.search import SearchConfig, adversarial_search
from drocc_ext.training.callbacks import Callback
from drocc_ext.training.data import as_batches
from drocc_ext.training.loss import DROCCLoss
from drocc_ext.training.shares import share_of
from drocc_ext.training.trainer import Trainer


def network(seed: int) -> nn.Sequential:
    """Draws nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 1))


def half(enabled: bool = True, cache: bool = True) -> Any:
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled, cache_enabled=cache)


def test_a_fit_in_autocast_sees_the_weights_of_each_step(seed: int) -> None:
    x, states = rows(seed), []
    for cache in (True, False):
        model = network(seed)
        with half(cache=cache):
            # Steps so large that the first step's weights are no stand-in for the last one's.
            trainer(model, lr=0.1).fit(x, epochs=10, batch_size=10, seed=seed)
            after = model.eval()(x)
        states.append(state_of(model))
        with half(cache=False):
            torch.testing.assert_close(after, model(x), rtol=0, atol=0)
    assert_same_state(*states)


@pytest.mark.parametrize("metric", ["l2", "mahalanobis"])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_a_default_device_changes_nothing(
    activation: type[nn.Module], metric: Any, tmp_path: Path, seed: int
) -> None:
    """Of rows and a model on the CPU: neither ways nor numbers. "meta" stands for a GPU."""
    x, found = rows(seed), []
    for device in ("none", "cpu", "meta"):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 16), activation(), nn.Linear(16, 1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        with nullcontext() if device == "none" else torch.device(device):
            one = Trainer(model, DROCCLoss(CONFIG, metric=metric), optimizer, progress=False)
            place = tmp_path / device
            for epochs in (2, 3):
                one.fit(
                    x,
                    validation=x,
                    epochs=epochs,
                    batch_size=16,
                    seed=seed,
                    checkpoint_dir=place,
                    resume=epochs == 3,
                )
            points = adversarial_search(
                model, x, CONFIG, generator=torch.Generator("cpu").manual_seed(seed)
            )
            scores = one.score(x.numpy())
            gradient = {p.grad for p in model.parameters()} == {None}
        found.append({**state_of(model), "points": points, "scores": scores})
        assert gradient == (activation is nn.ReLU and metric == "l2")  # epochs by one operator
        assert_same_state(found[0], found[-1])


def test_the_published_trainer_in_autocast_too(seed: int, capsys: Any) -> None:
    loader, states = [(part, torch.ones(10)) for part in rows(seed).split(10)], []
    labelled = [(rows(seed), (torch.arange(40) % 2).float())]
    for cache in (True, False):
        model = network(seed)
        torch.manual_seed(seed)
        with half(cache=cache):
            published = DROCCTrainer(
                model, torch.optim.SGD(model.parameters(), 0.3), 1.0, 1.0, 2.0, torch.device("cpu")
            )
            published.train(loader, labelled, 0.3, lambda *_: None, 6, 2, 0.1, 3)
        states.append(state_of(model))
    assert_same_state(*states)


def test_estimators_leave_autocast_outside(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, new = rng.normal(size=(80, 3)), rng.normal(size=(20, 3))
    module = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    for options in ({}, {"network": module}):
        plain = DROCC(max_steps=20, random_state=0, **options).fit(x)
        with half():
            inside = DROCC(max_steps=20, random_state=0, **options).fit(x)
            scores = inside.decision_function(new)
            parts = inside.explain(new)
        np.testing.assert_array_equal(scores, plain.decision_function(new))
        np.testing.assert_array_equal(parts, plain.explain(new))


def test_a_fit_resumed_without_validation_keeps_the_last_weights(tmp_path: Path, seed: int) -> None:
    x = rows(seed)
    first = trainer(network(seed))
    first.fit(x, validation=x, epochs=2, seed=seed, checkpoint_dir=tmp_path)
    model = network(seed)
    last: list[dict[str, Tensor]] = []
    resumed = trainer(model)
    history = resumed.fit(x, epochs=4, seed=seed, checkpoint_dir=tmp_path, resume=True)
    assert len(history) == 4 and history.best_epoch is None and history.best_value is None
    assert any(not torch.equal(a, b) for a, b in zip(
        state_of(model).values(), state_of(first.model).values(), strict=True))  # fmt: skip
    last.append(state_of(model))
    whole = network(seed)
    trainer(whole).fit(x, epochs=4, seed=seed)
    assert_same_state(last[0], state_of(whole))


def test_a_best_epoch_without_its_weights_is_chosen_anew(tmp_path: Path, seed: int) -> None:
    x, values = rows(seed), iter([9.0, 3.0, 5.0, 4.0])

    def monitor(scores: Any, labels: Any) -> float:
        return next(values)

    held_out = (x, (torch.arange(40) % 2).long())
    options: dict[str, Any] = {"validation": held_out, "monitor": monitor, "seed": seed}
    options |= {"checkpoint_dir": tmp_path, "resume": True}
    trainer(network(seed)).fit(x, epochs=1, restore_best=False, **options)
    model, kept = network(seed), []

    class Keep(Callback):
        def on_epoch_end(self, trainer: Trainer, record: dict[str, float]) -> None:
            kept.append(state_of(trainer.model))

    history = trainer(model, callbacks=[Keep()]).fit(x, epochs=4, **options)
    assert history.best_epoch == 3
    assert_same_state(state_of(model), kept[1])


@pytest.mark.parametrize("train", ["tensor", "dataset"])
def test_data_sets_leave_the_global_generator_alone(train: str, seed: int) -> None:
    x = rows(seed)
    fitted = trainer(network(seed).eval()[:1].append(nn.ReLU()).append(nn.Linear(16, 1)))
    before = torch.get_rng_state()
    fitted.fit(x if train == "tensor" else Rows(x), validation=Rows(x), epochs=2, seed=seed)
    fitted.score(Rows(x))
    assert torch.equal(torch.get_rng_state(), before)


class Shared:
    """A loader that deals out its own batches."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.part = x, (0, 1)

    def share(self, rank: int, ranks: int) -> None:
        self.part = (rank, ranks)

    def __iter__(self) -> Any:
        return iter(self.x[self.part[0] :: self.part[1]].split(5))


def test_a_stream_that_ranks_share_goes_on_whole(seed: int) -> None:
    loader = Shared(rows(seed))
    batches = as_batches(
        "test", loader, batch_size=5, device=torch.device("cpu"), dtype=torch.float32
    )
    mine = share_of(batches, 1, 2, 0)
    assert sum(len(x) for x, _ in mine) == 20
    assert sum(len(x) for x in loader) == 40


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_clipping_looks_at_what_is_stepped(dtype: torch.dtype | None, seed: int) -> None:
    x, moved = rows(seed), []
    for frozen in (False, True):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
        before = model[2].weight.detach().clone()
        model[0].requires_grad_(not frozen)
        optimizer = torch.optim.SGD(model[2].parameters(), 0.1)
        options: dict[str, Any] = {"clip_norm": 0.05, "autocast_dtype": dtype, "progress": False}
        Trainer(model, DROCCLoss(CONFIG), optimizer, **options).fit(
            x, epochs=10, batch_size=10, seed=seed
        )
        moved.append(model[2].weight.detach() - before)
    torch.testing.assert_close(*moved, rtol=0.02, atol=1e-4)


def test_a_step_that_copies_a_scheduler_s_mark_is_called(seed: int) -> None:
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5)
    inner, calls = optimizer.step, []

    @functools.wraps(inner)
    def step(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return inner(*args, **kwargs)

    optimizer.step = step  # type: ignore[method-assign]
    fitted = Trainer(model, DROCCLoss(CONFIG), optimizer, scheduler=scheduler, progress=False)
    fitted.fit(rows(seed), epochs=3, batch_size=10, seed=seed)
    assert len(calls) == 12


@pytest.mark.parametrize("kind", ["adafactor", "negative key", "infinite key"])
def test_optimizers_with_odd_settings_resume(kind: str, tmp_path: Path, seed: int) -> None:
    def made() -> Trainer:
        model = network(seed)
        more = {"adafactor": {}, "negative key": {"layer": -1}, "infinite key": {"most": np.inf}}
        groups = [{"params": list(model.parameters()), **more[kind]}]
        cls = torch.optim.Adafactor if kind == "adafactor" else torch.optim.Adam
        return Trainer(model, DROCCLoss(CONFIG), cls(groups, lr=0.01), progress=False)

    x, whole = rows(seed), made()
    whole.fit(x, epochs=3, seed=seed)
    made().fit(x, epochs=1, seed=seed, checkpoint_dir=tmp_path)
    resumed = made()
    resumed.fit(x, epochs=3, seed=seed, checkpoint_dir=tmp_path, resume=True)
    assert_same_state(state_of(resumed.model), state_of(whole.model))


def test_a_model_with_nothing_to_train_is_refused() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="model must have a parameter that requires gradients"):
        Trainer(model, DROCCLoss(CONFIG), optimizer)


def test_a_scheduler_of_another_optimizer_is_refused(seed: int) -> None:
    model, other = network(seed), torch.optim.SGD(network(seed).parameters(), 0.1)
    with pytest.raises(ValueError, match=r"^Trainer: scheduler must be one of optimizer, got one"):
        trainer(model, scheduler=torch.optim.lr_scheduler.StepLR(other, 1))


@pytest.mark.parametrize("kind", ["layout", "dtype"])
def test_a_state_that_is_kept_in_another_way(kind: str, seed: int) -> None:
    """The operator for whole epochs cannot take it, the optimizer can."""
    x, moved = rows(seed), []
    for change in (False, True):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
        optimizer = (
            torch.optim.Adam(model.parameters(), 0.01)
            if kind == "layout"  # Adam takes no state of another type
            else torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
        )
        fitted = Trainer(model, DROCCLoss(CONFIG), optimizer, progress=False)
        fitted.fit(x, epochs=2, seed=seed)
        for name, state in fitted.optimizer.state[model[0].weight].items():
            if change and name != "step":
                fitted.optimizer.state[model[0].weight][name] = (
                    state.T.contiguous().T if kind == "layout" else state.double()
                )
        fitted.fit(x, epochs=2, seed=seed)
        moved.append(model[0].weight.detach())
    torch.testing.assert_close(*moved, rtol=1e-4, atol=1e-5)


def test_sparse_rows_are_refused(seed: int) -> None:
    sparse, model = rows(seed).to_sparse(), network(seed)
    with pytest.raises(TypeError, match=r"^adversarial_search: x must be dense, got torch.sparse_"):
        adversarial_search(model, sparse, CONFIG)
    with pytest.raises(TypeError, match=r"^DROCCLoss: x must be dense, got torch.sparse_coo"):
        DROCCLoss(CONFIG)(model, sparse)
    with pytest.raises(TypeError, match=r"^Trainer.fit: train: x must be dense, got torch.sparse_"):
        trainer(model).fit(sparse, epochs=1)


def test_a_monitor_that_gives_no_number(seed: int) -> None:
    x = rows(seed)
    labels = torch.ones(len(x)).index_fill(0, torch.tensor([0]), 0)
    with pytest.raises(TypeError, match="monitor must give a number, got 'good'"):
        trainer(network(seed)).fit(
            x,
            epochs=1,
            validation=(x, labels),
            monitor=lambda *_: "good",  # type: ignore[arg-type,return-value]
        )


def test_a_radius_beyond_the_rows_type(seed: int) -> None:
    far = SearchConfig(radius=1e39, step_size=1e38, num_steps=1)
    with pytest.raises(ValueError, match=r"radius must fit float32 for rows torch.float32, got 1e"):
        adversarial_search(network(seed), rows(seed), far)
    found = adversarial_search(network(seed).double(), rows(seed).double(), far)
    assert (found.norm(dim=1) >= 1e39 * (1 - 1e-12)).all()


def test_an_epoch_that_is_stopped_before_it_begins_is_not_recorded(seed: int) -> None:
    class Stops(Callback):
        def on_epoch_start(self, trainer: Trainer, epoch: int) -> None:
            trainer.should_stop = epoch == 3

    history = trainer(network(seed), callbacks=[Stops()]).fit(rows(seed), epochs=9)
    assert [record["epoch"] for record in history] == [1, 2]


def test_a_method_of_the_optimizer_that_is_replaced_is_called(seed: int) -> None:
    model, calls = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1)), []
    fitted = trainer(model)
    inner = fitted.optimizer.zero_grad

    def zero_grad(set_to_none: bool = True) -> None:
        calls.append(1)
        inner(set_to_none)

    fitted.optimizer.zero_grad = zero_grad  # type: ignore[method-assign]
    fitted.fit(rows(seed), epochs=3, batch_size=10, seed=seed)
    assert len(calls) >= 12


@pytest.mark.parametrize("method", ["auto", "autograd"])
def test_numbers_of_numpy_are_numbers(method: Any, seed: int) -> None:
    weights = []
    for kind in (int, np.int64, np.uint8, np.int8):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
        config = SearchConfig(1.0, 0.2, kind(2), method=method, project_every=kind(1))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        fitted = Trainer(model, DROCCLoss(config), optimizer, progress=False)
        fitted.fit(rows(seed), epochs=kind(3), batch_size=kind(16), seed=seed)
        assert len(fitted.score(rows(seed), batch_size=kind(100))) == 40
        weights.append(model[0].weight.detach())
    for other in weights[1:]:
        assert torch.equal(other, weights[0])


def test_callbacks_and_schedulers_are_checked(seed: int) -> None:
    class Mine:
        def on_epoch_end(self, trainer: Trainer, record: dict[str, float]) -> None: ...

    wrong: list[tuple[Any, str]] = [
        (Callback(), r"callbacks must be several, got one Callback"),
        ([Mine()], r"callbacks must be instances of Callback, got Mine"),
        ([Callback], r"callbacks must be instances of Callback, got the class Callback"),
    ]
    for callbacks, message in wrong:
        with pytest.raises(TypeError, match=f"^Trainer: {message}$"):
            trainer(network(seed), callbacks=callbacks)
    for scheduler, got in (
        (torch.optim.lr_scheduler.StepLR, "the class StepLR"),
        (lambda epoch: 1.0, "function"),
    ):
        with pytest.raises(TypeError, match=f"^Trainer: scheduler must be one of .*, got {got}$"):
            trainer(network(seed), scheduler=scheduler)


def test_a_list_of_rows_is_spoken_of(seed: int) -> None:
    with pytest.raises(ValueError, match="of a list each element is a batch"):
        trainer(network(seed)).fit(rows(seed).tolist(), epochs=1)
    big = rows(seed).numpy().astype(">f4")
    trainer(network(seed)).fit(big, epochs=1)


def test_an_optimizer_of_another_model_is_refused(seed: int) -> None:
    other = torch.optim.SGD(network(seed).parameters(), 0.1)
    with pytest.raises(ValueError, match=r"^Trainer: optimizer must be over parameters of model"):
        Trainer(network(seed), DROCCLoss(CONFIG), other)
    model = network(seed)
    fitting = trainer(model)
    model.load_state_dict(network(seed + 1).state_dict(), assign=True)  # parameters of their own
    with pytest.raises(ValueError, match=r"^Trainer.fit: optimizer must be over parameters"):
        fitting.fit(rows(seed), epochs=1)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_a_radius_of_a_row_that_is_none(bad: float) -> None:
    radius = torch.ones(6)
    radius[3] = bad
    message = rf"^DROCCLoss: a radius tensor must be > 0 and finite, got {bad:g} in row 3$"
    with pytest.raises(ValueError, match=message):
        DROCCLoss(SearchConfig(radius, 0.1, 2))


def test_an_interrupt_amid_a_checkpoint(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's writer ends the process when the file that it writes to has been closed."""
    writer: Any = torch.serialization._open_zipfile_writer_buffer  # type: ignore[attr-defined]
    inner, x = writer.__exit__, rows(seed)
    trainer(network(seed)).fit(x, epochs=2, seed=seed, checkpoint_dir=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def interrupted(self: Any, *error: Any) -> None:
        monkeypatch.setattr(writer, "__exit__", inner)
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "__exit__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer(network(seed)).fit(x, epochs=3, seed=seed, checkpoint_dir=tmp_path, resume=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.AdamW])
def test_another_default_type_changes_no_training(
    make: Any, default: torch.dtype, seed: int
) -> None:
    x, found = rows(seed), []
    for kind in (torch.float32, default):
        torch.manual_seed(seed)
        model = MLP(4, (8,))
        optimizer = make(model.parameters(), lr=0.01)
        fitted = Trainer(model, DROCCLoss(CONFIG), optimizer, progress=False)
        former = torch.get_default_dtype()
        try:
            torch.set_default_dtype(kind)
            fitted.fit(x, epochs=400, batch_size=64, seed=seed)
        finally:
            torch.set_default_dtype(former)
        assert all(float(state["step"]) == 400 for state in optimizer.state.values())
        found.append(state_of(model))
    assert_same_state(*found)


def test_statistics_of_all_norms_are_given_back(seed: int) -> None:
    torch.manual_seed(seed)
    norms = (
        nn.BatchNorm1d(4),
        nn.Unflatten(1, (4, 1)),
        nn.InstanceNorm1d(4, track_running_stats=True),
    )
    model = nn.Sequential(
        norms[0],
        nn.Linear(4, 12),
        nn.Unflatten(1, (4, 3)),
        norms[2],
        nn.Flatten(),
        nn.Linear(12, 1),
    )
    bad = rows(seed)[:8].clone()
    bad[3, 1] = torch.nan
    before = state_of(model)
    with pytest.raises(FloatingPointError):
        trainer(model).fit([bad], epochs=1)
    assert_same_state(state_of(model), before)
