"""The experiments of section 5.2: data, resuming, pages; on tiny made data, a few steps each."""

from __future__ import annotations

import gzip
import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason="the experiments need drocc-ext[bench]")

import matplotlib.image

from benchmarks.paper import (
    mnist_limited_negatives,
    mnist_shells,
    mnist_split,
    noisy_sine,
    noisy_sine_tuning,
    pages,
)
from benchmarks.paper.experiment import Options
from benchmarks.paper.mnist import MNIST, load_mnist
from benchmarks.paper.recall import judged
from benchmarks.paper.runner import run
from benchmarks.paper.store import ResultStore, read
from drocc_ext import demo
from drocc_ext.demo import noisy_sine as demo_sine
from drocc_ext.metrics import GroupScores

IDX_NAMES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}


def made_data(train: int = 60, test: int = 24) -> MNIST:
    """Digits 0 are rings, 1 are bars, 2 are noise, each a little different."""
    rng = np.random.default_rng(0)
    row, column = np.mgrid[:28, :28] - 13.5
    shapes = [np.abs(np.hypot(row, column) - 8) < 2, np.abs(column) < 2, row > 30]

    def part(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = (np.arange(count) % 3).astype(np.uint8)
        images = np.stack([shapes[label] * 200 for label in labels])
        return (images + rng.integers(0, 50, images.shape)).astype(np.uint8), labels

    return MNIST(*part(train), *part(test))


def write_npz(directory, data, **changes):
    np.savez(directory / "mnist.npz", **{**data._asdict(), **changes})


def idx_bytes(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(directory, data, zipped):
    raw = directory / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, array in data._asdict().items():
        content = idx_bytes(array)
        if name in zipped:
            (raw / f"{IDX_NAMES[name]}.gz").write_bytes(gzip.compress(content))
        else:
            (raw / IDX_NAMES[name]).write_bytes(content)
    return raw


@pytest.mark.parametrize("layout", ["npz", "idx", "idx.gz", "mixed"])
def test_every_layout_gives_the_same_arrays(tmp_path, layout):
    data = made_data()
    if layout == "npz":
        write_npz(tmp_path, data)
    else:
        zipped = {"idx": (), "idx.gz": tuple(IDX_NAMES), "mixed": ("x_train", "y_test")}[layout]
        write_idx(tmp_path, data, zipped)
    loaded = load_mnist(tmp_path)
    for name, array in data._asdict().items():
        np.testing.assert_array_equal(getattr(loaded, name), array)
        assert getattr(loaded, name).dtype == np.uint8


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must hold mnist\.npz or MNIST.raw, got neither"):
        load_mnist(tmp_path)
    raw = write_idx(tmp_path, made_data(), ())
    (raw / IDX_NAMES["y_test"]).unlink()
    with pytest.raises(FileNotFoundError, match=r"t10k-labels-idx1-ubyte or .*\.gz, got neither"):
        load_mnist(tmp_path)


def cut(content):
    return content[:-100]


@pytest.mark.parametrize(
    ("name", "zipped", "damage", "message"),
    [
        ("x_train", False, cut, "must hold 47040 bytes of data, as its header says, got 46940"),
        ("x_train", False, lambda content: content + b"0", "must hold 47040 bytes .* got 47041"),
        ("y_train", False, lambda content: b"", "header of an IDX file of bytes, got an empty"),
        ("y_train", False, lambda content: b"\1" + content, "header of an IDX .* got 01 00 00 08"),
        ("x_test", False, lambda content: content[:9], "header of an IDX file of bytes"),
        ("x_test", True, cut, "must be a whole gzip file"),
        ("x_test", True, lambda content: b"plain" + content, "must be a whole gzip file"),
        ("y_test", False, lambda content: idx_bytes(np.zeros(5, np.uint8)), r"shape \(24,\)"),
        ("y_test", False, lambda content: content[:-1] + b"\x0a", "digits 0 to 9, got 10"),
        ("x_test", False, lambda content: idx_bytes(np.zeros((24, 3, 3), np.uint8)), "28, 28"),
    ],
)
def test_damaged_idx_files_are_refused(tmp_path, name, zipped, damage, message):
    raw = write_idx(tmp_path, made_data(), (name,) if zipped else ())
    path = raw / (IDX_NAMES[name] + (".gz" if zipped else ""))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=f"^load_mnist: .*{message}"):
        load_mnist(tmp_path)


def test_damaged_npz_files_are_refused(tmp_path):
    path = tmp_path / "mnist.npz"
    data = made_data()
    write_npz(tmp_path, data)
    whole = path.read_bytes()
    for damaged in (b"", b"no zip", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"^load_mnist: .*mnist\.npz must be a whole npz file"):
            load_mnist(tmp_path)
    np.savez(path, x_train=data.x_train)
    with pytest.raises(ValueError, match="has no y_train, x_test, y_test"):
        load_mnist(tmp_path)
    write_npz(tmp_path, data, x_test=data.x_test / 255)
    with pytest.raises(ValueError, match="x_test must be of dtype uint8, got float64"):
        load_mnist(tmp_path)
    write_npz(tmp_path, data, y_train=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="must be a whole npz file"):
        load_mnist(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_masks_take_a_share_of_all_pixels(share, seed):
    generator = torch.Generator().manual_seed(seed)
    images = 1 + torch.rand(40, 1, 28, 28, generator=generator)
    images[0, 0, 0, 0] = -3.0
    found = mnist_split.masked(images, share, generator)
    changed = found != images
    # The least pixel itself may be among those drawn, and then stays.
    assert int(share * images.numel()) - int(changed.sum()) in (0, 1)
    assert (found[changed] == -3.0).all()
    by_image = changed.flatten(1).float().mean(1)
    assert (by_image - share).abs().max() < 0.12
    if 0 < share < 1:
        assert by_image.std() > 0  # over all images together, not so many in each


def test_split_keeps_parts_apart():
    data = made_data()
    parts = mnist_split.split(data, seed=0)
    assert len(parts.validation_normal) == len(parts.validation_far) == 4  # a fifth of 20
    for train, held_out in (
        (parts.train_normal, parts.validation_normal),
        (parts.train_far, parts.validation_far),
    ):
        rows = {image.numpy().tobytes() for image in torch.cat([train, held_out])}
        assert len(rows) == 20 == len(train) + len(held_out)
    black = torch.tensor((0 - 0.1307) / 0.3081)
    zeros = torch.from_numpy(data.x_test[data.y_test == 0]).float()[:, None] / 255
    torch.testing.assert_close(parts.test_normal, (zeros - 0.1307) / 0.3081)
    assert parts.test_normal.min() >= black - 1e-6
    for share in mnist_split.SHARES:
        close = parts.test_close[share]
        assert close.shape == parts.test_normal.shape
        assert ((close == parts.test_normal) | (close == parts.test_normal.min())).all()
    again = mnist_split.split(data, seed=0)
    other = mnist_split.split(data, seed=1)
    assert torch.equal(parts.test_close[0.5], again.test_close[0.5])
    assert not torch.equal(parts.train_normal, other.train_normal)


def test_split_needs_both_digits():
    data = made_data()
    without = data._replace(y_test=np.full_like(data.y_test, 1))
    with pytest.raises(ValueError, match=r"split: digit 0 must have .* got 20 and 0"):
        mnist_split.split(without, seed=0)


@pytest.mark.slow
def test_mnist_run_resumes_and_writes_its_page(tmp_path, monkeypatch):
    write_npz(tmp_path, made_data())
    options = Options(tmp_path, (0, 1), quick=True)
    experiments = (mnist_limited_negatives.EXPERIMENT, mnist_shells.EXPERIMENT)
    path = run(experiments[0], options, tmp_path, jobs=None)
    first = read(path)
    assert len(first["cells"]) == 2 * len(mnist_limited_negatives.METHODS)
    for cell in first["cells"].values():
        for share in ("0.5", "0.4", "0.2"):
            for at in cell["by_share"][share]["at_fpr"]:
                assert 0 <= at["recall"] <= 1
    (page,) = pages.write(tmp_path, experiments)
    text = page.read_text()
    for name in mnist_limited_negatives.METHODS:
        assert f"| {name} " in text
    assert "98.16" in text and "90.91" in text and "radius and gamma" not in text
    assert str(tmp_path) not in text and str(tmp_path) not in path.read_text()

    # A cell that is missing is computed again, alike, and only that one.
    content = json.loads(path.read_text())
    lost = content["cells"].pop("DROCC-OE/1")
    path.write_text(json.dumps(content))
    calls = []
    train = mnist_limited_negatives.train
    monkeypatch.setattr(
        mnist_limited_negatives, "train", lambda *a, **k: calls.append(k["seed"]) or train(*a, **k)
    )
    run(experiments[0], options, tmp_path, jobs=None)
    assert calls == [1]
    again = read(path)["cells"]["DROCC-OE/1"]
    assert again["by_share"] == lost["by_share"]

    run(experiments[1], options, tmp_path, jobs=None)
    text = pages.write(tmp_path, experiments)[0].read_text()
    assert "radius and gamma" in text
    assert all(len(line) <= 100 for line in text.splitlines() if not line.startswith("|"))


@pytest.mark.slow
def test_shells_are_judged_on_validation_images_alone(tmp_path, monkeypatch):
    write_npz(tmp_path, made_data())
    split = mnist_split.split

    def without_test(data, seed):
        nothing = torch.empty(0)
        parts = split(data, seed)
        return parts._replace(test_normal=nothing, test_far=nothing, test_close={})

    monkeypatch.setattr(mnist_split, "split", without_test)
    cells = mnist_shells.cells(Options(tmp_path, (100,), quick=True))
    assert len(cells) == 6
    found = cells["DROCC-OE/4/1/100"]()
    assert 0 <= found["by_share"][0.5]["at_fpr"][0]["recall"] <= 1


@pytest.mark.slow
def test_sine_run_writes_picture_and_page(tmp_path):
    options = Options(None, (0,), quick=True)
    path = run(noisy_sine.EXPERIMENT, options, tmp_path, jobs=None)
    pixels = matplotlib.image.imread(path.with_name("noisy-sine.png"))[..., :3]
    red, green, blue = pixels.reshape(-1, 3).T
    assert ((red > 0.9) & (green > 0.9) & (blue < 0.3)).sum() > 500  # the sine, yellow
    (page,) = pages.write(tmp_path, [noisy_sine.EXPERIMENT, noisy_sine_tuning.EXPERIMENT])
    text = page.read_text()
    for name in noisy_sine.METHODS:
        assert f"| {name} " in text
    assert "were chosen alike" not in text
    assert read(path)["seeds"] == [0]


@pytest.mark.slow
def test_sine_tuning_takes_the_best(tmp_path, monkeypatch):
    def cell(method, values, seed, steps):
        auc = 90.0 - abs(values["radius"] - 1.0) - values["noise_scale"] - abs(values["mu"] - 0.3)
        return {"auc": auc + 5 * (values["gamma"] == 1.5) + seed / 1000}

    monkeypatch.setattr(noisy_sine_tuning, "cell", cell)
    experiment = replace(noisy_sine_tuning.EXPERIMENT, seeds=(7,))
    content = read(run(experiment, Options(None, (0,), quick=False), tmp_path, jobs=None))
    chosen = noisy_sine_tuning.chosen(content)
    assert list(chosen) == [
        name + suffix for name in noisy_sine_tuning.TUNED for suffix in ("", ", mu chosen")
    ]
    for name, values in chosen.items():
        mu = 0.3 if name.endswith("mu chosen") else 1.0
        assert (values["radius"], values["noise_scale"], values["mu"]) == (1.0, 0.1, mu)
        assert values["gamma"] == 1.5 and values["step_size"] == 0.1
        assert values["auc"] == pytest.approx(94.9 - abs(mu - 0.3) + 0.007)
    assert "were chosen alike" in noisy_sine_tuning.section(content)


def test_the_methods_have_the_settings_that_the_committed_tuning_chose():
    content = read(Path(noisy_sine.__file__).parent / "results" / "noisy-sine-tuning.json")
    chosen = noisy_sine_tuning.chosen(content)
    assert chosen == content["chosen"], "what the run itself noted"
    for name, method in noisy_sine.METHODS.items():
        values = chosen.get(name)
        if values is None or name == "DROCC":  # sigma per row as DROCC-LF; the paper's radius
            continue
        keys = ("radius", "noise_scale", "gamma", "step_size")
        if method.search.num_steps == 0:
            keys = keys[:2]
        assert method.mu == values["mu"], name
        assert {key: getattr(method.search, key) for key in keys} == {
            key: values[key] for key in keys
        }, name


def test_a_threshold_that_accepts_nothing_is_json():
    few = GroupScores(normal=[0.0], far=[1.0], close=[1.0])
    found = judged(few, few, (0.0,))
    assert json.loads(json.dumps(found, allow_nan=False))["at_fpr"][0]["recall"] == 0.0


def test_cells_refuse_other_settings_and_other_files(tmp_path):
    path = tmp_path / "made" / "cells.json"
    cells = ResultStore(path, {"steps": 1, "seed": (0, 1)})
    assert cells.fill({"a": lambda: 1.5}, progress=False) == {"a": 1.5}
    assert [file.name for file in path.parent.iterdir()] == ["cells.json"]  # no temporary ones
    assert ResultStore(path, {"steps": 1, "seed": (0, 1)}).content["cells"] == {"a": 1.5}
    with pytest.raises(ValueError, match=r"same settings, got others in steps; delete it or"):
        ResultStore(path, {"steps": 2, "seed": (0, 1)})
    with pytest.raises(ValueError):  # NaN is no JSON
        cells.fill({"b": lambda: float("nan")}, progress=False)
    assert read(path)["cells"] == {"a": 1.5}
    path.write_text("{")
    with pytest.raises(ValueError, match="must be JSON"):
        ResultStore(path, {})
    path.write_text("[]")
    with pytest.raises(ValueError, match="must hold settings and cells"):
        read(path)


def test_two_runs_into_one_place_keep_the_cells_of_both(tmp_path):
    path = tmp_path / "cells.json"
    one, two = ResultStore(path, {}), ResultStore(path, {})
    one.fill({"a": lambda: 1.0}, progress=False)
    two.fill({"b": lambda: 2.0}, progress=False)
    assert one.fill({"c": lambda: 3.0}, progress=False) == {"c": 3.0}
    assert read(path)["cells"] == {"a": 1.0, "b": 2.0, "c": 3.0}


def test_noisy_points_are_what_they_say(seed):
    generator = torch.Generator().manual_seed(seed)
    points = demo_sine.noisy_points(4000, generator, displacement=2.0)
    offset = points[:, 1] - points[:, 0].sin()
    torch.testing.assert_close(offset[::2], torch.full((2000,), 2.0))
    torch.testing.assert_close(offset[1::2], torch.full((2000,), -2.0))
    noise = points[:, 2:]
    assert noise.shape == (4000, 8)
    assert noise.mean(0).abs().max() < 0.1 and (noise.std(0) - 1).abs().max() < 0.1


def test_methods_differ_where_they_should():
    points = demo_sine.noisy_points(64, torch.Generator().manual_seed(1))
    scores = {
        name: demo_sine.train(method, seed=0, steps=20).score(points)
        for name, method in demo_sine.METHODS.items()
    }
    again = demo_sine.train(demo_sine.METHODS["DROCC-LF"], seed=0, steps=20).score(points)
    assert torch.equal(scores["DROCC-LF"], again)
    names = list(scores)
    for at, name in enumerate(names):
        for other in names[:at]:
            assert not torch.equal(scores[name], scores[other]), (name, other)


def test_the_demo_does_not_import_benchmarks():
    import ast

    for path in Path(demo.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [name.name for name in node.names] if isinstance(node, ast.Import) else []
            assert not any(module.split(".")[0] == "benchmarks" for module in modules), path
