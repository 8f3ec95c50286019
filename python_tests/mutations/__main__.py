"""Make each mistake in a copy of the repository and see that the tests notice.

    python -m python_tests.mutations            # all
    python -m python_tests.mutations --python   # without those of C++, which take a build

The tests have to pass before a mistake is made, and to fail after it. Each run is a fork of this
process, which has imported what takes longest and nothing of ours.
"""

from __future__ import annotations

import argparse
import compileall
import os
import py_compile
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
sys.dont_write_bytecode = True

import hypothesis  # noqa: E402, F401
import pytest  # noqa: E402
import safetensors.torch  # noqa: E402, F401
import sklearn.neighbors  # noqa: E402, F401
import torch  # noqa: E402, F401

from python_tests.mutations.mistakes import Mistake, read  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("drocc_ext", "python_tests", "benchmarks", "csrc", "CMakeLists.txt", "pyproject.toml")
# pytest's exit statuses. Others are errors of ours: no test was chosen, or none could be collected.
PASSED, FAILED = 0, 1


def copy_tree(to: Path) -> Path:
    """Copy what the tests and the build need."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            left_out = shutil.ignore_patterns("__pycache__", "results")
            shutil.copytree(ROOT / name, to / name, ignore=left_out)
        else:
            shutil.copy(ROOT / name, to / name)
    # Compiled once. A hash of the source tells where it was changed; the time would not.
    mode = py_compile.PycInvalidationMode.CHECKED_HASH
    compileall.compile_dir(to / "drocc_ext", quiet=2, invalidation_mode=mode)
    return to


def with_mistake(mistake: Mistake, before: dict[str, str]) -> str:
    """The file's text with the mistake in it; `before` has the texts of all files."""
    text = before[mistake.path]
    if text.count(mistake.old) != 1:
        raise SystemExit(
            f"mutations: {mistake.path} must hold the text of the mistake {mistake.what!r} exactly "
            f"once, got {text.count(mistake.old)} of {mistake.old!r}"
        )
    return text.replace(mistake.old, mistake.new)


def start_tests(tree: Path, tests: Sequence[str], log: Path) -> int:
    """Run tests of a copy in a fork, whose exit status is pytest's; its process id."""
    process = os.fork()
    if process > 0:
        return process
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(tree)
    os.environ["PYTHONPATH"] = str(tree)
    sys.path[:] = [str(tree), *(path for path in sys.path if path not in ("", str(ROOT)))]
    options = ("-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore")
    status = 255
    try:
        status = int(pytest.main([*options, *tests]))
        sys.stdout.flush()
    finally:
        os._exit(status)


def run_all(
    jobs: Iterable[tuple[str, Sequence[str], Callable[[Path], None]]], trees: Sequence[Path]
) -> Iterable[tuple[str, int, str]]:
    """Run jobs (name, tests, what is done to the tree before), one at a time in each tree.

    Yields:
        Name, exit status, and what pytest printed; as they end.
    """
    free, running = list(trees), {}

    def end_one() -> tuple[str, int, str]:
        process, status = os.wait()
        name, tree = running.pop(process)
        free.append(tree)
        printed = tree.with_suffix(".log").read_text(errors="replace")
        return name, os.waitstatus_to_exitcode(status), printed[-3000:]

    for name, tests, prepare in jobs:
        if not free:
            yield end_one()
        tree = free.pop()
        prepare(tree)
        running[start_tests(tree, tests, tree.with_suffix(".log"))] = name, tree
    while running:
        yield end_one()


def build(tree: Path) -> None:
    """Build the library for the least instruction set."""
    for built in (tree / "drocc_ext").glob("*.so"):
        built.unlink()
    options = [
        "-DDROCC_X86_SETS=OFF",
        "-DDROCC_WERROR=OFF",
        f"-DPython_EXECUTABLE={sys.executable}",
        "-G",
        "Ninja",
    ]
    scripts = str(Path(sys.executable).parent)
    environment = os.environ | {"PATH": os.pathsep.join([scripts, os.environ.get("PATH", "")])}
    for command in (["cmake", "-S", ".", "-B", "build", *options], ["cmake", "--build", "build"]):
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"mutations: {' '.join(command)} failed:\n{done.stdout[-4000:]}")


def judge(outcomes: Iterable[tuple[str, int, str]]) -> int:
    """Print what became of each mistake; the number of those that were caught."""
    caught = 0
    for name, status, printed in outcomes:
        caught += status == FAILED
        verdict = {FAILED: "caught", PASSED: "NOT CAUGHT"}.get(status)
        print(f"{verdict or f'pytest ended with {status}'}: {name}", flush=True)
        if verdict is None:
            print(printed, flush=True)
    return caught


def main() -> int:
    """Try all mistakes; the exit status is 1 where one is not caught."""
    parser = argparse.ArgumentParser(prog="mutations", description=__doc__)
    parser.add_argument("--python", action="store_true", help="leave out the mistakes of C++")
    parser.add_argument("--jobs", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--only", default="", help="part of the path of the files to try")
    arguments = parser.parse_args()
    python = [m for m in read("python") if arguments.only in m.path]
    native = [m for m in read("native") if arguments.only in m.path and not arguments.python]
    # Read before anything runs: the working tree may change meanwhile.
    before = {m.path: (ROOT / m.path).read_text(encoding="utf-8") for m in (*python, *native)}
    for mistake in (*python, *native):
        with_mistake(mistake, before)

    def make(mistake: Mistake, tree: Path) -> None:
        """Write the mistake; files with others get their text back."""
        for path, text in before.items():
            (tree / path).write_text(text, encoding="utf-8")
        (tree / mistake.path).write_text(with_mistake(mistake, before), encoding="utf-8")

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        trees = [copy_tree(Path(directory) / "0")]
        for number in range(1, arguments.jobs):
            trees.append(Path(shutil.copytree(trees[0], Path(directory) / str(number))))
        chosen = dict.fromkeys(mistake.tests for mistake in (*python, *native))
        unchanged = ((" ".join(tests), tests, lambda tree: None) for tests in chosen)
        for name, status, printed in run_all(unchanged, trees):
            if status != PASSED:
                raise SystemExit(
                    f"mutations: without a mistake {name} ended with {status}:\n{printed}"
                )
        caught = judge(
            run_all(
                ((f"{m.path}: {m.what}", m.tests, lambda tree, m=m: make(m, tree)) for m in python),
                trees,
            )
        )
        if native:
            for mistake in native:
                text = with_mistake(mistake, before)
                (trees[0] / mistake.path).write_text(text, encoding="utf-8")
            for path in {mistake.path for mistake in python}:
                (trees[0] / path).write_text(before[path], encoding="utf-8")
            build(trees[0])
            for tree in trees[1:]:
                shutil.rmtree(tree)
                shutil.copytree(trees[0], tree, ignore=shutil.ignore_patterns("build"))
            jobs = ((f"{m.path}: {m.what}", m.tests, lambda tree: None) for m in native)
            caught += judge(run_all(jobs, trees))
    tried = len(python) + len(native)
    print(f"{caught} of {tried} mistakes caught, {time.perf_counter() - started:.0f} s")
    return int(caught < tried)


if __name__ == "__main__":
    sys.exit(main())
