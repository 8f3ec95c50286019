"""Tables 6 and 7, Figures 1 and 5: points, cells, pages, pictures; a few steps each."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("pyod", reason="the experiments need drocc-ext[bench]")
pytest.importorskip("matplotlib", reason="the experiments need drocc-ext[bench]")

import matplotlib.image

from benchmarks.paper import boundaries, manifolds, noisy_sine
from benchmarks.paper.experiment import Options
from benchmarks.paper.registry import find
from drocc_ext.demo import sine


def test_points_are_uniform_in_the_ball_and_on_the_sphere(seed):
    generator = torch.Generator().manual_seed(seed)
    ball = manifolds.ball_points(20000, generator)
    norms = ball.norm(dim=1).double()
    assert norms.max() <= 1
    for inner in (0.3, 0.6, 0.9):  # volume grows with the third power
        assert (norms < inner).double().mean() == pytest.approx(inner**3, abs=0.015)
    assert ball.mean(0).abs().max() < 0.02
    sphere = manifolds.sphere_points(1000, 1.4, generator)
    torch.testing.assert_close(sphere.norm(dim=1), torch.full((1000,), 1.4))


def test_displaced_points_are_off_the_sine_by_the_displacement(seed):
    points = sine.displaced_points(10, 0.6, torch.Generator().manual_seed(seed)).double()
    off = points[:, 1] - points[:, 0].sin()
    torch.testing.assert_close(off, torch.tensor([0.6, -0.6] * 5).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("compute", [manifolds.sphere_cell, manifolds.sine_cell])
def test_nearest_neighbour_is_perfect_on_training_points(compute, seed):
    result = compute("nearest neighbour", seed, True)
    trained = [value for name, value in result.items() if name.startswith("trained")]
    assert trained == [1.0] * (len(result) // 2)
    assert all(0.9 < value <= 1.0 for value in result.values())


@pytest.mark.slow
@pytest.mark.parametrize("method", manifolds.METHODS)
def test_cells_have_each_row_of_the_table(method, seed):
    for compute, paper in (
        (manifolds.sphere_cell, manifolds.PAPER_SPHERE),
        (manifolds.sine_cell, manifolds.PAPER_SINE),
    ):
        result = compute(method, seed, True)
        names = [f"{kind} {value}" for value in paper for kind in ("auc", "trained auc")]
        assert list(result) == names
        assert all(0 <= value <= 1 for value in result.values())


def test_the_sine_of_a_cell_is_that_of_the_demonstration(seed):
    train = sine.sine_points(manifolds.TRAIN, torch.Generator().manual_seed(seed))
    torch.testing.assert_close(sine.train(seed, steps=1).points, train, rtol=0, atol=0)
    assert list(manifolds.PAPER_SINE) == list(sine.PAPER)


def test_sections_put_the_papers_value_beside_ours():
    for experiment, case in ((manifolds.SPHERE, "sphere"), (manifolds.SINE, "sine")):
        assert not experiment.needs_data
        content = {"seeds": [0, 1], "cells": {}}
        values = ("auc 1.2", "trained auc 1.2") if case == "sphere" else ("auc 0.2",)
        for seed, auc in ((0, 0.98), (1, 0.99)):
            content["cells"][f"DROCC/{case}/{seed}"] = {}
            for paper in (manifolds.PAPER_SPHERE, manifolds.PAPER_SINE):
                for row in paper:
                    for name in (f"auc {row}", f"trained auc {row}"):
                        content["cells"][f"DROCC/{case}/{seed}"][name] = auc
        section = experiment.section(content)
        assert values[0].split()[1] in section
        line = next(line for line in section.splitlines() if line.startswith(f"| {values[0][4:]} "))
        fields = [field.strip() for field in line.split("|")[1:-1]]
        assert fields[9] == fields[11] == "98.50 +- 0.71"
        assert fields[10] == ("99.44 +- 0.10" if case == "sphere" else "96.80 +- 0.65")


@pytest.mark.slow
def test_pictures_are_written(tmp_path):
    pictures = manifolds.draw_sine({}, tmp_path, Options(None, (0,), True))
    assert [picture.name for picture in pictures] == ["figure1.png", "figure5.png"]
    for picture in pictures:
        assert matplotlib.image.imread(picture).std() > 0.05


@pytest.mark.slow
def test_regions_differ_and_hold_their_share_of_the_training_points(seed):
    trained = sine.train(seed, steps=1)
    found = boundaries.regions(trained, trained.points, seed, epochs=1)
    assert len(found) == 4
    for name in list(found)[1:]:
        assert found[name].mean() == pytest.approx(1 - boundaries.NU, abs=0.03), name
    far = torch.tensor([[50.0, 50.0], [-50.0, 50.0]])
    assert not boundaries.regions(trained, far, seed, epochs=1)["(b) OC-SVM, RBF kernel"].any()


def test_they_are_found_by_their_names():
    assert find("table6") == find("sphere") == [manifolds.SPHERE]
    for name in ("sine", "table7", "figure5"):
        assert find(name) == [manifolds.SINE]
    assert find("figure1") == [manifolds.SINE, noisy_sine.EXPERIMENT], "its panels a to d"
    assert np.all([len(quoted) == 4 for quoted in manifolds.PAPER_SINE.values()])
