"""The study of rules without labels: parts of rules against independent computations, the page."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("pyod", reason="the experiments need drocc-ext[bench]")

from benchmarks.paper import tabular_rules, tabular_study
from benchmarks.paper.experiment import Options
from benchmarks.paper.registry import find
from benchmarks.paper.tabular_rules import RULES, Settings


def made_rows(seed, count=80, columns=4):
    return torch.randn(count, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", list(RULES))
def test_rules_score_every_row_and_leave_the_global_generator_alone(name, seed):
    rows, test = made_rows(seed), made_rows(seed + 1, 11)
    state = torch.get_rng_state()
    scores = RULES[name].scores(rows, test, seed, True)
    assert scores.shape == (11,)
    assert np.isfinite(scores).all()
    assert torch.equal(state, torch.get_rng_state())
    np.testing.assert_array_equal(scores, RULES[name].scores(rows, test, seed, True))


@pytest.mark.parametrize("name", ["default", "3 seeds", "halves agree", "held-out loss"])
def test_trained_rules_rank_far_rows_as_anomalous(name, seed):
    rows, near = made_rows(seed, 300), made_rows(seed + 1, 40)
    scores = RULES[name].scores(rows, torch.cat([near, 8 + near]), seed, False)
    assert scores[40:].min() > np.median(scores[:40])


def test_the_radius_follows_its_rule(seed):
    rows = made_rows(seed)
    distances = torch.cdist(rows.double(), rows.double()).sort(1).values[:, 5].numpy()
    for quantile in (0.5, 0.95):
        expected = np.quantile(distances, quantile)
        assert Settings(quantile=quantile).radius(rows) == pytest.approx(expected)
    assert Settings(quantile=None, multiple=3.0).radius(rows) == pytest.approx(3.0)


def test_rotations(seed):
    rows = made_rows(seed, 500) @ torch.diag(torch.tensor([3.0, 1.0, 0.5, 0.01])) + 2
    white, _ = tabular_rules.rotated(rows, rows, kept=None, shrinkage=0.0)
    torch.testing.assert_close(torch.cov(white.T), torch.eye(4), rtol=0, atol=1e-3)
    kept, same = tabular_rules.rotated(rows, rows, kept=0.95, shrinkage=0.0)
    assert torch.equal(kept, same)
    assert kept.shape == (500, 2)  # 9 and 10 of 10.25
    share = kept.var(0).sum() / rows.var(0).sum()
    assert 0.95 <= share < 1


def test_parts_are_disjoint_and_whole(seed):
    rows = torch.arange(50.0)[:, None]
    used, held_out = tabular_rules._parts(rows, seed, 0.2)
    assert (len(used), len(held_out)) == (40, 10)
    assert torch.equal(torch.cat([used, held_out]).sort(0).values, rows)


def test_the_better_candidate_is_chosen(seed, monkeypatch):
    """Of two made trainings, one that sees distance from the mean and one that sees the reverse."""
    calls = []

    def made(rows, seed, settings, quick, **fit):
        calls.append((settings, len(rows)))

        class Scorer:
            def score(self, x):
                return (-1 if settings.num_steps == 5 else 1) * x.norm(dim=1)

        return Scorer()

    monkeypatch.setattr(tabular_rules, "train", made)
    good, bad = Settings(), Settings(num_steps=0)
    rule = tabular_rules._chosen((bad, good), tabular_rules.away_from_the_mean)
    rows = made_rows(seed)
    scores = rule(rows, rows, seed, False)
    assert calls == [(bad, 64), (good, 64), (good, 80)]
    np.testing.assert_allclose(scores, rows.norm(dim=1).numpy(), rtol=1e-6)


def test_made_rows_are_where_they_are_said_to_be(seed):
    rows = made_rows(seed)
    box = tabular_rules.in_the_box(rows, rows, seed)
    assert (box >= rows.min(0).values).all() and (box <= rows.max(0).values).all()
    far = tabular_rules.away_from_the_mean(rows, rows[:9], seed)
    expected = 1.5 * (rows[:9] - rows.mean(0)).norm(dim=1)
    torch.testing.assert_close((far - rows.mean(0)).norm(dim=1), expected)


def content(better):
    """kNN at 0.8 and 0.9; "default" above it by `better` for each set, "random" below."""
    cells = {}
    for seed, base in ((0, 0.8), (1, 0.9)):
        for data, more in zip(tabular_study.tabular_data.NAMES, better, strict=True):
            for value in tabular_study.VALUES:
                cells.setdefault(f"kNN/{data}/{seed}", {})[value] = base
                cells.setdefault(f"default/{data}/{seed}", {})[value] = base + more
                cells.setdefault(f"random/{data}/{seed}", {})[value] = base - 0.1
    return {"seeds": [0, 1], "cells": cells}


def test_the_section_names_the_rules_that_win_on_all_sets():
    everywhere = tabular_study.section(content((0.05, 0.04, 0.01, 0.02)))
    assert "AUC, script split: default has a mean above kNN's on all four sets." in everywhere
    assert "90.0 (+5.0 +- 0.0)" in everywhere
    unfinished = content((0.05, 0.04, 0.01, 0.02))
    del unfinished["cells"]["default/thyroid/1"]
    assert "85.0 (+5.0)" in tabular_study.section(unfinished)
    but_one = tabular_study.section(content((0.05, 0.04, -0.01, 0.02)))
    assert "AUC, script split: no rule has a mean above kNN's on all four sets." in but_one


def test_cells_use_other_seeds_than_table_2(tmp_path):
    options = Options(tmp_path, (0, 1), quick=False)
    names = tabular_study.EXPERIMENT.cells(options)
    assert len(names) == 2 * 4 * (len(RULES) + 2)
    assert tabular_study.FIRST_SEED > 10
    assert find("tabular-study") == [tabular_study.EXPERIMENT]


@pytest.mark.parametrize("method", ["default", *tabular_study.REFERENCES])
def test_a_cell_has_the_values_of_the_table(tmp_path, method, seed):
    rng = np.random.default_rng(seed)
    y = (np.arange(90) < 12).astype(np.int8)
    np.savez(tmp_path / "thyroid.npz", X=rng.normal(size=(90, 4)) + 9 * y[:, None], y=y)
    result = tabular_study.cell(method, "thyroid", tmp_path, 0, False)
    assert set(result) == set(tabular_study.VALUES)
    assert min(result.values()) > 0.6
