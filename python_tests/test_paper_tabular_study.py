"""The study of rules without labels, whose results are kept: its tables, the place of its code."""

from __future__ import annotations

import subprocess

import pytest

pytest.importorskip("sklearn", reason="the tabular data are standardized by the estimator's way")

from benchmarks.paper import registry, tabular_study
from benchmarks.paper.experiment import Options
from benchmarks.paper.runner import run
from benchmarks.paper.tabular_data import NAMES


def content(better):
    """Make kNN at 0.8 and 0.9; "default" above it by `better` for each set, "random" below."""
    cells = {}
    for seed, base in ((0, 0.8), (1, 0.9)):
        for data, more in zip(NAMES, better, strict=True):
            for value in tabular_study.VALUES:
                cells.setdefault(f"kNN/{data}/{seed}", {})[value] = base
                cells.setdefault(f"default/{data}/{seed}", {})[value] = base + more
                cells.setdefault(f"random/{data}/{seed}", {})[value] = base - 0.1
    rules = {"default": "the estimator's", "random": "no ascent"}
    settings = {"first seed": 100, "rules": rules}
    return {"seeds": [0, 1], "cells": cells, "settings": settings}


def test_the_section_names_the_rules_that_win_on_all_sets():
    everywhere = tabular_study.section(content((0.05, 0.04, 0.01, 0.02)))
    assert "AUC, script split: default has a mean above kNN's on all four sets." in everywhere
    assert "90.0 (+5.0 +- 0.0)" in everywhere
    unfinished = content((0.05, 0.04, 0.01, 0.02))
    del unfinished["cells"]["default/thyroid/1"]
    assert "85.0 (+5.0)" in tabular_study.section(unfinished)
    but_one = tabular_study.section(content((0.05, 0.04, -0.01, 0.02)))
    assert "AUC, script split: no rule has a mean above kNN's on all four sets." in but_one


def test_it_is_not_run_here_but_says_where(tmp_path):
    (experiment,) = registry.find("tabular-study")
    assert experiment not in registry.find("all")
    with pytest.raises(
        ValueError, match="tabular-study must be run at revision 65ae4db, which has"
    ):
        run(experiment, Options(tmp_path, (0,), quick=True), tmp_path, jobs=1)
    assert list(tmp_path.iterdir()) == []


def test_the_revision_has_the_code():
    command = ["git", "ls-tree", "--name-only", tabular_study.REVISION, "benchmarks/paper/"]
    listed = subprocess.run(command, capture_output=True, text=True, cwd=".")
    if listed.returncode:
        pytest.skip("the history is not here: no git, a shallow clone, or an archive")
    for name in ("tabular_rules", "tabular_study"):
        assert f"benchmarks/paper/{name}.py" in listed.stdout.split()
