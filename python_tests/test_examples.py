"""Every example runs, and finds what it is about."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import HANG, ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def numbers(pattern: str, printed: str) -> list[float]:
    found = re.search(pattern, printed)
    assert found is not None, printed
    return [float(number) for number in found.groups()]


def ring(printed: str) -> bool:
    number = r"(-?[\d.]+)"
    on, inside, outside = numbers(
        rf"on the ring {number}, inside {number}, outside {number}", printed
    )
    return on > max(inside, outside)


def attacked(printed: str) -> bool:
    clean = numbers(r"none +accuracy ([\d.]+)", printed)[0]
    names = ("shell", "ellipsoid", "ball")
    found = [
        numbers(rf"{name} +accuracy ([\d.]+), sizes ([\d.]+) to ([\d.]+)", printed)
        for name in names
    ]
    least, most = found[0][1:]
    return (
        all(accuracy < clean - 0.1 for accuracy, _, _ in found)
        and 1 <= least <= most <= 1.5
        and found[1][2] <= 1
        and found[2][2] <= 1
    )


def negatives(printed: str) -> bool:
    without, outlier, limited = map(float, re.findall(r"AUC ([\d.]+)", printed))
    return max(outlier, limited) > without


# What each must have found. Its numbers may differ between machines; that it works may not.
WORKS: dict[str, Callable[[str], bool]] = {
    "accelerate_loop": ring,
    "export_and_score": lambda printed: "the same scores as here" in printed,
    "images": lambda printed: numbers(r"AUC ([\d.]+)", printed)[0] > 0.9,
    "lightning_module": ring,
    "limited_negatives": negatives,
    "per_row_radii": lambda printed: (
        (pair := numbers(r"dense center: (-?[\d.]+), .*: (-?[\d.]+)$", printed.strip()))[0]
        < pair[1]
    ),
    "pgd_attack": attacked,
    "published_trainer": lambda printed: numbers(r"Best test AUC: ([\d.]+)", printed)[0] > 0.9,
    "skorch_grid_search": lambda printed: numbers(r"nothing: ([\d.]+)", printed)[0] > 0.9,
    "tabular": lambda printed: numbers(r"AUC, .*: ([\d.]+)", printed)[0] > 0.9,
    "time_series": lambda printed: numbers(r"(\d+)% of the fast", printed)[0] > 80,
}


def run(path: Path, cwd: Path) -> None:
    child = subprocess.run(
        [sys.executable, str(path)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    if child.returncode == 1 and child.stderr.startswith("this example needs"):
        assert child.stderr.count("\n") == 1
        pytest.skip(child.stderr.strip())
    assert child.returncode == 0, child.stdout + child.stderr
    assert WORKS[path.stem](child.stdout), child.stdout
    assert not list(cwd.iterdir())  # nothing is left behind


def test_each_example_is_known() -> None:
    assert [path.stem for path in EXAMPLES] == sorted(WORKS)
    docs = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    for path in EXAMPLES:
        assert f'--8<-- "examples/{path.name}"' in docs
        assert f"python examples/{path.name}" in path.read_text(encoding="utf-8")


def test_one_example_runs(tmp_path: Path) -> None:
    run(ROOT / "examples" / "pgd_attack.py", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run(path: Path, tmp_path: Path) -> None:
    run(path, tmp_path)


def test_a_folder_of_no_images_is_refused(tmp_path: Path) -> None:
    child = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "images.py"), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert child.returncode == 1 and child.stdout == ""
    assert child.stderr in (
        f"{tmp_path / 'train'} must be a folder of .png images, got none\n",
        "this example needs pillow: pip install pillow\n",
    )
    assert not list(tmp_path.iterdir())
