"""Checkpoints that are malformed or of another fit change nothing; wrappers do not matter."""

from __future__ import annotations

import copy
import math
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from drocc_ext import DROCCLoss, SearchConfig, Trainer
from drocc_ext.models.networks import MLP
from drocc_ext.training.checkpoint import checkpoint_name

SEARCH = SearchConfig(radius=1.0, step_size=0.2, num_steps=1)


def network(seed: int) -> MLP:
    torch.manual_seed(seed)
    return MLP(3, hidden=4)


def rows(seed: int) -> Tensor:
    return torch.randn(24, 3, generator=torch.Generator().manual_seed(seed))


def trainer(model: nn.Module, optimizer: Any = None, scheduler: Any = None) -> Trainer:
    make = optimizer or (lambda p: torch.optim.Adam(p, lr=0.01))
    made = make(model.parameters())
    schedule = None if scheduler is None else scheduler(made)
    return Trainer(model, DROCCLoss(SEARCH), made, scheduler=schedule, progress=False)


def exponential(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)


def fit(which: Trainer, directory: Path, seed: int, epochs: int, **arguments: Any) -> None:
    data = rows(seed)
    which.fit(
        data,
        validation=rows(seed + 1),
        epochs=epochs,
        batch_size=8,
        checkpoint_dir=directory,
        seed=7,
        **arguments,
    )


def snapshot(which: Trainer) -> Any:
    return copy.deepcopy(
        {
            "model": dict(which.model.state_dict()),
            "optimizer": which.optimizer.state_dict(),
            "scheduler": None if which.scheduler is None else which.scheduler.state_dict(),
            "loss": dict(which.loss.state_dict()),
        }
    )


def assert_equal(one: Any, two: Any) -> None:
    if isinstance(one, Tensor):
        assert torch.equal(one, two)
    elif isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_equal(one[key], two[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(two)
        for first, second in zip(one, two, strict=True):
            assert_equal(first, second)
    else:
        assert one == two


def setting(*path: Any) -> Callable[[dict[str, Any], Any], None]:
    def change(content: dict[str, Any], value: Any) -> None:
        place = content
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


WRONG: list[tuple[tuple[Any, ...], Any]] = [
    *((("model",), value) for value in (None, 3, [], {1: torch.zeros(3)}, {})),
    (("model", "hidden.weight"), torch.zeros(4, 4)),
    (("model", "hidden.weight"), torch.zeros(4, 3, dtype=torch.int64)),
    (("model", "hidden.weight"), "weights"),
    (("optimizer",), {}),
    (("optimizer", "state"), [1]),
    (("optimizer", "state", 0), 5),
    (("optimizer", "state", 99), {}),
    (("optimizer", "state", 0, "exp_avg"), torch.zeros(7)),
    (("optimizer", "param_groups"), []),
    (("optimizer", "param_groups"), [{"params": 3}]),
    (("optimizer", "param_groups", 0, "params"), [0]),
    (("optimizer", "param_groups", 0), {"params": [0, 1, 2, 3], "lr": 0.1}),
    (("optimizer", "param_groups", 0, "lr"), "fast"),
    (("optimizer", "param_groups", 0, "betas"), (0.9,)),
    (("optimizer", "param_groups", 0, "amsgrad"), 0.5),
    (("optimizer", "param_groups", 0, "amsgrad"), True),
    (("optimizer", "param_groups", 0, "capturable"), True),
    (("optimizer", "param_groups", 0, "betas"), None),
    (("optimizer", "param_groups", 0, "betas"), (0.9, math.nan)),
    (("optimizer", "param_groups", 0, "params"), [0, True, 2, 3]),
    (("optimizer", "param_groups", 0, "lr"), math.nan),
    (("optimizer", "param_groups", 0, "lr"), -0.1),
    (("optimizer", "param_groups", 0, "eps"), -1.0),
    (("optimizer", "param_groups", 0, "weight_decay"), math.inf),
    (("scheduler",), None),
    (("scheduler",), 3),
    (("scheduler", "last_epoch"), "first"),
    (("scheduler", "gamma"), [0.9]),
    (("scheduler", "gamma"), None),
    (("scheduler", "base_lrs"), [None]),
    (("scheduler", "surprise"), 1),
    (("scaler",), None),
    (("scaler",), {"scale": 1.0}),
    (("generators",), []),
    (("generators",), [3]),
    (("generators", 0), torch.zeros(5, dtype=torch.uint8)),
    (("rng",), {}),
    (("rng", "torch"), torch.zeros(5, dtype=torch.uint8)),
    (("rng", "python"), (3, (1, 2), None)),
    (("rng", "numpy"), {"bit_generator": "MT19937"}),
    (("rng", "cuda"), 3),
    (("loss",), 3),
    (("loss",), {"metric": "l2"}),
    (("loss", "metric"), "mahalanobis"),
    (("loss", "state"), [1]),
    (("loss", "state"), {"unknown": torch.zeros(2)}),
    (("fit",), []),
    (("fit",), {}),
    (("fit", "epoch"), -1),
    (("fit", "epoch"), 1.5),
    (("fit", "step"), "1"),
    (("fit", "best_value"), torch.zeros(2)),
    (("fit", "best_epoch"), "last"),
    (("fit", "best_weights"), {"hidden.weight": torch.zeros(1)}),
    (("fit", "records"), [1]),
    (("fit", "records"), [{"loss": "low"}]),
    (("fit", "surprise"), 1),
    (("fit", "monitor"), 3),
]


def test_a_malformed_checkpoint_changes_nothing(tmp_path: Path, seed: int) -> None:
    fit(trainer(network(seed), scheduler=exponential), tmp_path, seed, 1)
    path = tmp_path / "checkpoint.pt"
    good = torch.load(path, weights_only=True)
    names = ["model", "optimizer", "scheduler", "scaler", "generators", "rng", "fit"]
    changes: list[Callable[[dict[str, Any]], Any]] = [
        lambda content, name=name: content.pop(name) for name in names
    ]
    changes += [
        lambda content, path=path, value=value: setting(*path)(content, value)
        for path, value in WRONG
    ]
    resumed = trainer(network(seed + 1), scheduler=exponential)
    before = snapshot(resumed)
    for change in changes:
        content = copy.deepcopy(good)
        change(content)
        torch.save(content, path)
        states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
        with pytest.raises(ValueError) as caught:
            fit(resumed, tmp_path, seed, 2, resume=True)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert_equal(snapshot(resumed), before)
        assert torch.equal(torch.get_rng_state(), states[0])
        assert (np.random.get_state()[1] == states[1]).all()
        assert random.getstate() == states[2]
    torch.save(good, path)
    fit(resumed, tmp_path, seed, 2, resume=True)


def test_a_part_that_fails_while_it_is_loaded_changes_nothing(tmp_path: Path, seed: int) -> None:
    class Refusing(nn.Module):
        """Takes its weights, then fails."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 1)
            self.refuses = False

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.inner(x)
            return logits

        def load_state_dict(self, state: Any, *args: Any, **options: Any) -> Any:
            done = super().load_state_dict(state, *args, **options)
            if self.refuses:
                self.refuses = False
                raise RuntimeError("on purpose\nwith more lines")
            return done

    fit(trainer(Refusing()), tmp_path, seed, 1)
    model = Refusing()
    model.refuses = True
    resumed = trainer(model)
    before = snapshot(resumed)
    with pytest.raises(ValueError, match=r"the checkpoint does not fit: on purpose$"):
        fit(resumed, tmp_path, seed, 2, resume=True)
    assert_equal(snapshot(resumed), before)


@pytest.mark.parametrize("named", [True, False])
def test_another_optimizer_or_scheduler_is_refused_by_name(
    named: bool, tmp_path: Path, seed: int
) -> None:
    def sgd(parameters: Any) -> Any:
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)

    def step(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.StepLR(optimizer, 2)

    fit(trainer(network(seed), sgd, exponential), tmp_path, seed, 1)
    path = tmp_path / "checkpoint.pt"
    if not named:  # as former versions wrote them
        content = torch.load(path, weights_only=True)
        del content["names"]
        torch.save(content, path)
    for other, message in (
        (trainer(network(seed), None, exponential), "optimizer"),
        (trainer(network(seed), sgd, step), "scheduler"),
    ):
        before = snapshot(other)
        wanted = (
            {
                "optimizer": "the optimizer was 'SGD' and is 'Adam'",
                "scheduler": "the scheduler was 'ExponentialLR' and is 'StepLR'",
            }
            if named
            else {"optimizer": "which Adam has not", "scheduler": "which StepLR"}
        )
        with pytest.raises(ValueError, match=wanted[message]):
            fit(other, tmp_path, seed, 2, resume=True)
        assert_equal(snapshot(other), before)
    fit(trainer(network(seed), sgd, exponential), tmp_path, seed, 2, resume=True)


def cosine(epoch: int) -> Any:
    return 1.0 if epoch == 0 else 0.5 * (1 + np.cos(np.pi * epoch / 10))


@pytest.mark.parametrize(
    ("rate", "schedule"),
    [
        (np.float64(0.01), lambda o: torch.optim.lr_scheduler.ExponentialLR(o, np.float64(0.5))),
        (0.01, lambda o: torch.optim.lr_scheduler.LambdaLR(o, cosine)),
        (0.01, lambda o: torch.optim.lr_scheduler.MultiStepLR(o, np.array([1, 3]))),
        (np.float64(0.01), lambda o: torch.optim.lr_scheduler.StepLR(o, np.int64(2))),
    ],
)
def test_numbers_of_numpy_that_compute_as_pythons_do(
    rate: Any, schedule: Any, tmp_path: Path, seed: int
) -> None:
    def run() -> Any:
        return trainer(network(seed), lambda p: torch.optim.Adam(p, lr=rate), schedule)

    straight, first, resumed = run(), run(), run()
    fit(straight, tmp_path / "a", seed, 4)
    fit(first, tmp_path / "b", seed, 2)
    fit(resumed, tmp_path / "b", seed, 4, resume=True)
    assert_equal(snapshot(resumed), snapshot(straight))


@pytest.mark.parametrize("value", [np.float16(0.01), np.float32(0.01)])
def test_a_numpy_number_is_named_before_training(value: Any, tmp_path: Path, seed: int) -> None:
    run = trainer(network(seed), lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=value))
    message = r"cannot hold optimizer\['param_groups'\]\[0\]\['weight_decay'\], a numpy.float"
    with pytest.raises(ValueError, match=message):
        fit(run, tmp_path, seed, 1)
    assert not (tmp_path / "checkpoint.pt").exists()


def wrapped(model: nn.Module, how: str) -> nn.Module:
    if how == "whole":
        return torch.compile(model, backend="eager")  # type: ignore[return-value]
    if how == "part":
        model[0] = torch.compile(model[0], backend="eager")  # type: ignore[index,operator]
    if how == "parallel":
        return nn.DataParallel(model)
    return model


def layers(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("bare", "whole"),
        ("bare", "part"),
        ("bare", "parallel"),
        ("whole", "bare"),
        ("part", "bare"),
        ("parallel", "bare"),
        ("part", "parallel"),
    ],
)
def test_wrappers_do_not_matter(first: str, then: str, tmp_path: Path, seed: int) -> None:
    straight = layers(seed)
    fit(trainer(straight), tmp_path / "straight", seed, 2)
    fit(trainer(wrapped(layers(seed), first)), tmp_path / "run", seed, 1)
    content = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert content["model"].keys() == layers(seed).state_dict().keys()
    assert content["fit"]["best_weights"].keys() == content["model"].keys()
    inner = layers(seed + 1)
    names = list(inner.state_dict())
    fit(trainer(wrapped(inner, then)), tmp_path / "run", seed, 2, resume=True)
    for name, one, two in zip(
        names, straight.state_dict().values(), inner.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(one, two, msg=name)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "_orig_mod.module."])
def test_prefixes_of_former_versions_are_understood(prefix: str, tmp_path: Path, seed: int) -> None:
    model = network(seed)
    fit(trainer(model), tmp_path, seed, 1)
    path = tmp_path / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    for part in (content, content["fit"]):
        name = "model" if part is content else "best_weights"
        part[name] = {prefix + key: value for key, value in part[name].items()}
    torch.save(content, path)
    resumed = network(seed + 1)
    fit(trainer(resumed), tmp_path, seed, 1, resume=True)
    assert_equal(dict(resumed.state_dict()), dict(model.state_dict()))


def test_ranks_do_not_overwrite_each_other(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert checkpoint_name() == "checkpoint.pt"
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    models = []
    for rank in range(2):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        models.append(network(seed + rank))
        fit(trainer(models[-1]), tmp_path, seed, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint.pt",
        "checkpoint.rank1.pt",
    ]
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    resumed = network(seed + 5)
    fit(trainer(resumed), tmp_path, seed, 1, resume=True)
    assert_equal(dict(resumed.state_dict()), dict(models[0].state_dict()))


def test_what_a_killed_fit_left_is_cleared_at_the_next_start(tmp_path: Path, seed: int) -> None:
    fit(trainer(network(seed)), tmp_path, seed, 1)
    (tmp_path / f".checkpoint.pt.{'a' * 16}.tmp").write_bytes(b"half")
    fit(trainer(network(seed)), tmp_path, seed, 1, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
    with pytest.raises(ValueError, match="checkpoint_dir must be named, got ''"):
        fit(trainer(network(seed)), "", seed, 1)  # type: ignore[arg-type]
    for place in (tmp_path / "checkpoint.pt", tmp_path / "checkpoint.pt" / "deep" / "er"):
        with pytest.raises(
            ValueError, match=r"must be a directory, got .*checkpoint\.pt is a file"
        ):
            fit(trainer(network(seed)), place, seed, 1)


def test_optimizers_that_need_a_closure_are_refused(seed: int) -> None:
    with pytest.raises(ValueError, match=r"^Trainer: optimizer must step without a closure, got L"):
        trainer(network(seed), torch.optim.LBFGS)
    with pytest.raises(TypeError, match=r"^Trainer: optimizer must be an Optimizer, got str"):
        trainer(network(seed), lambda _: "adam")
    for name in (
        "SGD",
        "Adam",
        "AdamW",
        "RMSprop",
        "Adagrad",
        "Adadelta",
        "NAdam",
        "Rprop",
        "ASGD",
    ):
        run = trainer(network(seed), lambda p, name=name: getattr(torch.optim, name)(p, lr=0.01))
        run.fit(rows(seed), epochs=1)


@pytest.mark.parametrize("name", ["uint8", "uint16", "uint32", "uint64", "int8", "bool", "float16"])
def test_labels_of_every_number_type(name: str, seed: int) -> None:
    y = np.arange(24) % 2
    run = trainer(network(seed))
    run.fit((rows(seed), y.astype(name)), epochs=1, seed=1)
    other = trainer(network(seed))
    other.fit((rows(seed), torch.tensor(y)), epochs=1, seed=1)
    assert_equal(dict(run.model.state_dict()), dict(other.model.state_dict()))
    assert run.evaluate((rows(seed), y.astype(name))) == run.evaluate((rows(seed), torch.tensor(y)))


def test_labels_that_are_none(seed: int) -> None:
    pandas = pytest.importorskip("pandas", reason="a DataFrame is refused, a Series taken")
    x = rows(seed)
    run = trainer(network(seed))
    run.fit((x, pandas.Series(np.arange(24) % 2, index=range(100, 124))), epochs=1)
    frame = pandas.DataFrame(x.numpy())
    for data, message in (
        ((x, np.array(["normal"] * 24)), "labels must be numbers, got ndarray of <U6"),
        ((x, ["normal"] * 24), "labels must be numbers, got list of other things"),
        ((x, {"y": 1}), "labels must be numbers, got dict"),
        ((x, "normal"), "labels must be numbers, got str"),
        ((x, np.array([None] * 24)), "labels must be numbers, got ndarray of object"),
        ((x, np.ones(24, dtype=complex)), "labels must be real numbers, got torch.complex128"),
        ((frame, None), "data must be a tensor, .* got DataFrame; pass its to_numpy"),
        (({"x": 1}, None), "x must be numbers, got dict"),
        ([(x, ["normal"] * 24)], "labels must be numbers, got list of other things"),
        ([{"x": x}], "x must be numbers, got dict"),
    ):
        with pytest.raises(TypeError, match=message) as caught:
            run.fit(data, epochs=1)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("checksums", [True, False])
def test_a_changed_byte_is_noticed(checksums: bool, tmp_path: Path, seed: int) -> None:
    torch.serialization.set_crc32_options(checksums)
    try:
        fit(trainer(network(seed)), tmp_path, seed, 2)
        fit(trainer(network(seed)), tmp_path, seed, 3, resume=True)
    finally:
        torch.serialization.set_crc32_options(True)
    path = tmp_path / checkpoint_name()
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
        values = archive.read(largest)
    middle = content.index(values) + len(values) // 2
    path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    with pytest.raises(ValueError, match="is damaged, its checksum is not the recorded one"):
        fit(trainer(network(seed)), tmp_path, seed, 3, resume=True)
