"""Make each mistake in a copy of the kernels and see that the emulator notices.

    python csrc/tests/simt/mutations/run.py BUILD_DIR [--jobs N] [--only TEXT] [--seed N]

BUILD_DIR holds simt_test and simt_race_test, built, and their compile_commands.json: only the
kernels with a mistake in them are compiled again, by the same commands. The cases are those of a
seed, the same in every run; without a mistake they have to pass.
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
HANG = 300  # seconds


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

    def link(self, variant: str, kernel: str, tree: Path | None, work: Path) -> Path:
        """The program with one family of kernels and no other, compiled from `tree` if given."""
        parts = []
        for path in self.objects(variant):
            kernels = f"{variant}_kernels.dir" in path.parts
            if not kernels or path.name.startswith("device."):
                parts.append(path)
            elif path.name.startswith(f"{kernel}."):
                parts.append(path if tree is None else self.compile(path, kernel, tree, work))
        program = work / "program"
        compiler = self.commands[self.objects(variant)[0]][0]
        subprocess.run([compiler, "-o", program, *parts], check=True)
        return program

    def compile(self, path: Path, kernel: str, tree: Path, work: Path) -> Path:
        """What is at `path`, compiled from `tree`."""
        command = [word for word in self.commands[path] if word != "-Werror"]
        source, compiled = work / "kernel.cpp", work / "kernel.o"
        source.write_text(f'#include "{tree}/csrc/cuda/{kernel}.cu"\n', encoding="utf-8")
        command[command.index("-o") + 1] = str(compiled)
        command[command.index("-c") + 1] = str(source)
        done = subprocess.run(command, cwd=self.directory, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"mutations: {' '.join(command)}\n{done.stderr[-3000:]}")
        return compiled


def cases(variant: str, options: tuple[str, ...], seed: int) -> list[str]:
    """The program's options: of a mistake, and as many cases as are worth their time."""
    chosen = ["--first", "--seed", str(seed)]
    if "--cases" not in options:
        chosen += ["--cases", "2" if variant == "simt_race" else "3"]
    # The instrumented program is slow: on the device whose blocks meet at the least lengths.
    if variant == "simt_race" and "--device" not in options:
        chosen += ["--device", "5"]
    return [*chosen, *options]


def outcome(
    build: Build, mistake: Mistake, seed: int, *, is_right: bool = False
) -> tuple[int, str]:
    """Exit status and the first failure of a program with this mistake, or without."""
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        tree = None
        if not is_right:
            tree = work / "tree"
            left_out = shutil.ignore_patterns("tests", "cpu*.cpp")
            shutil.copytree(ROOT / "csrc", tree / "csrc", ignore=left_out)
            (tree / mistake.path).write_text(with_mistake(mistake), encoding="utf-8")
        program = build.link(mistake.variant, mistake.kernel, tree, work)
        command = [str(program), *cases(mistake.variant, mistake.options, seed)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=HANG)
        except subprocess.TimeoutExpired:
            return 124, "does not end"
        lines = [line for line in done.stdout.splitlines() if "failed: " in line]
        text = lines[0] if lines else done.stdout[-300:] + done.stderr[-300:]
        return (
            done.returncode,
            text if done.returncode >= 0 else f"dies by signal {-done.returncode}: {text}",
        )


def main() -> int:
    """Try all mistakes; the exit status is 1 where one is not noticed."""
    parser = argparse.ArgumentParser(prog="mutations", description=__doc__)
    parser.add_argument("build", type=Path)
    parser.add_argument("--jobs", type=int, default=2, help="mistakes at a time")
    parser.add_argument("--only", default="", help="part of the description of those to try")
    parser.add_argument("--seed", type=int, default=1, help="of the cases")
    arguments = parser.parse_args()
    seed = arguments.seed
    build = Build(arguments.build.resolve())
    mistakes = [m for m in read() if arguments.only in f"{m.path}: {m.what}"]
    for mistake in mistakes:
        with_mistake(mistake)  # that the texts are there is seen at once
    programs = {(m.variant, m.kernel, m.options): m for m in mistakes}
    noticed = 0
    with ThreadPoolExecutor(arguments.jobs) as pool:
        right = pool.map(lambda m: outcome(build, m, seed, is_right=True), programs.values())
        for (variant, kernel, options), (status, text) in zip(programs, right, strict=True):
            if status != 0:
                name = " ".join((kernel, f"({variant})", *options))
                raise SystemExit(f"mutations: {name} without a mistake: {text}")
        wrong = pool.map(lambda m: outcome(build, m, seed), mistakes)
        for mistake, (status, text) in zip(mistakes, wrong, strict=True):
            # 1: a check has failed. One that hangs or dies by a signal fails the tests as well.
            is_noticed = status in (1, 124) or status < 0
            noticed += is_noticed
            verdict = "noticed" if is_noticed else f"NOT NOTICED ({status})"
            print(f"{verdict}: {mistake.path}: {mistake.what}\n    {text[-230:]}", flush=True)
    print(f"{noticed} of {len(mistakes)} mistakes noticed")
    return int(noticed < len(mistakes))


if __name__ == "__main__":
    sys.exit(main())
