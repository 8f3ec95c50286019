"""Two ranks train as one process does, decide alike, and go on from each other's checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_cases import run_ranks
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from drocc_ext import DROCCLoss, SearchConfig, Trainer
from drocc_ext.models.networks import MLP
from drocc_ext.search import search as search_module
from drocc_ext.training import loss as loss_module
from drocc_ext.training import ranks as ranks_module
from drocc_ext.training.callbacks import Callback
from drocc_ext.training.mlp_gradient import MLPGradient

SEARCH = SearchConfig(radius=1.0, step_size=0.2, num_steps=2)


def rows(seed: int, count: int = 90) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed + 1))


def network(seed: int, kind: str = "mlp") -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "mlp":  # trained by operators
            net = MLP(6, (16, 16)).double()
            with torch.no_grad():  # a unit that is always on: noise decides where no gradient does
                for layer in net.layers:
                    layer.bias[0] += 8
            return net
        first = nn.BatchNorm1d(6) if kind == "norm" else nn.Identity()
        return nn.Sequential(first, nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1)).double()


def of_the_rows(x: Tensor) -> Tensor:
    """Noise that follows from the row: the same, whichever rank draws it."""
    return torch.sin(1e3 * x) + 0.5 * torch.cos(777 * x.roll(1, -1))


def without_chance() -> None:
    search_module._noise = lambda caller, x, *_: of_the_rows(x).contiguous()
    # The start that the loss draws for its operators calls the same function.
    assert loss_module.draw_start.__globals__["_noise"] is search_module._noise


def without_noise() -> SearchConfig:
    """Noise that decides nothing, for operators that draw their own; the order is one process's."""
    ranks_module.OneProcess.noise_generator = lambda self, order: torch.Generator()
    return replace(SEARCH, noise_scale=1e-30, project_start=False)


class StepByStep(Callback):
    """With one that follows batches, no operator takes a whole epoch at once."""

    def on_batch_end(self, trainer: Trainer, step: int, losses: dict[str, float]) -> None:
        pass


class Stop(Callback):
    def __init__(self, at: int, on_rank: int) -> None:
        self.at, self.on_rank = at, on_rank

    def on_batch_end(self, trainer: Trainer, step: int, losses: dict[str, float]) -> None:
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        if step == self.at and rank == self.on_rank:
            trainer.should_stop = True


def fit(
    seed: int,
    batch_size: int,
    *,
    kind: str = "mlp",
    labelled: bool = False,
    metric: Any = "l2",
    wrap: bool = False,
    distributed: Any = None,
    callbacks: Any = None,
    repeatable: bool = True,
    count: int = 90,
    **options: Any,
) -> dict[str, Any]:
    search = SEARCH
    if repeatable and kind == "mlp":
        search = without_noise()
    elif repeatable:
        without_chance()
    net = network(seed, kind)
    model = DistributedDataParallel(net) if wrap else net
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01, weight_decay=1e-3)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    loss = DROCCLoss(search, mu=1.5, metric=metric)
    trainer = Trainer(
        model,
        loss,
        optimizer,
        scheduler=plateau,
        distributed=distributed,
        callbacks=callbacks or [StepByStep()],
        progress=False,
    )
    x = rows(seed, count).double()
    data: Any = (x, (torch.arange(len(x)) % 7 > 0).long()) if labelled else x
    held = rows(seed + 9, 31).double()
    history = trainer.fit(
        data,
        validation=(held, (torch.arange(31) % 3 > 0).long()),
        batch_size=batch_size,
        seed=seed,
        **{"epochs": 4, **options},
    )
    for record in history:
        record.pop("seconds")
    return {
        "weights": {name: value.clone() for name, value in net.state_dict().items()},
        "history": list(history),
        "best": history.best_epoch,
        "sigma": loss.sigma,
    }


def assert_close(one: dict[str, Any], two: dict[str, Any]) -> None:
    """To 1e-9, in float64: sums of the same numbers in another order, over four epochs."""
    torch.testing.assert_close(one["weights"], two["weights"], rtol=1e-9, atol=1e-9)
    for first, second in zip(one["history"], two["history"], strict=True):
        assert first == pytest.approx(second, rel=1e-9, abs=1e-9)
    assert one["best"] == two["best"]


@pytest.mark.parametrize(
    ("kind", "labelled", "monitor"),
    [("mlp", False, "loss"), ("mlp", True, "auc"), ("tanh", True, "loss"), ("tanh", False, "auc")],
)
def test_two_ranks_are_one_process(
    kind: str, labelled: bool, monitor: str, tmp_path: Path, seed: int
) -> None:
    """90 rows in global batches of 32: the last one has 26, 13 on each rank."""
    options = {"kind": kind, "labelled": labelled, "monitor": monitor}
    two = run_ranks(tmp_path, work, seed, 16, {"wrap": True, **options})
    [one] = run_ranks(tmp_path, work, seed, 32, options, ranks=1)
    assert_same(*two)
    assert_close(one, two[0])


def work(seed: int, batch_size: int, options: dict[str, Any]) -> dict[str, Any]:
    return fit(seed, batch_size, **options)


def assert_same(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert not isinstance(one, Exception), one
    assert not isinstance(two, Exception), two
    for name, value in one["weights"].items():
        assert torch.equal(value, two["weights"][name])
    assert (one["history"], one["best"]) == (two["history"], two["best"])


@pytest.mark.parametrize("kind", ["mlp", "tanh"])
def test_an_epochs_sigma_is_that_of_all_ranks(kind: str, tmp_path: Path, seed: int) -> None:
    """The first epoch, which has none yet, takes that of the batch at hand: it is of one batch."""
    options = {"kind": kind, "metric": "mahalanobis", "epochs": 2}
    two = run_ranks(tmp_path, work, seed, 64, {"wrap": True, **options})
    assert_same(*two)
    assert two[0]["sigma"] is not None and torch.equal(two[0]["sigma"], two[1]["sigma"])
    again = run_ranks(tmp_path, sums_of_influence, seed, kind)
    [alone] = run_ranks(tmp_path, sums_of_influence, seed, kind, ranks=1)
    torch.testing.assert_close(again[0], alone)
    assert torch.equal(*again)


def sums_of_influence(seed: int, kind: str) -> Tensor:
    """Sigma after one pass, in a loop of one's own, over rows that the ranks share."""
    group = torch.distributed.group.WORLD
    loss = DROCCLoss(SEARCH, metric="mahalanobis")
    net, x = network(seed, kind), rows(seed).double()
    loss.start_epoch(group)
    mine = x[torch.distributed.get_rank() :: torch.distributed.get_world_size()]
    for part in mine[:-1].split(20) if len(mine) < 90 else mine[:-2].split(20):
        loss(net, part)
    loss.start_epoch(group)
    assert loss.sigma is not None
    return loss.sigma


def test_ranks_stop_where_one_of_them_wants_to(tmp_path: Path, seed: int) -> None:
    options = {"wrap": True, "callbacks": (Stop(at=5, on_rank=1),), "epochs": 9}
    two = run_ranks(tmp_path, work, seed, 16, options)
    assert_same(*two)
    assert [record["step"] for record in two[0]["history"]] == [3, 5]


class Note(Callback):
    on_every_rank = False

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_epoch_end(self, trainer: Trainer, record: dict[str, float]) -> None:
        with self.path.open("a") as file:
            file.write(f"{record['epoch']}\n")


def test_who_writes_is_rank_0(tmp_path: Path, seed: int) -> None:
    options = {"wrap": True, "callbacks": (Note(tmp_path / "notes"),), "epochs": 2}
    assert_same(*run_ranks(tmp_path, work, seed, 16, options))
    assert (tmp_path / "notes").read_text() == "1\n2\n"


def test_patience_ends_all_ranks_at_once(tmp_path: Path, seed: int) -> None:
    """With BatchNorm, whose statistics are each rank's own until the epoch ends."""
    options = {"wrap": True, "epochs": 400, "patience": 2, "repeatable": False, "kind": "norm"}
    two = run_ranks(tmp_path, work, seed, 16, options)
    assert_same(*two)
    assert 400 > len(two[0]["history"]) == two[0]["best"] + 2


@pytest.mark.parametrize("count", [89, 65, 3])
def test_a_rank_without_rows_takes_part_with_weight_0(
    count: int, tmp_path: Path, seed: int
) -> None:
    two = run_ranks(tmp_path, uneven, seed, 16, count, True)
    [one] = run_ranks(tmp_path, uneven, seed, 32, count, False, ranks=1)
    assert_same(*two)
    assert_close(one, two[0])


def uneven(seed: int, batch_size: int, count: int, wrap: bool) -> dict[str, Any]:
    net = network(seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    model = DistributedDataParallel(net) if wrap else net
    trainer = Trainer(
        model,
        DROCCLoss(without_noise()),
        optimizer,
        callbacks=[StepByStep()],
        clip_norm=0.05,
        progress=False,
    )
    x = rows(seed, count).double()
    y = torch.ones(count)
    y[::5] = 0
    history = trainer.fit((x, y), epochs=3, batch_size=batch_size, seed=seed)
    for record in history:
        record.pop("seconds")
    return {"weights": dict(net.state_dict()), "history": list(history), "best": None}


def test_checkpoints_go_from_one_rank_to_two_and_back(tmp_path: Path, seed: int) -> None:
    """Without chance, the way through the numbers of ranks is the straight one."""
    parts = [(1, 32, 2), (2, 16, 4), (1, 32, 6)]
    for ranks, batch_size, epochs in parts:
        options = {"wrap": ranks > 1, "checkpoint_dir": tmp_path / "run", "resume": True}
        got = run_ranks(
            tmp_path, work, seed, batch_size, {**options, "epochs": epochs}, ranks=ranks
        )
        assert not isinstance(got[0], Exception), got[0]
        assert [file.name for file in (tmp_path / "run").iterdir()] == ["checkpoint.pt"]
    [straight] = run_ranks(tmp_path, work, seed, 32, {"epochs": 6}, ranks=1)
    assert_close(straight, got[0])


@pytest.mark.parametrize("metric", ["l2", "mahalanobis"])
def test_two_ranks_resume_bit_by_bit(metric: str, tmp_path: Path, seed: int) -> None:
    """With chance: each rank's generator is in the checkpoint, and what each has counted."""
    options = {"wrap": True, "repeatable": False, "kind": "tanh", "metric": metric}
    straight = run_ranks(tmp_path, work, seed, 16, options)
    kept = {**options, "checkpoint_dir": tmp_path / "run"}
    run_ranks(tmp_path, work, seed, 16, {**kept, "epochs": 2})
    resumed = run_ranks(tmp_path, work, seed, 16, {**kept, "resume": True})
    assert_same(*resumed)
    assert_same(straight[0], resumed[0])


def test_each_rank_has_noise_of_its_own(tmp_path: Path, seed: int) -> None:
    first, second = run_ranks(tmp_path, noise, seed)
    assert not torch.equal(first, second)
    assert torch.equal(first, run_ranks(tmp_path, noise, seed)[0])


def noise(seed: int) -> Tensor:
    """What a search starts from on this rank: the noise that the trainer hands to its loss."""
    starts = []

    class Watch(DROCCLoss):
        def forward(self, *args: Any, **options: Any) -> Any:
            starts.append(torch.randn(4, generator=options["generator"]))
            return super().forward(*args, **options)

    net = network(seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    trainer = Trainer(DistributedDataParallel(net), Watch(SEARCH), optimizer, progress=False)
    trainer.fit(rows(seed).double(), epochs=1, seed=seed)
    return starts[0]


@pytest.mark.parametrize("change", ["none", "comm hook", "forward hook", "no gradient sync"])
def test_one_message_a_step_where_nothing_watches(change: str, tmp_path: Path, seed: int) -> None:
    """What DDP would have called is called; else an operator's gradient goes in one piece."""
    plain = change == "none"
    assert run_ranks(tmp_path, calls, seed, change) == [(3, 0) if plain else (0, 3)] * 2


def calls(seed: int, change: str) -> tuple[int, int]:
    """Steps of the operator that makes gradients, and DDP's forwards."""
    taken, forwards = [], []
    make, forward = MLPGradient.__call__, DistributedDataParallel.forward

    def counted(self: MLPGradient, *args: Any, **options: Any) -> Any:
        taken.append(1)
        return make(self, *args, **options)

    def watched(self: DistributedDataParallel, *args: Any, **options: Any) -> Any:
        forwards.append(1)
        return forward(self, *args, **options)

    MLPGradient.__call__ = counted
    DistributedDataParallel.forward = watched
    net = network(seed)
    model = DistributedDataParallel(net)
    if change == "comm hook":
        model.register_comm_hook(None, allreduce_hook)
    if change == "forward hook":
        model.register_forward_hook(lambda *_: None)
    model.require_backward_grad_sync = change != "no gradient sync"
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    trainer = Trainer(model, DROCCLoss(SEARCH), optimizer, progress=False)
    trainer.fit(rows(seed).double(), epochs=1, batch_size=16, seed=seed)
    return len(taken), len(forwards)


def test_the_trainer_wraps_where_it_is_asked_to(tmp_path: Path, seed: int) -> None:
    asked = run_ranks(tmp_path, work, seed, 16, {"distributed": "ddp"})
    wrapped = run_ranks(tmp_path, work, seed, 16, {"wrap": True})
    assert_same(*asked)
    assert_same(asked[0], wrapped[0])


def test_a_loss_that_is_not_finite_ends_all_ranks_alike(tmp_path: Path, seed: int) -> None:
    found = run_ranks(tmp_path, with_one_bad_row, seed)
    for error in found:
        assert isinstance(error, FloatingPointError)
        assert "epoch 1, batch 1" in str(error)


def with_one_bad_row(seed: int) -> None:
    x = rows(seed, 20)
    if torch.distributed.get_rank() == 1:
        x[:] = torch.nan
    net = MLP(6, (16, 16))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    Trainer(DistributedDataParallel(net), DROCCLoss(SEARCH), optimizer, progress=False).fit(
        x, epochs=1, seed=seed
    )


class Numbered(torch.utils.data.Dataset[Any]):
    """Rows that tell which they are."""

    def __len__(self) -> int:
        return 23

    def __getitem__(self, index: int) -> Tensor:
        return torch.full((6,), float(index))


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_loader_is_dealt_out_to_the_ranks(shuffle: bool, tmp_path: Path, seed: int) -> None:
    seen = run_ranks(tmp_path, rows_seen, seed, shuffle)
    every = [sorted(one + two) for one, two in zip(*seen, strict=True)]
    assert every == [list(range(23))] * 2  # two epochs, no row twice
    if shuffle:
        assert seen[0][0] != seen[0][1]
    else:
        assert seen[0][0] == list(range(0, 23, 2))


def rows_seen(seed: int, shuffle: bool) -> list[list[int]]:
    epochs: list[list[int]] = []

    class Watch(MLP):
        def forward(self, x: Tensor) -> Tensor:
            epochs[-1].extend(x[:, 0].round().int().tolist()) if self.training else None
            return super().forward(x)

    class Count(Callback):
        def on_epoch_start(self, trainer: Trainer, epoch: int) -> None:
            epochs.append([])

    net = Watch(6, (8,))
    loader = torch.utils.data.DataLoader(Numbered(), batch_size=5, shuffle=shuffle)
    trainer = Trainer(
        DistributedDataParallel(net),
        DROCCLoss(SEARCH),
        torch.optim.SGD(net.parameters(), lr=0.0),
        callbacks=[Count()],
        progress=False,
    )
    # Warm-up: clean rows only. A rank that has none left repeats its last ones with weight 0.
    history = trainer.fit(loader, epochs=2, warmup_epochs=2, seed=seed)
    assert [record["step"] for record in history] == [3, 6]
    return epochs


class Wrapped(nn.Module):
    """A loss within the module that is wrapped, as Lightning has it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
        self.loss = DROCCLoss(SEARCH, metric="mahalanobis")

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.loss(self.model, x, y).total  # type: ignore[no-any-return]


def wrapped_loss(seed: int, without: int) -> tuple[Tensor | None, int]:
    rank, group = torch.distributed.get_rank(), torch.distributed.group.WORLD
    torch.manual_seed(seed)
    whole = Wrapped()
    ddp = DistributedDataParallel(whole)
    torch.manual_seed(seed + rank)
    y = torch.ones(3, 16)
    if rank == without:
        y[0] = 0.0
    whole.loss.start_epoch(group)
    for labels in y:
        ddp(torch.randn(16, 4), labels).backward()
    assert whole.loss.tracker is not None and whole.loss.tracker.row_count is not None
    count = int(whole.loss.tracker.row_count)
    whole.loss.start_epoch(group)
    return whole.loss.sigma, count


@pytest.mark.parametrize("without", [0, 1])
def test_a_loss_within_a_wrapped_module(without: int, seed: int, tmp_path: Path) -> None:
    """One rank begins with a batch without normal rows: it has counted nothing, the other has."""
    found = run_ranks(tmp_path, wrapped_loss, seed, without)
    sigmas, counts = zip(*found, strict=True)
    assert counts == ((32, 48) if without == 0 else (48, 32))
    assert torch.equal(*sigmas)


def own_loop(seed: int, sharded: bool, metric: Any) -> Tensor:
    """Ranks that run out of normal rows, or of rows, at different steps."""
    rank = torch.distributed.get_rank()
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
    model = fully_shard(net) if sharded else DistributedDataParallel(net)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    loss = DROCCLoss(SEARCH, metric=metric)
    for epoch in range(2):
        loss.start_epoch(torch.distributed.group.WORLD)
        for step in range(5):
            x = rows(seed + 10 * epoch + step)[rank::2]
            y = torch.ones(len(x))
            if step == rank + 1:
                x, y = x[:0], y[:0]
            elif step == rank + 3:
                y = torch.zeros(len(x))
            optimizer.zero_grad()
            loss(model, x, y).total.backward()
            optimizer.step()
    weights = [p.full_tensor() if sharded else p for p in net.parameters()]  # type: ignore[attr-defined]
    assert bool(torch.isfinite(torch.cat([w.reshape(-1) for w in weights])).all())
    return torch.cat([w.detach().reshape(-1) for w in weights])


@pytest.mark.parametrize("metric", ["l2", "mahalanobis"])
@pytest.mark.parametrize("sharded", [False, True])
def test_no_rank_waits_for_one_without_rows(
    sharded: bool, metric: str, tmp_path: Path, seed: int
) -> None:
    one, two = run_ranks(tmp_path, own_loop, seed, sharded, metric)
    assert isinstance(one, Tensor), one
    assert isinstance(two, Tensor), two
    torch.testing.assert_close(one, two, rtol=0, atol=0)
