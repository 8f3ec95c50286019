"""The list of seeded mistakes fits the code; `make mutations` makes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from python_tests.mutations.mistakes import Mistake, read

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("mistake", [*read("python"), *read("native")], ids=lambda m: m.what)
def test_there_is_something_to_break(mistake: Mistake) -> None:
    text = (ROOT / mistake.path).read_text(encoding="utf-8")
    assert text.count(mistake.old) == 1
    assert mistake.new != mistake.old
    assert (ROOT / mistake.tests[0]).is_file()
