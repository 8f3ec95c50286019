"""Files, options and streams as people have them: read where they can be, else one sentence."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import re
import signal
import stat
import subprocess
import sys
import threading
import time
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from processes import HANG

from drocc_ext.cli import main as command_line
from drocc_ext.cli import text
from drocc_ext.cli.commands import DROCC
from drocc_ext.cli.main import main
from drocc_ext.cli.tables import read_table
from drocc_ext.estimators.recipes import recipe_of
from drocc_ext.training.loss import METRICS

pandas = pytest.importorskip("pandas", reason="the command line reads text by pandas")
pytestmark = pytest.mark.filterwarnings("error::UserWarning")

# Processes of these tests run elsewhere, with the package that is tested.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(command_line.__file__).parents[2])}
TINY = ["--max-steps", "3", "--hidden", "4", "--seed", "0"]
NAMES = ["age", "height", "weight"]


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sentence(capsys):
    """The one line that is said, and nothing on standard output."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("drocc-ext: ")
    assert "internal error" not in captured.err
    assert captured.err.count("\n") == 1
    return captured.err


def table(content, name="a.csv", **options):
    with open(name, "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode())
    return read_table(name, **options)


@pytest.mark.parametrize(
    ("content", "names", "values"),
    [
        ('"height, cm",weight\n1,2\n3,4\n', ["height, cm", "weight"], [[1, 2], [3, 4]]),
        ('"a;b;c;d","e"\n1,2\n', ["a;b;c;d", "e"], [[1, 2]]),
        ('"two\nlines",b\n1,2\n', ["two\nlines", "b"], [[1, 2]]),
        ("\n\n  \na,b\n1,2\n\n3,4\n", ["a", "b"], [[1, 2], [3, 4]]),
        ("\n1,2\n3,4\n", None, [[1, 2], [3, 4]]),
        ("nan,inf\n1,2\n", ["nan", "inf"], [[1, 2]]),
        ("a,b\nTrue,False\nFalse,False\n", ["a", "b"], [[1, 0], [0, 0]]),
        (",a,b\n0,5,6\n1,7,8\n", ["a", "b"], [[5, 6], [7, 8]]),
        ("Unnamed: 0,a,b\n0,5,6\n1,7,8\n", ["a", "b"], [[5, 6], [7, 8]]),
        (",0,1\n0,5.5,6\n1,7,8\n", ["0", "1"], [[5.5, 6], [7, 8]]),
        (
            "a,b\n123456789012345678901234567890,2\n",
            ["a", "b"],
            [[123456789012345678901234567890, 2]],
        ),
        ("a,b\n-1.5e-3, +.5 \n", ["a", "b"], [[-0.0015, 0.5]]),
        ("0.1,0.30000000000000004\n", None, [[0.1, 0.30000000000000004]]),
    ],
)
def test_text_that_is_a_table(content, names, values, here):
    read = table(content)
    assert read.names == names
    np.testing.assert_array_equal(read.values, np.array(values, dtype=float))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1_0,2\n", "'1_0' in row 0 of the data, column 'a'"),
        ("a,b\n0x10,2\n", "'0x10' in row 0"),
        ("a,b\n1,2\n3\n", "'' in row 1 of the data, column 'b'"),
        ("a,b\n1,2\n3,4,5\n", "every line must have 2 cells, got 3 in line 3"),
        ("\na,b\n1,2\n3,4,5\n", "every line must have 2 cells, got 3 in line 4"),
        ("a,b\n1,2,3\n4,5,6\n", "every line must have 2 cells, got more"),
        ("a,b\n1,2,3,4,5\n4,5\n", "every line must have 2 cells, got more"),
        ("a,b\nTrue,1\n1,2\n", "'True' in row 0"),
        ("a,b\n1,2\x00\n", "'2\\x00' in row 0"),
        ("a,b\n1,1e400\n", "values must be finite, got inf in row 0 of the data, feature 'b'"),
        ("a,b\n1,NaN\n", "values must be finite, got nan in row 0 of the data, feature 'b'"),
        ("a,b\n" + "9" * 400 + ",1\n", "values must be finite, got inf in row 0"),
        ('a,b\n1,"2\n', "not a CSV file"),
        ("\n \n\n", "the file is empty"),
        ("a,b\n1,\u0663\n", "is not a number"),
    ],
)
def test_text_that_is_none(content, message, here):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        table(content)
    assert str(caught.value).startswith("a.csv: ")


def test_a_frame_as_pandas_writes_it(here, rng):
    """The index is left out, in every format; values come back to the bit."""
    frame = pandas.DataFrame(rng.normal(size=(20, 3)) * 10.0 ** rng.integers(-300, 300, (20, 3)))
    frame.columns = NAMES
    frame.to_csv("plain.csv")
    frame.to_csv("bare.csv", index=False)
    frame.to_csv("tabs.tsv", sep="\t")
    frame.to_csv("packed.csv.gz")
    frame.to_csv("packed.tsv.bz2", sep="\t")
    frame.to_csv("packed.csv.xz", sep=";")
    names = [
        "plain.csv",
        "bare.csv",
        "tabs.tsv",
        "packed.csv.gz",
        "packed.tsv.bz2",
        "packed.csv.xz",
    ]
    for name in names:
        read = read_table(name)
        assert read.names == NAMES, name
        np.testing.assert_array_equal(read.values, frame.to_numpy(), err_msg=name)


def test_parquet(here, rng):
    pytest.importorskip("pyarrow", reason="pandas reads Parquet by it")
    frame = pandas.DataFrame(rng.normal(size=(20, 2)), columns=NAMES[:2])
    frame["weight"] = pandas.array([*range(19), None], dtype="Int64")
    frame["kind"] = np.where(np.arange(20) % 2, "bad", "good")
    frame["number"] = np.arange(20) + 2**53
    frame["flag"] = np.arange(20) > 3
    frame.to_parquet("a.parquet")
    with pytest.raises(ValueError, match="values must be finite, got nan in row 19"):
        read_table("a.parquet", label="kind")
    with pytest.raises(ValueError, match="'good' in row 0 of the data, column 'kind'"):
        read_table("a.parquet")
    read = read_table("a.parquet", select=["height", "age"], label="number")
    np.testing.assert_array_equal(read.values, frame[["height", "age"]].to_numpy())
    assert read.labels.equal(str(2**53 + 1)).tolist() == [False, True, *[False] * 18]
    read = read_table("a.parquet", label="kind", exclude=["weight", "number"])
    assert read.names == ["age", "height", "flag"]
    assert read.labels.equal("good").sum() == 10
    for content in (b"", b"PAR1 and nothing"):
        with pytest.raises(ValueError, match="not a readable Parquet file"):
            table(content, "bad.parquet")


def test_standard_input(here, rng, capsys, monkeypatch):
    rows = rng.normal(size=(30, 3))
    content = "\n".join([",".join(NAMES), *(",".join(map(repr, r)) for r in rows.tolist())])
    (here / "a.csv").write_text(content)

    def given(data):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    given(content.encode())
    assert main(["train", "-", "--out", "model", *TINY]) == 0
    given(content.encode())
    capsys.readouterr()
    assert main(["score", "model", "-"]) == 0
    from_stdin = capsys.readouterr().out
    assert main(["score", "model", "a.csv"]) == 0
    assert capsys.readouterr().out == from_stdin
    given(b"a,b\n1,x\n")
    assert main(["train", "-", "--out", "new", *TINY]) == 2
    assert "standard input: 'x' in row 0" in sentence(capsys)
    assert main(["train", "-", "--negatives", "-", "--out", "new", *TINY]) == 2
    assert "cannot both be standard input" in sentence(capsys)
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["train", "-", "--out", "new", *TINY]) == 2
    assert "standard input is closed" in sentence(capsys)
    assert not (here / "new").exists()


def test_a_pipe_by_its_name(here, rng):
    rows = rng.normal(size=(20, 2))
    os.mkfifo("a.csv")
    content = "\n".join(",".join(map(repr, row)) for row in rows.tolist()).encode()
    writer = threading.Thread(target=lambda: (here / "a.csv").write_bytes(content))
    writer.start()
    np.testing.assert_array_equal(read_table("a.csv").values, rows)
    writer.join()


def test_excluded_columns(here, rng, capsys):
    rows = rng.normal(size=(30, 3))
    frame = pandas.DataFrame(rows, columns=NAMES)
    frame.insert(1, "id", [f"row {number}" for number in range(30)])
    frame["day"] = "Monday"
    frame.to_csv("a.csv", index=False)
    frame[["day", *NAMES]].iloc[:5].to_csv("known.csv", index=False)
    exclude = ["--exclude", "id", "--exclude", "-1"]
    assert main(["train", "a.csv", "--out", "model", *TINY]) == 2
    assert "'row 0' in row 0 of the data, column 'id'" in sentence(capsys)
    negatives = ["--negatives", "known.csv"]
    assert main(["train", "a.csv", "--out", "model", *exclude, *negatives, *TINY]) == 0
    fitted = DROCC.load("model")
    assert fitted.feature_names_in_.tolist() == NAMES
    expected = DROCC(max_steps=3, hidden=4, random_state=0).fit(rows, X_negative=rows[:5])
    del fitted.feature_names_in_
    np.testing.assert_array_equal(fitted.decision_function(rows), expected.decision_function(rows))
    capsys.readouterr()
    # Text in columns that the model does not use does not matter, whether excluded or not.
    for more in ([], exclude, ["--exclude", "nothing of the kind"]):
        assert main(["score", "model", "a.csv", *more]) == 0
        scores = [float(line.split(",")[0]) for line in capsys.readouterr().out.split()[1:]]
        np.testing.assert_array_equal(scores, expected.decision_function(rows))
    assert main(["train", "a.csv", "--out", "new", "--exclude", "ID", *TINY]) == 2
    assert "no column 'ID' to exclude, there are 'age', 'id', 'height'" in sentence(capsys)
    np.save("a.npy", np.insert(rows, 1, np.arange(30), axis=1))
    np.savez("a.npz", X=np.insert(rows, 1, np.arange(30), axis=1))
    for name in ("a.npy", "a.npz"):
        np.testing.assert_array_equal(read_table(name, exclude=["1"]).values, rows)


@pytest.mark.parametrize("suffix", [".csv", ".npy", ".npz"])
def test_labels_are_compared_exactly(suffix, here, capsys):
    big = [9007199254740992, 9007199254740993]
    values = np.array([[1, big[0]], [2, big[1]], [3, big[1]]])
    if suffix == ".csv":
        (here / "a.csv").write_text("".join(f"{a},{b}\n" for a, b in values.tolist()))
    elif suffix == ".npy":
        np.save("a.npy", values)
    else:
        np.savez("a.npz", X=values[:, :1], y=values[:, 1])
    read = read_table(f"a{suffix}", label="y" if suffix == ".npz" else "1")
    assert read.labels.equal(str(big[0])).tolist() == [True, False, False]
    assert read.labels.equal(str(big[1])).tolist() == [False, True, True]
    for wanted in ("", "x", "nan", "1e999999999", "1e99999999999999999999", "9" * 10**5):
        assert not read.labels.equal(wanted).any()


def test_a_feature_of_the_model_is_no_label(here):
    content = "a,b,kind\n1,2,x\n3,4,y\n"
    for label in ("a", "0"):
        with pytest.raises(ValueError, match="the label column must be no feature, got 'a'"):
            table(content, label=label, select=["a", "b"])
    assert table(content, label="2", select=["a", "b"]).labels.equal("x").tolist() == [True, False]


def test_labels_as_they_are_written(here):
    content = "a,kind\n1,1\n2,1.0\n3, 01\n4,nan\n5,\n6,True\n"
    read = table(content.replace("5,\n", "5,NA\n"), label="kind")
    for wanted, row in (("1", 0), ("1.0", 1), ("01", 2), ("nan", 3), ("NA", 4), ("True", 5)):
        assert np.flatnonzero(read.labels.equal(wanted)).tolist() == [row]
    with pytest.raises(ValueError, match=r"a\.csv: row 4 of the data \(from 0\) has no label"):
        table(content, label="kind")
    np.savez("a.npz", X=np.eye(2), y=np.array([True, False]))
    labels = read_table("a.npz", label="y").labels
    for wanted in ("True", "true", "1"):
        assert labels.equal(wanted).tolist() == [True, False]


def header(text):
    start = b"\x93NUMPY\x01\x00"
    text = text.encode().ljust(117) + b"\n"
    return start + len(text).to_bytes(2, "little") + text


def zipped(content):
    with zipfile.ZipFile(file := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("X.npy", content)
    return file.getvalue()


def patched(data, local, central, value):
    """Write a value at an offset of the local header and of the central one."""
    data = bytearray(data)
    at = data.index(b"PK\x01\x02")
    data[local : local + 2] = value.to_bytes(2, "little")
    data[at + central : at + central + 2] = value.to_bytes(2, "little")
    return bytes(data)


GOOD = header("{'descr': '<f8', 'fortran_order': False, 'shape': (2, 2), }") + bytes(32)
HEADERS = [
    "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 3), }",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (-1, -32), }",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (9223372036854775808, 1), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (2, 2), }",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (2, 2), ",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (2, '2), }",
    "{'descr': '<q99', 'fortran_order': False, 'shape': (2, 2), }",
    "{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (2, 2), }",
    "{" * 100,
    "(" * 100,
    "\\",
]


@pytest.mark.parametrize("text", HEADERS)
def test_headers_of_npy_files_that_lie(text, here, capsys):
    for name, content in (
        ("a.npy", header(text) + bytes(32)),
        ("a.npz", zipped(header(text) + bytes(32))),
    ):
        (here / name).write_bytes(content)
        assert main(["train", name, "--out", "model"]) == 2
        assert sentence(capsys).startswith(f"drocc-ext: {name}: ")


def test_zip_files_that_cannot_be_read(here, capsys):
    good = zipped(GOOD)
    (here / "a.npz").write_bytes(good)
    np.testing.assert_array_equal(read_table("a.npz").values, np.zeros((2, 2)))
    encrypted, unknown = patched(good, 6, 8, 1), patched(good, 8, 10, 77)
    for content, words in ((encrypted, "encrypted"), (unknown, "compression"), (good[:-30], "zip")):
        (here / "a.npz").write_bytes(content)
        assert main(["train", "a.npz", "--out", "model"]) == 2
        assert words in sentence(capsys)


def test_arrays_that_are_not_needed_are_not_unpacked(here, rng):
    rows = rng.normal(size=(5, 2))
    np.savez_compressed("a.npz", X=rows, y=np.arange(5))
    with zipfile.ZipFile("a.npz", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("other.npy", b"no array at all")
    np.testing.assert_array_equal(read_table("a.npz", label="y").values, rows)
    with pytest.raises(ValueError, match="not a readable numpy file"):
        read_table("a.npz", key="other")


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_damaged_compressed_text(pack, here, rng):
    suffix = {"gzip": ".gz", "bz2": ".bz2", "lzma": ".xz"}[pack.__module__]
    content = "\n".join(",".join(map(repr, row)) for row in rng.normal(size=(50, 2)).tolist())
    data = pack(content.encode())
    assert table(data, f"a.csv{suffix}").values.shape == (50, 2)
    for damaged in (data[: len(data) // 2], b"no such thing", data[:20] + bytes(20) + data[40:]):
        with pytest.raises((ValueError, OSError)) as caught:
            table(damaged, f"a.csv{suffix}")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hidden", "10000000000000"], "--hidden must be at most 2147483647"),
        (["--hidden", "2147483647"], "not enough memory for 2147483647 hidden units"),
        (["--device", "meta"], "cannot use device 'meta'"),
        (["--device", ""], "cannot use device ''"),
        (["--device", "cpu:99x"], "cannot use device 'cpu:99x'"),
        (["--weight-decay", "1e308"], "weight_decay must fit float32"),
        (["--learning-rate", "1e308"], "learning_rate must fit float32"),
        (["--mu", "nan"], "mu must be >= 0"),
        (["--radius", "inf"], "radius must be > 0 and finite"),
        (["--gamma", "nan"], "gamma must be >= 1"),
        (["--seed", "-1"], "--seed must be >= 0, got -1"),
        (["--seed", "4294967296"], "--seed must be at most 2147483647"),
        (["--seed", "9" * 4000], "--seed must be at most 2147483647"),
        (["--out", ""], "--out must name a place, got ''"),
        (["--out", "a.npy/model"], "a.npy must be a directory, got a file"),
        (["--key", "X"], "a key ('X') can only be chosen in an .npz file"),
    ],
)
def test_options_that_cannot_be(options, message, here, rng, capsys):
    np.save("a.npy", rng.normal(size=(30, 3)))
    status = main(["train", "a.npy", "--out", "model", "--max-steps", "3", *options])
    said = sentence(capsys)
    assert status == 2
    assert message in said
    assert os.listdir() == ["a.npy"]


def test_outputs_of_score(here, rng, capsys):
    np.save("a.npy", rng.normal(size=(30, 3)))
    assert main(["train", "a.npy", "--out", "model", *TINY]) == 0
    content = (here / "a.npy").read_bytes()
    capsys.readouterr()
    for out, message in (("", "--out must name a place"), ("a.npy", "another file than the data")):
        assert main(["score", "model", "a.npy", "--out", out]) == 2
        assert message in sentence(capsys)
    assert (here / "a.npy").read_bytes() == content
    (here / "scores.csv").write_text("")
    (here / "scores.csv").chmod(0o600)
    (here / "link.csv").symlink_to("scores.csv")
    assert main(["score", "model", "a.npy", "--out", "link.csv"]) == 0
    assert (here / "link.csv").is_symlink()
    assert stat.S_IMODE((here / "scores.csv").stat().st_mode) == 0o600
    assert len((here / "scores.csv").read_text().split()) == 31
    before = os.stat(os.devnull).st_mode
    assert main(["score", "model", "a.npy", "--out", os.devnull]) == 0
    assert os.stat(os.devnull).st_mode == before
    capsys.readouterr()
    assert main(["score", "model", "a.npy", "--out", "/dev/full"]) == 2
    assert "No space left on device" in sentence(capsys)


def test_without_pandas(here, rng, capsys, monkeypatch):
    np.save("a.npy", rng.normal(size=(30, 3)))
    (here / "a.csv").write_text("1,2\n3,4\n")
    (here / "a.parquet").write_bytes(b"")

    def absent(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(text.importlib, "import_module", absent)
    for name in ("a.csv", "a.parquet"):
        with pytest.raises(ValueError, match=r"needs the packages of drocc-ext\[cli\]"):
            read_table(name)
    assert read_table("a.npy").values.shape == (30, 3)


def test_shown_defaults_are_the_estimators():
    parameters = DROCC().get_params()
    defaults = {**parameters, **vars(recipe_of(parameters))}
    for _, parameter, kind, help_text in command_line.OPTIONS:
        if parameter == "hidden":  # asks for another recipe
            assert defaults["hidden"] is None
            continue
        shown = re.search(r"\(default: ([^)]*)\)$", help_text)[1]
        if parameter == "radius":
            assert (defaults["radius"], shown) == (None, "from the data")
        else:
            assert kind(shown) == defaults[parameter]
    assert command_line.METRICS == METRICS
    assert defaults["metric"] == "l2"
    assert defaults["device"] == "cpu"


def test_an_error_of_the_library_is_none_of_the_user(here, rng, capsys, monkeypatch):
    np.save("a.npy", rng.normal(size=(20, 3)))

    def broken(*_, **__):
        raise AttributeError("on\npurpose")

    monkeypatch.setattr(DROCC, "fit", broken)
    assert main(["train", "a.npy", "--out", "model", *TINY]) == 70
    said = capsys.readouterr().err
    assert said == "drocc-ext: internal error: AttributeError: on purpose\n"
    monkeypatch.setenv("DROCC_TRACEBACK", "1")
    assert main(["train", "a.npy", "--out", "model", *TINY]) == 70
    assert "Traceback" in capsys.readouterr().err


def run(arguments, **options):
    """The command line as a process of its own."""
    command = [sys.executable, "-m", "drocc_ext.cli", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, env=ENVIRONMENT, **options)


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["train", "--help"], ["fly"], []])
def test_help_and_version_need_no_torch(arguments):
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: print('torch' in sys.modules, 'numpy' in sys.modules))\n"
        f"sys.argv = ['drocc-ext', *{arguments!r}]\n"
        "from drocc_ext.cli.main import main\n"
        "sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False False"
    assert done.returncode == (0 if arguments and arguments[-1].startswith("--") else 2)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("stream", ["stdout", "stderr", "full"])
def test_closed_streams(stream, here):
    command = f"exec {sys.executable} -m drocc_ext.cli info"
    redirected = {"stdout": ">&-", "stderr": "2>&-", "full": ">/dev/full"}[stream]
    done = subprocess.run(
        ["sh", "-c", f"{command} {redirected}"], capture_output=True, text=True, env=ENVIRONMENT
    )
    if stream == "stderr":
        assert done.returncode == 0
        assert done.stdout.startswith("python: ")
        return
    assert done.returncode == 2
    wanted = "standard output is closed" if stream == "stdout" else "No space left on device"
    assert wanted in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_interrupt_while_importing(here):
    """At several moments of the start, which is mostly imports."""
    for _ in range(3):
        with run(["info"], stdout=subprocess.PIPE) as process:
            started = time.monotonic()
            maps = Path(f"/proc/{process.pid}/maps")
            while process.poll() is None and "libtorch" not in maps.read_text():
                assert time.monotonic() < started + 120
                time.sleep(0.01)
            time.sleep(random.uniform(0, 0.3))
            process.send_signal(signal.SIGINT)
            said = process.stderr.read().decode()
            process.wait(timeout=120)
        assert process.returncode in (0, 130)
        if process.returncode == 130:
            assert said == "drocc-ext: interrupted, nothing was written\n"


def test_the_default_networks_thresholds_and_explanations(here, rng, capsys):
    rows = rng.normal(size=(60, 3))
    np.save("rows.npy", rows)
    options = ["--network", "8,4", "--contamination", "auto", "--max-steps", "3", "--seed", "0"]
    assert command_line.main(["train", "rows.npy", "--out", "model", *options]) == 0
    fitted = DROCC("auto", network=(8, 4), max_steps=3, random_state=0).fit(rows)
    loaded = DROCC.load("model")
    np.testing.assert_array_equal(loaded.decision_function(rows), fitted.decision_function(rows))
    assert loaded.threshold_ == fitted.threshold_
    assert command_line.main(["explain", "model", "rows.npy", "--out", "why.csv"]) == 0
    lines = Path("why.csv").read_text().splitlines()
    assert lines[0] == "anomaly_score,column 0,column 1,column 2"
    found = np.array([[float(part) for part in line.split(",")] for line in lines[1:]])
    np.testing.assert_allclose(found[:, 1:], fitted.explain(rows), rtol=1e-5, atol=1e-7)
    with pytest.raises(SystemExit):
        command_line.main(["train", "rows.npy", "--out", "m", "--network", "8,wide"])
    assert "argument --network: invalid units value: '8,wide'" in capsys.readouterr().err


def test_a_numpy_file_that_is_a_pipe(here):
    os.mkfifo("a.npy")

    def write():
        with suppress(BrokenPipeError):  # nobody reads it
            (here / "a.npy").write_bytes(b"\x93NUMPY")

    writer = threading.Thread(target=write)
    writer.start()
    with pytest.raises(ValueError, match=r"a\.npy: must be a file on a disk, got a pipe"):
        read_table("a.npy")
    writer.join()


@pytest.mark.filterwarnings("always")
def test_a_first_line_of_counted_numbers_is_spoken_of(here):
    (here / "a.csv").write_text("0,1,2\n3,4,5.5\n")
    with pytest.warns(UserWarning, match="the first line is read as a row, not as names: 0,1,2"):
        values = read_table("a.csv").values
    np.testing.assert_array_equal(values, [[0, 1, 2], [3, 4, 5.5]])


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
def test_standard_output_that_is_full_is_named():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "drocc_ext.cli", "info"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=HANG,
            check=False,
        )
    assert (done.returncode, done.stderr) == (
        2,
        "drocc-ext: standard output: No space left on device\n",
    )
