"""Make each mistake in a copy of the repository and see that the tests notice.

    python -m python_tests.mutations            # all
    python -m python_tests.mutations --python   # without those of C++, which take a build

The tests have to pass before a mistake is made, and to fail after it.
"""

from __future__ import annotations

import argparse
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from python_tests.mutations.mistakes import NATIVE, PYTHON, Mistake

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("drocc_ext", "python_tests", "benchmarks", "csrc", "CMakeLists.txt", "pyproject.toml")
# pytest's exit statuses. Others are errors of ours: no test was chosen, or none could be collected.
PASSED, FAILED = 0, 1


def copy_tree(to: Path) -> Path:
    """Copy what tests and the build need. Without bytecode, which may outlive its source."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            left_out = shutil.ignore_patterns("__pycache__", "results")
            shutil.copytree(ROOT / name, to / name, ignore=left_out)
        else:
            shutil.copy(ROOT / name, to / name)
    return to


def with_mistake(mistake: Mistake) -> str:
    """The file's text with the mistake in it."""
    text = (ROOT / mistake.path).read_text(encoding="utf-8")
    if text.count(mistake.old) != 1:
        raise SystemExit(
            f"mutations: {mistake.path} must hold the text of the mistake {mistake.what!r} exactly "
            f"once, got {text.count(mistake.old)} of {mistake.old!r}"
        )
    return text.replace(mistake.old, mistake.new)


def run_tests(tree: Path, tests: tuple[str, ...]) -> tuple[int, str]:
    """Run tests of a copy; pytest's exit status and what it printed."""
    options = ("-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *tests],
        cwd=tree,
        env=os.environ
        | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def outcome(mistake: Mistake, tree: Path) -> str:
    """What the tests make of the mistake: "caught", or what went wrong."""
    path = tree / mistake.path
    path.write_text(with_mistake(mistake), encoding="utf-8")
    status, printed = run_tests(tree, mistake.tests)
    shutil.copy(ROOT / mistake.path, path)
    if status == FAILED:
        return "caught"
    return "NOT CAUGHT" if status == PASSED else f"pytest ended with {status}:\n{printed[-2000:]}"


def unchanged(tests: tuple[str, ...], tree: Path) -> str:
    """What is wrong with tests that ought to pass; nothing where they do."""
    status, printed = run_tests(tree, tests)
    return "" if status == PASSED else f"{' '.join(tests)} ended with {status}:\n{printed[-2000:]}"


def build(tree: Path, mistakes: list[Mistake]) -> None:
    """Build the library for the least instruction set, with all these mistakes in it."""
    for mistake in mistakes:
        (tree / mistake.path).write_text(with_mistake(mistake), encoding="utf-8")
    options = ["-DDROCC_X86_SETS=OFF", f"-DPython_EXECUTABLE={sys.executable}", "-G", "Ninja"]
    environment = os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    }
    for built in (tree / "drocc_ext").glob("*.so"):
        built.unlink()
    for command in (["cmake", "-S", ".", "-B", "build", *options], ["cmake", "--build", "build"]):
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"mutations: {' '.join(command)} failed:\n{done.stdout[-4000:]}")


def report(mistakes: list[Mistake], outcomes: Iterable[str]) -> int:
    """Print what became of each mistake, and count those that were caught."""
    caught = 0
    for mistake, found in zip(mistakes, outcomes, strict=True):
        print(f"{found}: {mistake.path}: {mistake.what}", flush=True)
        caught += found == "caught"
    return caught


def main() -> int:
    """Try all mistakes; the exit status is 1 where one is not caught."""
    parser = argparse.ArgumentParser(prog="mutations", description=__doc__)
    parser.add_argument("--python", action="store_true", help="leave out the mistakes of C++")
    parser.add_argument("--jobs", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--only", default="", help="part of the path of the files to try")
    arguments = parser.parse_args()
    python = [m for m in PYTHON if arguments.only in m.path]
    native = [m for m in NATIVE if arguments.only in m.path and not arguments.python]
    mistakes = [*python, *native]
    for mistake in mistakes:
        with_mistake(mistake)
    started = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as directory,
        ThreadPoolExecutor(arguments.jobs) as pool,
    ):
        trees: queue.Queue[Path] = queue.Queue()
        for number in range(arguments.jobs):
            trees.put(copy_tree(Path(directory) / str(number)))

        def on_a_tree(call: Callable[[Path], str]) -> str:
            tree = trees.get()
            try:
                return call(tree)
            finally:
                trees.put(tree)

        chosen = dict.fromkeys(mistake.tests for mistake in mistakes)
        for found in pool.map(on_a_tree, [partial(unchanged, tests) for tests in chosen]):
            if found:
                raise SystemExit(f"mutations: without a mistake {found}")
        calls = [partial(outcome, mistake) for mistake in python]
        caught = report(python, pool.map(on_a_tree, calls))
        if native:
            tree = copy_tree(Path(directory) / "native")
            build(tree, native)
            caught += report(native, pool.map(lambda mistake: outcome(mistake, tree), native))
    seconds = time.perf_counter() - started
    print(f"{caught} of {len(mistakes)} mistakes caught, {seconds:.0f} s")
    return int(caught < len(mistakes))


if __name__ == "__main__":
    sys.exit(main())
