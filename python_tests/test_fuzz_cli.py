"""Command lines of every kind: status 0, or 2 and one sentence; never a traceback, never a hang."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzing import budget, no_hang
from hypothesis import given
from hypothesis import strategies as st

from drocc_ext.cli.main import OPTIONS, main

pytest.importorskip("pandas", reason="the command line reads text by pandas")
pytestmark = pytest.mark.filterwarnings("ignore")
TINY = ["--max-steps", "2", "--hidden", "4"]


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory of files, good and bad, that command lines name."""
    directory = tmp_path_factory.mktemp("fuzz")
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(12, 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        lines = [",".join(map(repr, row)) for row in rows.tolist()]
        Path("bare.csv").write_text("\n".join(lines))
        Path("named.csv").write_text("\n".join(["a,b,c", *lines]))
        labelled = [f"{line},{'good' if at % 3 else 'bad'}" for at, line in enumerate(lines)]
        Path("labelled.csv").write_text("\n".join(["a,b,c,kind", *labelled]))
        Path("tabs.tsv").write_text("\n".join(["a,b,c", *lines]).replace(",", "\t"))
        Path("text.csv").write_text("a,b,c\nx,y,z\n")
        Path("empty.csv").write_text("")
        Path("one.csv").write_text("a\n1\n")
        Path("binary.csv").write_bytes(rng.bytes(200))
        Path("same.csv").write_text("1,2\n" * 9)
        Path("huge.csv").write_text("1e300,2,1\n-1e300,3,4\n1e-300,1,7\n")
        np.save("rows.npy", rows)
        np.save("wide.npy", rng.normal(size=(12, 5)))
        np.save("flat.npy", rows.ravel())
        np.save("tiny.npy", rows * 1e-310)
        np.save("integers.npy", rng.integers(-3, 3, (12, 4)))
        np.savez("rows.npz", X=rows, y=np.arange(12) % 2)
        np.savez("more.npz", u=rows, v=rows, y=np.arange(12) % 2)
        Path("broken.npz").write_bytes(Path("rows.npz").read_bytes()[:200])
        Path("directory.csv").mkdir()
        assert main(["train", "named.csv", "--out", "model", *TINY]) == 0
        assert main(["train", "rows.npy", "--out", "nameless", *TINY]) == 0
        shutil.copytree("model", "broken")
        Path("broken/config.json").write_text("{}")
        yield directory


FILES = st.sampled_from(
    [
        "bare.csv", "named.csv", "labelled.csv", "tabs.tsv", "text.csv", "empty.csv", "one.csv",
        "binary.csv", "same.csv", "huge.csv", "rows.npy", "wide.npy", "flat.npy", "tiny.npy",
        "integers.npy", "rows.npz", "more.npz", "broken.npz", "directory.csv", "absent.csv",
        "a.txt", "", "-", "\\x00.csv", "/dev/null", "model",
    ]
)  # fmt: skip
GOOD = st.sampled_from(["named.csv", "labelled.csv", "rows.npy", "rows.npz", "bare.csv"])
NUMBERS = st.one_of(
    st.sampled_from(
        ["0", "1", "-1", "2", "0.5", "1e-3", "nan", "inf", "-inf", "1e308", "1e-320", "1e30", "x"]
    ),
    st.sampled_from(["", "1_0", "0x1", "9" * 30, "10000000000000", "-0", " 1", "٣", "1e400"]),
    st.floats(0, 10).map(lambda value: f"{value:.3g}"),
)
# What takes long or much where it is large, and is meant to.
BOUNDED = {
    "max_steps": st.sampled_from(["1", "2", "3", "0", "-1", "x", "", "1.5", "10000000000000"]),
    "num_steps": st.sampled_from(["0", "1", "5", "-1", "x", "1e3", "10000000000000"]),
    "hidden": st.sampled_from(["1", "4", "0", "-5", "x", "10000000000000", "2147483647", "1.5"]),
}


@st.composite
def labels(draw: st.DrawFn) -> list[str]:
    label = draw(st.sampled_from(["kind", "y", "0", "-1", "3", "9", "", "a"]))
    normal = draw(st.sampled_from(["good", "0", "1", "", "nan", "1e999999999", "x"]))
    words = ["--label", label, "--normal", normal]
    return draw(st.sampled_from([words, words, words, words[:2], words[2:]]))


@st.composite
def data(draw: st.DrawFn) -> list[str]:
    words = [draw(st.one_of(GOOD, FILES))]
    if draw(st.booleans()):
        words += draw(labels())
    if draw(st.integers(0, 3)) == 0:
        words += ["--key", draw(st.sampled_from(["X", "u", "y", "", "z"]))]
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        words += ["--exclude", draw(st.sampled_from(["kind", "a", "0", "-1", "9", ""]))]
    return words


@st.composite
def trainings(draw: st.DrawFn) -> list[str]:
    words = ["train", *draw(data()), *TINY]
    words += ["--out", draw(st.sampled_from(["new", "new", "new", "", "named.csv", "rows.npy/x"]))]
    chosen = draw(st.lists(st.sampled_from(OPTIONS), max_size=3))
    for option, name, _, _ in chosen:
        words += [option, draw(BOUNDED.get(name, NUMBERS))]
    extras = {
        "--seed": NUMBERS,
        "--metric": st.sampled_from(["l2", "mahalanobis", "l1", ""]),
        "--device": st.sampled_from(["cpu", "meta", "cuda", "", "cpu:7", "quantum"]),
        "--negatives": st.one_of(GOOD, FILES),
    }
    for option in draw(st.lists(st.sampled_from(sorted(extras)), max_size=2)):
        words += [option, draw(extras[option])]
    return words


@st.composite
def scorings(draw: st.DrawFn) -> list[str]:
    model = draw(
        st.sampled_from(["model", "model", "nameless", "broken", "absent", "", "named.csv"])
    )
    words = ["score", model, *draw(data())]
    if draw(st.booleans()):
        outs = ["out.csv", "", "model", "absent/out.csv", "/dev/null", "/dev/full", "rows.npy"]
        words += ["--out", draw(st.sampled_from(outs))]
    return words


ANYTHING = st.lists(
    st.one_of(
        st.sampled_from(
            ["train", "score", "info", "--help", "--version", "--out", "--label", "--"]
        ),
        st.text(max_size=5),
        FILES,
    ),
    max_size=5,
).filter(lambda words: "demo" not in words)


def check(words: list[str]) -> int:
    """Run a command line; whatever it is, its end is an orderly one."""
    before = {path.name for path in Path().iterdir()}
    out, err = io.StringIO(), io.StringIO()
    stdin = io.TextIOWrapper(io.BytesIO(b"a,b\n1,2\n3,4\n5,7\n"))
    status: Any
    with (
        no_hang(),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr("sys.stdin", stdin)
        try:
            status = main(words)
        except SystemExit as stop:  # argparse's own
            status = stop.code
            assert status in (0, 2)
            assert "usage: drocc-ext" in err.getvalue() + out.getvalue() or "--version" in words
            return int(status)
    said = [
        line for line in err.getvalue().splitlines() if not line.startswith("drocc-ext: warning: ")
    ]
    assert status in (0, 2), (words, said)
    if status == 2:
        assert len(said) == 1, (words, said)
        assert said[0].startswith("drocc-ext: ")
        assert len(said[0]) < 1000
        assert out.getvalue() == ""
        assert {path.name for path in Path().iterdir()} == before
    for name in {path.name for path in Path().iterdir()} - before:
        assert name in ("new", "out.csv")
        shutil.rmtree(name) if os.path.isdir(name) else os.unlink(name)
    return int(status)


@given(words=trainings())
@budget(160)
def test_trainings(words: list[str]) -> None:
    check(words)


@given(words=scorings())
@budget(120)
def test_scorings(words: list[str]) -> None:
    check(words)


@given(words=ANYTHING)
@budget(60)
def test_anything(words: list[str]) -> None:
    check(words)
