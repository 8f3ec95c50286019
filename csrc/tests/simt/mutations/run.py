"""Make each mistake in a copy of the kernels and see that the emulator notices.

    python csrc/tests/simt/mutations/run.py BUILD_DIR [--jobs N] [--only TEXT]

BUILD_DIR holds simt_test and simt_race_test, built, and their compile_commands.json: only the
kernels with a mistake in them are compiled again, by the same commands.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[4]
LIST = Path(__file__).with_name("mistakes.txt")
HANG = 600  # seconds


@dataclass(frozen=True)
class Mistake:
    """One change of one file; the kernels compiled with it, the build and the cases to see it."""

    path: str
    what: str
    old: str
    new: str
    kernel: str
    variant: str
    options: tuple[str, ...]


def read() -> list[Mistake]:
    """The mistakes of mistakes.txt."""
    lines = [x for x in LIST.read_text(encoding="utf-8").splitlines() if x and x[0] != "#"]
    found, path = [], ""
    while lines:
        if not lines[0].startswith(" "):
            path = lines.pop(0)
        what, old, new, how = (lines.pop(0).strip() for _ in range(4))
        kernel, *options = how.removeprefix(":").split()
        race = "race" in options
        found.append(
            Mistake(
                path,
                what,
                old.removeprefix("-").strip().replace("\\n", "\n"),
                new.removeprefix("+").strip().replace("\\n", "\n"),
                kernel,
                "simt_race" if race else "simt",
                tuple(option for option in options if option != "race"),
            )
        )
    return found


def with_mistake(mistake: Mistake) -> str:
    """The file's text with the mistake in it."""
    text = (ROOT / mistake.path).read_text(encoding="utf-8")
    if text.count(mistake.old) != 1:
        raise SystemExit(
            f"mutations: {mistake.path} must hold the text of {mistake.what!r} exactly once, "
            f"got {text.count(mistake.old)} of {mistake.old!r}"
        )
    return text.replace(mistake.old, mistake.new)


class Build:
    """What was built without a mistake."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.commands: dict[Path, list[str]] = {}
        entries = json.loads((directory / "compile_commands.json").read_text(encoding="utf-8"))
        for entry in entries:
            command = shlex.split(entry["command"])
            self.commands[directory / command[command.index("-o") + 1]] = command

    def objects(self, variant: str) -> list[Path]:
        """Of a program, the kernels' included."""
        homes = (f"{variant}_test.dir", f"{variant}_kernels.dir")
        return [path for path in self.commands if any(home in path.parts for home in homes)]

    def link(self, variant: str, kernel: str, tree: Path, work: Path) -> Path:
        """The program with one family of kernels, compiled from `tree`, and no other."""
        others = []
        for path in self.objects(variant):
            kernels = f"{variant}_kernels.dir" in path.parts
            if not kernels or path.name.startswith("device."):
                others.append(path)
            elif path.name.startswith(f"{kernel}."):
                command = [word for word in self.commands[path] if word != "-Werror"]
                source = work / "kernel.cpp"
                source.write_text(f'#include "{tree}/csrc/cuda/{kernel}.cu"\n', encoding="utf-8")
                command[command.index("-o") + 1] = str(work / "kernel.o")
                command[command.index("-c") + 1] = str(source)
                compiled = subprocess.run(
                    command, cwd=self.directory, capture_output=True, text=True
                )
                if compiled.returncode != 0:
                    raise SystemExit(f"mutations: {' '.join(command)}\n{compiled.stderr[-3000:]}")
        program = work / "program"
        compiler = self.commands[others[0]][0]
        subprocess.run([compiler, "-o", program, work / "kernel.o", *others], check=True)
        return program


def outcome(build: Build, mistake: Mistake | None, kernel: str, variant: str) -> tuple[int, str]:
    """Exit status and the first failure of a program with this mistake."""
    options = mistake.options if mistake is not None else ()
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        tree = work / "tree"
        left_out = shutil.ignore_patterns("tests", "cpu*.cpp")
        shutil.copytree(ROOT / "csrc", tree / "csrc", ignore=left_out)
        if mistake is not None:
            (tree / mistake.path).write_text(with_mistake(mistake), encoding="utf-8")
        program = build.link(variant, kernel, tree, work)
        # The instrumented program is slow: on the device whose blocks meet at the least lengths.
        cases = ["--cases", "3"]
        if variant == "simt_race" and "--device" not in options:
            cases = ["--cases", "2", "--device", "5"]
        command = [str(program), "--first", *cases, *options]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=HANG)
        except subprocess.TimeoutExpired:
            return 124, "does not end"
        lines = [line for line in done.stdout.splitlines() if "failed: " in line]
        return done.returncode, lines[0] if lines else done.stdout[-300:] + done.stderr[-300:]


def main() -> int:
    """Try all mistakes; the exit status is 1 where one is not noticed."""
    parser = argparse.ArgumentParser(prog="mutations", description=__doc__)
    parser.add_argument("build", type=Path)
    parser.add_argument("--jobs", type=int, default=2, help="mistakes at a time")
    parser.add_argument("--only", default="", help="part of the description of those to try")
    arguments = parser.parse_args()
    build = Build(arguments.build.resolve())
    mistakes = [m for m in read() if arguments.only in f"{m.path}: {m.what}"]
    for mistake in mistakes:
        with_mistake(mistake)  # that the texts are there is seen at once
    programs = sorted({(m.kernel, m.variant) for m in mistakes})
    noticed = 0
    with ThreadPoolExecutor(arguments.jobs) as pool:
        right = pool.map(lambda p: outcome(build, None, p[0], p[1]), programs)
        for (kernel, variant), (status, text) in zip(programs, right, strict=True):
            if status != 0:
                raise SystemExit(f"mutations: {kernel} ({variant}) without a mistake: {text}")
        wrong = pool.map(lambda m: outcome(build, m, m.kernel, m.variant), mistakes)
        for mistake, (status, text) in zip(mistakes, wrong, strict=True):
            verdict = "noticed" if status in (1, 124) else f"NOT NOTICED ({status})"
            noticed += status in (1, 124)
            print(f"{verdict}: {mistake.path}: {mistake.what}\n    {text[-230:]}", flush=True)
    print(f"{noticed} of {len(mistakes)} mistakes noticed")
    return int(noticed < len(mistakes))


if __name__ == "__main__":
    sys.exit(main())
