"""The pages of the site: their code runs, their links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from processes import ROOT, python

PAGES = sorted((ROOT / "docs").glob("*.md"))
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
# Parts of programs for several processes, which test_distributed.py runs whole.
PARTS = ("scale",)
# Code that is embedded from examples/ has a test of its own.
WITH_CODE = [
    page
    for page in PAGES
    if "```python\n" in TEXTS[page] and "--8<--" not in TEXTS[page] and page.stem not in PARTS
]


def blocks(page: Path) -> list[tuple[str, str]]:
    return re.findall(r"```(\w+)\n(.*?)```", page.read_text(encoding="utf-8"), re.S)


def needed(code: str) -> list[str]:
    """Packages that a block says it needs, in its first line."""
    found = re.match(r"# pip install ([\w ]+)\n", code)
    return found[1].split() if found else []


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_code_runs_and_prints_what_it_shows(page: Path, tmp_path: Path) -> None:
    """All blocks of a page, in order, in one process; blocks of absent packages are left out."""
    found = blocks(page)
    code = [
        text
        for language, text in found
        if language == "python"
        and all(importlib.util.find_spec(name) is not None for name in needed(text))
    ]
    shown = "".join(text for language, text in found if language == "text")
    printed = python("-c", "\n".join(code), cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert printed == shown


@pytest.mark.parametrize("name", PARTS)
def test_parts_are_python(name: str) -> None:
    for language, code in blocks(ROOT / "docs" / f"{name}.md"):
        if language == "python":
            compile(code, name, "exec")


def test_equivalent_is_equivalent() -> None:
    import torch

    from drocc_ext import ops

    page = ROOT / "docs" / "operators.md"
    (code,) = (code for _, code in blocks(page) if code.startswith("def l2_shell_step"))
    namespace: dict[str, object] = {}
    exec(code, namespace)
    h, grad = torch.randn(2, 7, 5, dtype=torch.float64)
    shown = namespace["l2_shell_step"](h, grad, 0.3, 2.0, 1.2)  # type: ignore[operator]
    torch.testing.assert_close(ops.l2_shell_step(h, grad, 0.3, 2.0, 1.2), shown)


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES], ids=str)
def test_links_lead_to_files_of_the_repository(page: Path) -> None:
    """As a host of the repository shows the page; `make docs` checks the site's, anchors too."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path = target.partition("#")[0]
        if path == "" or re.match(r"https?://", path):
            continue
        if path.startswith("pictures/") and page.parent.name == "docs":
            continue  # drawn when the site is built
        assert (page.parent / path).resolve().is_file(), f"{page.name}: {target}"


def test_every_page_is_in_the_contents() -> None:
    contents = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in PAGES:
        assert f": {page.name}\n" in contents
