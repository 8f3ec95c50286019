"""Image experiments of the paper: data, cells, sections, pictures; on tiny made images."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason="the experiments need drocc-ext[bench]")
pytest.importorskip("PIL", reason="images are read by Pillow")

import matplotlib.image
from PIL import Image

from benchmarks.paper import (
    augmented,
    cifar,
    cifar_choice,
    cifar_tables,
    imagenet,
    pages,
    sweeps,
)
from benchmarks.paper.experiment import Options
from benchmarks.paper.registry import find
from benchmarks.paper.runner import run
from benchmarks.paper.store import ResultStore, read

EXPERIMENTS = (
    cifar_tables.EXPERIMENT,
    cifar_choice.EXPERIMENT,
    augmented.EXPERIMENT,
    imagenet.EXPERIMENT,
    sweeps.EXPERIMENT,
)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png")
    return file.getvalue()


def class_pixels(name, count, first):
    rng = np.random.default_rng(first + 1000 * cifar.CLASSES.index(name))
    return rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def write_archive(path, folders):
    with zipfile.ZipFile(path, "w") as archive:
        for folder, pixels in folders.items():
            for number, image in enumerate(pixels):
                archive.writestr(f"{folder}{number:04}.jpg", png(image))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A data directory: 24 training and 4 test images a class, losslessly, and a table."""
    directory = tmp_path_factory.mktemp("data")
    (directory / "cifar10").mkdir()
    for name in cifar.CLASSES:
        pixels = class_pixels(name, 24, 0)
        write_archive(directory / "cifar10" / f"train_{name}.zip", {"": pixels})
    tests = {f"{name}/": class_pixels(name, 4, 500) for name in cifar.CLASSES}
    write_archive(directory / "cifar10" / "test.zip", tests)
    rng = np.random.default_rng(3)
    x = np.concatenate([rng.normal(size=(120, 4)), rng.normal(size=(20, 4)) + 6])
    np.savez(directory / "thyroid.npz", X=x.astype(np.float32), y=np.repeat([0, 1], [120, 20]))
    return directory


@pytest.fixture
def options(made):
    return Options(made, (0,), True)


@pytest.fixture
def small(monkeypatch):
    """Let the cells of a quick run read what the made archives hold."""
    monkeypatch.setattr(cifar_tables, "QUICK_COUNTS", (20, 4))


def test_cifar_is_split_and_normalized_as_documented(made):
    data = cifar.load(made, "cat", train=20, test=3)
    assert data.train.shape == (20, 3, 32, 32)
    assert data.test.shape == (30, 3, 32, 32)
    assert data.labels.sum() == 3
    assert data.labels[9:12].all()  # the fourth class, in the order of CLASSES
    mean, deviation = np.array([0.4914, 0.4822, 0.4465]), np.array([0.247, 0.243, 0.261])
    for part, pixels in (
        (data.train, class_pixels("cat", 24, 0)[:20]),
        (data.test[9:12], class_pixels("cat", 4, 500)[:3]),
        (data.test[:3], class_pixels("airplane", 4, 500)[:3]),
    ):
        expected = ((pixels / 255.0 - mean) / deviation).transpose(0, 3, 1, 2)
        np.testing.assert_allclose(part.numpy(), expected, atol=1e-5)


def test_bad_cifar_is_refused_in_one_sentence(made, tmp_path):
    with pytest.raises(ValueError, match=r"normal must be one of airplane, .*, got 'cow'"):
        cifar.load(made, "cow")
    with pytest.raises(ValueError, match=r"train_dog\.zip must hold 25 images \*, got 24"):
        cifar.load(made, "dog", train=25, test=4)
    with pytest.raises(ValueError, match=r"test\.zip must hold 5 images airplane/\*, got 4"):
        cifar.load(made, "dog", train=2, test=5)
    for experiment in (cifar_tables.EXPERIMENT, augmented.EXPERIMENT, sweeps.EXPERIMENT):
        with pytest.raises(ValueError, match="must be the directory of CIFAR-10, got none"):
            experiment.cells(Options(tmp_path, (0,), True))


def test_settings_of_the_forms():
    ours = cifar_tables.setting("DROCC", "ship", "cpu")
    rand = cifar_tables.setting("DROCC-Rand", "ship", "cpu")
    assert rand.num_steps == 0
    assert ours.num_steps > 0
    assert ours == cifar_tables.setting("DROCC", "cat", "cpu")  # one for all classes
    reduced = cifar_tables.setting("DROCC, Table 11", "dog", "cpu")
    full = cifar_tables.setting("DROCC, Table 11", "dog", "cuda")
    assert (full.radius, full.mu, full.optimizer, full.learning_rate) == (24, 0.5, "SGD", 0.01)
    assert (full.num_steps, full.step_size) == (50, 0.001)
    assert reduced.num_steps * reduced.step_size == pytest.approx(50 * 0.001)
    assert reduced.iterations < full.iterations


def test_the_setting_is_the_best_of_those_tried_on_training_images():
    path = Path(cifar_choice.__file__).parent / "results" / "cifar-choice.json"
    content = read(path)
    assert len(content["cells"]) == 17 * len(cifar_choice.NORMAL) * len(cifar_choice.SEEDS)
    means = {name: np.mean(cifar_choice.means(content, name)) for name in cifar_choice.TRIED}
    assert max(means, key=means.get) == cifar_choice.CHOSEN
    chosen = cifar_choice.TRIED[cifar_choice.CHOSEN]
    assert chosen == cifar_tables.setting("DROCC", "airplane", "cpu")


def test_the_setting_is_chosen_on_images_of_its_own(made):
    data = cifar_choice.split(Options(made, (0,), True), "ship", (20, 4, 2))
    assert data.train.shape[0] == 20
    assert data.test.shape[0] == 4 + 9 * 2
    assert data.labels.tolist() == [1.0] * 4 + [0.0] * 18
    both = torch.cat([data.train, data.test]).flatten(1)
    assert len(torch.unique(both, dim=0)) == len(both)
    tested = cifar.load(made, "ship", train=20, test=4).test.flatten(1)
    assert torch.cdist(both, tested).min() > 1


@pytest.mark.slow
def test_training_repeats_and_leaves_the_global_generator_alone(made):
    data = cifar.load(made, "frog", train=16, test=2)
    how = cifar.Setting(4.0, 1.0, "SGD", 1e-2, 1, 1.0, iterations=2, batch_size=8)
    state = torch.get_rng_state()
    scores = [cifar.train(how, data.train, 5).score(data.test) for _ in range(2)]
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(scores[0], scores[1])
    other = cifar.train(how, data.train, 6).score(data.test)
    assert not torch.equal(scores[0], other)


def test_auc_counts_pairs(made):
    data = cifar.load(made, "frog", train=16, test=3)
    how = cifar.Setting(4.0, 1.0, "Adam", 1e-3, 0, 0.0, iterations=1, batch_size=8)
    trainer = cifar.train(how, data.train, 0)
    scores = trainer.score(data.test, 256).double()
    normal, others = scores[data.labels == 1], scores[data.labels == 0]
    above = (normal[:, None] > others).double() + 0.5 * (normal[:, None] == others)
    assert cifar.auc(trainer, data.test, data.labels) == pytest.approx(above.mean().item())


def test_nearest_neighbour_is_that_of_pixels(options, small):
    data = cifar.load(options.data(), "airplane", train=20, test=4)
    distances = torch.cdist(data.test.flatten(1).double(), data.train.flatten(1).double())
    nearest = distances.min(1).values
    normal, others = nearest[data.labels == 1], nearest[data.labels == 0]
    found = cifar_tables.baseline_cell(options, "kNN", "airplane", 0)["auc"]
    assert found == pytest.approx((normal[:, None] < others).double().mean().item(), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["isolation forest", "OC-SVM"])
def test_baselines_run(options, small, method):
    pytest.importorskip("pyod")
    assert 0 <= cifar_tables.baseline_cell(options, method, "airplane", 0)["auc"] <= 1


def test_augmenting_without_angles_flips_half(seed):
    x = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    turned = augmented.augment(x, 0.0, 1)
    same = torch.tensor([torch.allclose(a, b, atol=1e-5) for a, b in zip(turned, x, strict=True)])
    mirrored = torch.tensor(
        [torch.allclose(a, b.flip(-1), atol=1e-5) for a, b in zip(turned, x, strict=True)]
    )
    assert (same ^ mirrored).all()
    assert 16 <= int(same.sum()) <= 48


def test_augmenting_turns_by_at_most_the_angle():
    x = torch.zeros(200, 1, 33, 33)
    x[:, :, 15:18, 27:30] = 1.0  # to the right of the middle
    turned = augmented.augment(x, 30.0, 2)
    place = torch.arange(33) - 16.0
    mass = turned.sum((1, 2, 3))
    right = (turned.sum((1, 2)) * place).sum(1) / mass
    down = (turned.sum((1, 3)) * place).sum(1) / mass
    angles = torch.rad2deg(torch.atan2(down, right.abs()))
    assert angles.abs().max() < 31
    assert angles.min() < -20
    assert angles.max() > 20
    assert 60 <= int((right > 0).sum()) <= 140
    assert torch.hypot(right, down).sub(12).abs().max() < 0.5  # turned, not sheared
    assert torch.equal(turned, augmented.augment(x, 30.0, 2))
    assert not torch.equal(turned, augmented.augment(x, 30.0, 3))


def test_sweeps_change_one_parameter():
    base = cifar_tables.setting("DROCC", "airplane", "cpu", True)
    assert sweeps.changed(base, "mu", 4.0).mu == 4.0
    wider = sweeps.changed(base, "r", 2 * base.radius)
    assert wider.radius == 2 * base.radius
    assert wider.step_size == pytest.approx(2 * base.step_size)


@pytest.mark.slow
def test_sweep_of_a_table_separates_what_is_far(made):
    options = Options(made, (0,), False)
    assert sweeps.table_cell(options, "mu", 1.0, "thyroid", 0)["auc"] > 0.99


def made_content(experiment, options):
    """Results with values of their own in every cell."""
    names = list(experiment.cells(options))
    cells = {
        name: {"auc": 0.3 + 0.6 * at / len(names), "wall_seconds": 1.0, "cpu_seconds": 1.0}
        for at, name in enumerate(names)
    }
    settings = {**experiment.settings(options), "quick": options.quick}
    environment = {"gpu": None, "processor": "made", "torch": "2"}
    seeds = list(options.seeds)
    return {"settings": settings, "cells": cells, "seeds": seeds, "environment": environment}


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: experiment.name)
@pytest.mark.parametrize("quick", [True, False])
def test_sections_hold_every_cell(made, experiment, quick):
    options = Options(made, (0, 1), quick)
    content = made_content(experiment, options)
    text = experiment.section(content)
    for line in text.splitlines():
        assert len(line) <= 100 or line.startswith("|")
    if experiment is not imagenet.EXPERIMENT:
        assert content["cells"]
        assert "reduced" in text.lower()
    assert "nan" not in text
    for name in experiment.shows:
        assert find(name) == [experiment]


def test_shortfalls_are_those_of_the_table(made):
    content = made_content(cifar_tables.EXPERIMENT, Options(made, (0, 1), False))
    for name in cifar.CLASSES:
        for seed, auc in enumerate((0.85, 0.95)):
            content["cells"][f"DROCC/{name}/{seed}"]["auc"] = auc
    content["cells"]["DROCC/deer/0"]["auc"] = 0.6
    content["cells"]["DROCC/deer/1"]["auc"] = 0.7
    text = " ".join(cifar_tables.EXPERIMENT.section(content).split())
    assert "DROCC reaches the paper's value on 9 of 10 classes" in text
    assert "falls short by deer 8.6 (" in text


@pytest.mark.slow
def test_pictures_are_written(made, tmp_path):
    options = Options(made, (0, 1), False)
    content = made_content(sweeps.EXPERIMENT, options)
    pictures = sweeps.draw(content, tmp_path, options)
    assert [picture.name for picture in pictures] == ["figure7.png", "figure8.png"]
    for picture in pictures:
        assert matplotlib.image.imread(picture).std() > 0.02


@pytest.mark.slow
def test_cells_are_resumed(made, small, tmp_path):
    options = Options(made, (0, 1), True)
    experiment = augmented.EXPERIMENT
    cells = ResultStore(tmp_path / "augmented.json", experiment.settings(options))
    work = experiment.cells(options)
    first, *others = work
    cells.fill({first: work[first]}, progress=False)
    again = ResultStore(tmp_path / "augmented.json", experiment.settings(options))
    done = again.fill({**dict.fromkeys([first], pytest.fail), others[0]: work[others[0]]}, False)
    assert set(done) == {first, others[0]}


def write_folders(directory, pixels=64):
    rng = np.random.default_rng(1)
    for part in ("train", "val"):
        for name in ("n01440764", "n02102040"):
            folder = directory / part / name
            folder.mkdir(parents=True)
            for number in range(4):
                image = rng.integers(0, 256, (pixels, pixels + 16, 3), dtype=np.uint8)
                (folder / f"{number}.png").write_bytes(png(image))
    return directory


def test_image_folders(tmp_path):
    write_folders(tmp_path)
    (tmp_path / "train" / "n01440764" / "notes.txt").write_text("no image")
    data = imagenet.ImageFolder(tmp_path / "train", "n02102040", size=32)
    images, labels = zip(*data, strict=True)
    assert [image.shape for image in images] == [(3, 32, 32)] * 8
    assert torch.stack(labels).tolist() == [0.0] * 4 + [1.0] * 4
    assert len(imagenet.ImageFolder(tmp_path / "train", "n02102040", only_normal=True)) == 4
    for folder, normal, message in (
        (tmp_path / "train", "cow", "must hold a folder cow, got none"),
        (tmp_path, "train", "must hold images, got none"),
    ):
        with pytest.raises(ValueError, match=message):
            imagenet.ImageFolder(folder, normal)


def test_an_image_is_cropped_to_its_middle_and_normalized(tmp_path):
    pixels = np.zeros((8, 16, 3), dtype=np.uint8)
    pixels[:, 4:12] = (255, 128, 0)  # the middle square; black on both sides
    (tmp_path / "a.png").write_bytes(png(pixels))
    x = imagenet.read_image(tmp_path / "a.png", 8)
    expected = [(1 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, -0.406 / 0.225]
    for channel, value in enumerate(expected):
        np.testing.assert_allclose(x[channel].numpy(), value, atol=1e-5)
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"b\.png must be an image"):
        imagenet.read_image(tmp_path / "b.png")


def test_without_images_the_page_says_so(tmp_path, capsys):
    for data_dir in (None, tmp_path):
        out = tmp_path / f"out{data_dir is None}"
        run(imagenet.EXPERIMENT, Options(data_dir, (0,), False), out, jobs=1)
        assert "--data-dir has none of its data" in capsys.readouterr().err
        (page,) = pages.write(out, [imagenet.EXPERIMENT])
        assert "No images of ImageNet-10 were at hand" in page.read_text()


def test_a_missing_library_is_told(monkeypatch):
    monkeypatch.setattr(imagenet.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="transformers must be installed for MobileNetV2"):
        imagenet.MobileNetV2()


@pytest.mark.slow
def test_mobilenet_trains_on_made_folders(tmp_path):
    pytest.importorskip("transformers", reason="MobileNetV2 needs transformers")
    write_folders(tmp_path / "imagenet10")
    options = Options(tmp_path, (0,), True)
    work = imagenet.cells(options)
    assert list(work) == ["DROCC/tench/0"]
    auc = work["DROCC/tench/0"]()["auc"]
    assert 0 <= auc <= 1
    assert not math.isnan(auc)
    content = made_content(imagenet.EXPERIMENT, options)
    assert "No images" not in imagenet.EXPERIMENT.section(content)
