"""Reads `mistakes.txt`: where, what the text becomes, and the tests that have to notice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LIST = Path(__file__).with_name("mistakes.txt")


@dataclass(frozen=True)
class Mistake:
    """One change of one file.

    Attributes:
        path: The file, from the repository's root.
        what: The mistake in a few words.
        old: Text that occurs in the file exactly once.
        new: What becomes of it.
        tests: Arguments for pytest: files of `python_tests` and a choice among their tests.
    """

    path: str
    what: str
    old: str
    new: str
    tests: tuple[str, ...]


def read(part: str) -> list[Mistake]:
    """The mistakes of a part, "python" or "native"."""
    lines = LIST.read_text(encoding="utf-8").split(f"[{part}]\n")[1].split("\n[")[0].splitlines()
    lines = [line for line in lines if line and not line.startswith("#")]
    found, path = [], ""
    while lines:
        if not lines[0].startswith(" "):
            path = lines.pop(0)
            continue
        what, old, new, tests = (line.strip() for line in lines[:4])
        if (old[:2], new[:2], tests[:2]) != ("- ", "+ ", ": "):
            raise ValueError(f"{LIST.name}: {what!r} must be followed by lines with -, + and :")
        files, _, choice = tests[2:].partition(" -k ")
        arguments = [f"python_tests/test_{name}.py" for name in files.split()]
        arguments += ["-k", choice] if choice else []
        found.append(Mistake(path, what, old[2:], new[2:], tuple(arguments)))
        del lines[:4]
    return found
