"""Saved models: exact round trips, atomic replacement, one sentence for every damaged file."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from drocc_ext import DROCC
from drocc_ext._files import atomic_write
from drocc_ext.models.networks import MLP, CIFARLeNet, LSTMClassifier, MLPEnsemble, MNISTLeNet
from drocc_ext.models.persistence import checksum, load_model, save_model

NETWORKS = {
    "MLP": (lambda: MLP(5, hidden=7), (3, 5)),
    "CIFARLeNet": (CIFARLeNet, (2, 3, 32, 32)),
    "MNISTLeNet": (MNISTLeNet, (2, 1, 28, 28)),
    "LSTMClassifier": (lambda: LSTMClassifier(4, hidden=6), (2, 9, 4)),
}


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def weights_of(directory: Path) -> Path:
    name: str = json.loads((directory / "config.json").read_text())["weights"]
    return directory / name


def edit(directory: Path, *, sealed: bool = True, **changes: Any) -> None:
    """Edit the description, with a checksum that fits if sealed."""
    path = directory / "config.json"
    description = {**json.loads(path.read_text()), **changes}
    if sealed:
        description["checksum"] = checksum(description)
    path.write_text(json.dumps(description))


def test_an_edited_description_is_noticed(tmp_path: Path) -> None:
    save_model(tmp_path, MLP(4, 3), {"radius": 2.5})
    load_model(tmp_path)
    edit(tmp_path, sealed=False, config={"radius": 2.6})
    with pytest.raises(ValueError, match="is damaged or was edited, its checksum"):
        load_model(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", NETWORKS)
def test_round_trip(name: str, dtype: torch.dtype, tmp_path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    build, shape = NETWORKS[name]
    model, x = build().to(dtype), torch.randn(shape, dtype=dtype)
    model(x)  # moves BatchNorm statistics
    save_model(tmp_path / "new" / "model", model, {"radius": 2.5, "columns": [1, 2]})
    loaded, config = load_model(tmp_path / "new" / "model")
    assert config == {"radius": 2.5, "columns": [1, 2]}
    assert type(loaded) is type(model)
    assert not loaded.training
    for (key, found), (other, expected) in zip(
        loaded.state_dict().items(), model.state_dict().items(), strict=True
    ):
        assert key == other
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    assert torch.equal(loaded(x), model.eval()(x))
    with torch.no_grad():  # the loaded weights are ordinary ones
        for parameter in loaded.parameters():
            assert parameter.requires_grad
            parameter.add_(1)


class Tied(nn.Module):
    """A module of one's own, with tied weights, a view and a scalar buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 3)
        self.b = nn.Linear(3, 3)
        self.b.weight = self.a.weight
        base = torch.randn(4, 4)
        self.register_buffer("scale", torch.tensor(2.0))
        self.register_buffer("part", base[:, 1])

    def forward(self, x: Tensor) -> Tensor:
        scale: Tensor = self.scale
        return self.b(self.a(x)).sum(1) * scale


def test_own_module(tmp_path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    model, x = Tied(), torch.randn(4, 3)
    save_model(tmp_path, model)
    with pytest.raises(ValueError, match=r"names no network of drocc_ext\.networks, pass model"):
        load_model(tmp_path)
    other = Tied()
    loaded, config = load_model(tmp_path, other)
    assert loaded is other
    assert config == {}
    assert other.b.weight is other.a.weight
    assert torch.equal(loaded(x), model(x))
    double, _ = load_model(tmp_path, Tied().double())
    assert next(double.parameters()).dtype == torch.float64


def test_subclass_of_a_network_is_not_taken_for_it(tmp_path: Path) -> None:
    class Local(MLP):
        pass

    Local.__name__ = "MLP"
    save_model(tmp_path, Local(5))
    with pytest.raises(ValueError, match="pass model"):
        load_model(tmp_path)


def test_wrappers_are_left_out(tmp_path: Path) -> None:
    model = MLP(5)
    compiled = torch.compile(model, backend="eager")
    save_model(tmp_path, compiled)
    loaded, _ = load_model(tmp_path)
    assert isinstance(loaded, MLP)
    assert set(loaded.state_dict()) == set(model.state_dict())


def test_no_pickle(tmp_path: Path) -> None:
    save_model(tmp_path, MLP(5))
    assert [path.rpartition(".")[2] for path in names(tmp_path)] == ["json", "safetensors"]
    safetensors.torch.load_file(weights_of(tmp_path))
    assert json.loads((tmp_path / "config.json").read_text())["network"] == {
        "name": "MLP",
        "config": {"in_features": 5, "hidden": 128},
    }


def test_saving_again_replaces(tmp_path: Path) -> None:
    (tmp_path / "weights-mine.safetensors").write_text("of somebody else")
    (tmp_path / f".weights-{'0' * 25}.safetensors.{'0' * 16}.tmp").write_text("of a killed save")
    former: list[str] = []
    for run in range(4):
        save_model(tmp_path, MLP(5 + run), {"run": run})
        loaded, config = load_model(tmp_path)
        assert loaded.config["in_features"] == 5 + run
        assert config == {"run": run}
        # The one before stays for readers that have just read its name.
        former = [*former[-1:], weights_of(tmp_path).name]
        assert names(tmp_path) == sorted(["config.json", "weights-mine.safetensors", *former])


def test_weights_of_others_stay(tmp_path: Path) -> None:
    mine = ("weights-1", "weights-2024-01-01", "weights-00001", "weights-ab-cd")
    for name in mine:
        (tmp_path / f"{name}.safetensors").write_text("mine")
    for _ in range(3):
        save_model(tmp_path, MLP(3))
    assert all((tmp_path / f"{name}.safetensors").read_text() == "mine" for name in mine)
    assert len(list(tmp_path.iterdir())) == len(mine) + 3  # two generations and the description


@pytest.mark.parametrize("content", ['{"model_type": "bert"}', "[1]", "no json"])
def test_a_description_of_something_else_stays(content: str, tmp_path: Path) -> None:
    foreign = ("config.json", "weights-0123456789abcdef-01234567.safetensors")
    for name in foreign:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=r"^save_model: .*config\.json must not be there or be of"):
        save_model(tmp_path, MLP(3))
    assert [(tmp_path / name).read_text() for name in foreign] == [content] * 2
    (tmp_path / "config.json").unlink()
    save_model(tmp_path, MLP(3))
    assert (tmp_path / foreign[1]).read_text() == content
    (tmp_path / "config.json").write_text("")  # what a full disk or a crash may leave
    save_model(tmp_path, MLP(3))
    load_model(tmp_path)


@pytest.mark.parametrize("change", [{"members": 10**9}, {"hidden": [4] * 900}])
def test_sizes_that_the_file_cannot_hold(change: dict[str, Any], tmp_path: Path) -> None:
    save_model(tmp_path, MLPEnsemble(3, 4, members=2))
    path = tmp_path / "config.json"
    description = json.loads(path.read_text())
    description["network"]["config"].update(change)
    description["checksum"] = checksum(description)
    path.write_text(json.dumps(description))
    with pytest.raises(ValueError, match=r"describes no valid network: .* must .* at most 8"):
        load_model(tmp_path)


@pytest.mark.parametrize("failing", ["weights", "config.json"])
def test_interrupted_save_keeps_the_former_model(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path, MLP(5), {"run": 1})
    replace = os.replace

    def interrupt(source: Path, target: Path) -> None:
        if Path(target).name.startswith(failing):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_model(tmp_path, MLP(9), {"run": 2})
    loaded, config = load_model(tmp_path)
    assert loaded.config["in_features"] == 5
    assert config == {"run": 1}
    assert not list(tmp_path.glob(".*"))


def test_config_must_be_json(tmp_path: Path) -> None:
    for bad in ({"x": torch.zeros(2)}, {"x": {1, 2}}):
        with pytest.raises(TypeError, match=r"^save_model: config must hold JSON values only"):
            save_model(tmp_path / "new", MLP(5), bad)
    with pytest.raises(TypeError, match=r"^save_model: config must be a dict, got list"):
        save_model(tmp_path / "new", MLP(5), [1])  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()


def test_state_must_be_tensors(tmp_path: Path) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"n": 1}

        def set_extra_state(self, state: Any) -> None:
            pass

    with pytest.raises(TypeError, match="dense tensors only, got dict for _extra_state"):
        save_model(tmp_path / "new", Extra(2, 2))
    with pytest.raises(ValueError, match="weights must be there, got meta for weight"):
        save_model(tmp_path / "new", nn.Linear(2, 2, device="meta"))
    with pytest.raises(ValueError, match="weights must be there, got lazy for weight"):
        save_model(tmp_path / "new", nn.LazyLinear(2))
    with pytest.raises(TypeError, match=r"^save_model: directory must be a path, got Linear; the"):
        save_model(nn.Linear(2, 2), tmp_path / "new")  # type: ignore[arg-type]
    for other in (nn.Linear(2, 2).state_dict(), DROCC()):
        with pytest.raises(
            TypeError, match=r"^save_model: model must be a module, got (Ordered|DR)"
        ):
            save_model(tmp_path / "new", other)  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^load_model: .*config\.json does not exist$"):
        load_model(tmp_path / "none")
    save_model(tmp_path, MLP(5))
    weights_of(tmp_path).unlink()
    with pytest.raises(FileNotFoundError, match=r"^load_model: .*safetensors does not exist$"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, r"does not describe a model of drocc_ext\.model"),
        ({"version": 3}, "must be of format version 2 or older, got 3"),
        ({"version": True}, "must be of format version 2 or older, got True"),
        ({"version": [2]}, r"must be of format version 2 or older, got \[2\]"),
        ({"network": {"name": "MLP", "config": {"in_features": "5"}}}, "describes no valid net"),
        ({"network": {"name": "MLP", "config": {"in_features": 2.5}}}, "describes no valid net"),
        ({"network": {"name": "MLP", "config": {"hidden": [1] * 10**5}}}, "describes no valid net"),
        ({"network": {"name": "MLP", "config": {"hidden": 10**18}}}, "describes no valid network"),
        ({"network": {"name": "MLP", "config": {"in_features": 10**9}}}, "do not fit MLP"),
        ({"weights": "weights-\0.safetensors"}, "lacks entries or has some of the wrong type"),
        ({"network": {"name": "Nope", "config": {}}}, "unknown network 'Nope', known are CIFAR"),
        ({"network": {"name": "MLP", "config": {"depth": 3}}}, "describes no valid network"),
        ({"network": {"name": "MLP", "config": {"in_features": 0}}}, "describes no valid network"),
        ({"network": {"name": "MLP"}}, "lacks entries or has some of the wrong type"),
        ({"network": {"name": "MNISTLeNet", "config": {}}}, "do not fit MNISTLeNet: .* is missing"),
        ({"weights": "../other.safetensors"}, "lacks entries or has some of the wrong type"),
        ({"weights": None}, "lacks entries or has some of the wrong type"),
        ({"config": [1]}, "lacks entries or has some of the wrong type"),
        ({"sha256": "0" * 64}, "is damaged, its checksum is not the recorded one"),
    ],
    ids=str,
)
def test_bad_description(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_model(tmp_path, MLP(5))
    edit(tmp_path, **changes)
    with pytest.raises(ValueError, match=f"^load_model: .*{message}") as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1, 2]", b"\xff\xfe\x00", b'"text"', b"[" * 10**6, b"9" * 10**5]
)
def test_description_is_no_json_object(content: bytes, tmp_path: Path) -> None:
    save_model(tmp_path, MLP(5))
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"^load_model: .*config\.json (is not|does not)"):
        load_model(tmp_path)


def test_damaged_weights(tmp_path: Path) -> None:
    save_model(tmp_path, MLP(5))
    path = weights_of(tmp_path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    for damaged in (bytes(content), bytes(content[:-9]), b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged, its checksum"):
            load_model(tmp_path)


def test_weights_of_another_kind(tmp_path: Path) -> None:
    save_model(tmp_path, MLP(5))
    weights_of(tmp_path).write_bytes(b"0123456789")
    digest = hashlib.sha256(b"0123456789").hexdigest()
    edit(tmp_path, sha256=digest)
    with pytest.raises(ValueError, match="is not a safetensors file"):
        load_model(tmp_path)


def test_model_that_does_not_fit_stays_as_it_was(tmp_path: Path) -> None:
    save_model(tmp_path, MLP(5))
    other = MLP(5, hidden=3)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ValueError, match=r"do not fit MLP: .* has shape \(128, 5\), not \(3, 5\)"):
        load_model(tmp_path, other)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    assert other.training


def test_atomic_write(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic_write(path, lambda file: file.write(b"one"))
    atomic_write(str(path), lambda file: file.write(b"two"))
    assert path.read_bytes() == b"two"
    reference = tmp_path / "reference"
    reference.write_bytes(b"")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(reference.stat().st_mode)

    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        atomic_write(path, fail)
    assert path.read_bytes() == b"two"
    assert names(tmp_path) == ["file", "reference"]
    with pytest.raises(OSError):
        atomic_write(tmp_path / "none" / "file", lambda file: file.write(b""))


def test_sizes_that_are_numpys_are_saved(tmp_path: Path) -> None:
    save_model(tmp_path, MLP(np.int64(3), (np.int64(4), np.int8(5))))  # type: ignore[arg-type]
    model, _ = load_model(tmp_path)
    assert isinstance(model, MLP) and model.config == {"in_features": 3, "hidden": [4, 5]}


@pytest.mark.skipif(os.name != "posix", reason="modes are of POSIX")
def test_weights_have_the_mode_of_the_model_that_they_replace(tmp_path: Path) -> None:
    former = os.umask(0o022)
    try:
        for first, second, mode in ((0o022, 0o077, 0o644), (0o077, 0o022, 0o600)):
            directory = tmp_path / f"{first}"
            os.umask(first)
            save_model(directory, MLP(2, 3))
            os.umask(second)
            save_model(directory, MLP(2, 4))
            assert {file.stat().st_mode & 0o777 for file in directory.iterdir()} == {mode}
            (directory / "config.json").chmod(0o640)
            save_model(directory, MLP(2, 5))
            named = json.loads((directory / "config.json").read_text())["weights"]
            for name in ("config.json", named):
                assert (directory / name).stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(former)
