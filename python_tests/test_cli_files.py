"""Files as people have them: read where they can be, else one sentence."""

from __future__ import annotations

import bz2
import decimal
import gzip
import io
import lzma
import os
import re
import sys
import threading
import time
import zipfile
from contextlib import suppress

import numpy as np
import pytest
from cli_cases import NAMES, TINY, sentence, table

from drocc_ext.cli import text
from drocc_ext.cli.columns import Columns
from drocc_ext.cli.commands import DROCC
from drocc_ext.cli.main import main
from drocc_ext.cli.tables import read_table

pandas = pytest.importorskip("pandas", reason="the command line reads text by pandas")
pytestmark = pytest.mark.filterwarnings("error::UserWarning")


@pytest.mark.parametrize(
    ("content", "names", "values"),
    [
        ('"height, cm",weight\n1,2\n3,4\n', ["height, cm", "weight"], [[1, 2], [3, 4]]),
        ('"a;b;c;d","e"\n1,2\n', ["a;b;c;d", "e"], [[1, 2]]),
        ('"two\nlines",b\n1,2\n', ["two\nlines", "b"], [[1, 2]]),
        ("\n\n  \na,b\n1,2\n\n3,4\n", ["a", "b"], [[1, 2], [3, 4]]),
        ("\n1,2\n3,4\n", None, [[1, 2], [3, 4]]),
        ("nan,b\n1,2\n", ["nan", "b"], [[1, 2]]),
        ('"two\nlines";b;c\n1;2;3\n', ["two\nlines", "b", "c"], [[1, 2, 3]]),
        ('"t, in\nC";"u, in\nF"\n1;2\n', ["t, in\nC", "u, in\nF"], [[1, 2]]),
        ('5" pipe;b\n1;2\n', ['5" pipe', "b"], [[1, 2]]),
        ("sep=;\na, b;c\n1;2\n", ["a, b", "c"], [[1, 2]]),
        ('"a" ,"b" \n"1" ,"2" \n', ["a", "b"], [[1, 2]]),
        ("SEP=\t\na\tb\n1\t2\n", ["a", "b"], [[1, 2]]),
        ('sep=|\na|b\n"1" |2\n', ["a", "b"], [[1, 2]]),
        ('a,b\n"1" ,2\n"3"  , "4" \n', ["a", "b"], [[1, 2], [3, 4]]),
        ("\nsep=|\n1|2\n3|4\n", None, [[1, 2], [3, 4]]),
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
        ('a,b\n1,"2\n3,4\n5,"6\n7,8\n', "is not a number"),
        ("\n \n\n", "the file is empty"),
        ("sep=;\n", "the file is empty"),
        ("sep=;\na;b\n1;2\n3;4;5\n", "every line must have 2 cells, got 3 in line 4"),
        # A row of missing values is no header, for then it would be lost.
        ("nan\n1\n2\n", "got nan in row 0 of the data, feature 0"),
        ("nan,inf\n1,2\n", "got nan in row 0 of the data, feature 0"),
        ("nan,NA\n1,2\n", "'NA' in row 0 of the data, column 1"),
        ("NaN,,null\n1,2,3\n", "'' in row 0 of the data, column 1"),
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
    frame["price"] = [decimal.Decimal(number) / 4 for number in range(20)]
    frame.to_parquet("decimal.parquet")
    read = read_table("decimal.parquet", select=["price", "age"], label="kind")
    np.testing.assert_array_equal(read.values[:, 0], np.arange(20) / 4)
    read = read_table("decimal.parquet", exclude=["kind", "weight"], label="price")
    for wanted, row in (("0.25", 1), ("1", 4), ("1.00", 4), ("0", 0)):
        assert np.flatnonzero(read.labels.equal(wanted)).tolist() == [row]
    assert read.labels.listed().startswith("0.00, 0.25, 0.50")
    frame.loc[3, "price"] = None
    frame.to_parquet("decimal.parquet")
    with pytest.raises(ValueError, match="values must be finite, got nan in row 3"):
        read_table("decimal.parquet", select=["price"], label="kind")
    for kinds, wanted in (
        (["normal", None, "noise"], "normal"),
        (["n", None, "nan"], "n"),
        ([b"good", None, b"gone"], "good"),
        ([2**53 + 1, None, 2**53], str(2**53 + 1)),
        ([True, None, False], "True"),
        (pandas.Categorical(["normal", None, "n"]), "normal"),
    ):
        labelled = pandas.DataFrame({"x": rng.normal(size=3), "kind": kinds})
        if isinstance(kinds, list) and isinstance(kinds[0], int | bool):
            labelled["kind"] = pandas.array(kinds, dtype="boolean" if kinds[0] is True else "Int64")
        labelled.to_parquet("labelled.parquet")
        with pytest.raises(ValueError, match=r"row 1 of the data .* has no label"):
            read_table("labelled.parquet", label="kind")
        labelled.drop(index=1).to_parquet("labelled.parquet")
        read = read_table("labelled.parquet", label="kind")
        assert read.labels.equal(wanted).tolist() == [True, False], kinds


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_labels_that_are_fractions(dtype, here, rng):
    """As they are written, whatever the float next to that is."""
    values = np.array([0.1, 0.7, 0.3], dtype)
    np.savez("a.npz", X=rng.normal(size=(3, 2)), y=values)
    assert read_table("a.npz", label="y").labels.equal("0.1").tolist() == [True, False, False]
    np.savez("a.npz", X=rng.normal(size=(3, 2)), y=np.where(values > 0.5, np.nan, values))
    with pytest.raises(ValueError, match=r"row 1 of the data .* has no label"):
        read_table("a.npz", label="y")


def test_a_missing_label_is_refused_in_any_column(here):
    for content in ("y,a\nok,1\n,2\n", "a,y\n1,ok\n2,\n"):
        (here / "a.csv").write_text(content)
        with pytest.raises(ValueError, match=r"row 1 of the data .* has no label"):
            read_table("a.csv", label="y")


def test_damaged_parquet(here):
    pytest.importorskip("pyarrow", reason="pandas reads Parquet by it")
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


def test_a_feature_of_the_model_is_not_excluded(here):
    content = "a,b,c\n1,2,3\n"
    with pytest.raises(ValueError, match="exclude must be no feature of the model, got 'a', 'b'"):
        table(content, exclude=["b", "a"], select=["a", "b"])
    for exclude in (["c"], ["0"], ["absent"]):  # a position may be of another table
        assert table(content, exclude=exclude, select=["a", "b"]).values.tolist() == [[1.0, 2.0]]


def test_columns_of_a_wide_table_are_found_at_once(here, rng):
    """20,000 names: a search for each of them through all took half a minute."""
    names = [f"c{number}" for number in rng.permutation(20_000)]
    columns = Columns("wide.csv", None, (), names[::-1], None, lenient=True)
    started = time.process_time()
    assert columns.are_in(names)
    assert columns.find(len(names), names) == (list(range(20_000))[::-1], None)
    assert time.process_time() - started < 2


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


def test_empty_lines_of_one_column(here, rng, capsys):
    rows = [f"{value:.6f}" for value in rng.normal(size=30)]
    (here / "end.csv").write_text("a\n" + "\n".join(rows) + "\n\n \n")
    assert main(["train", "end.csv", "--out", "model", *TINY]) == 0
    capsys.readouterr()
    assert main(["score", "model", "end.csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 31
    (here / "between.csv").write_text("a\n1\n2\n\n3\n")
    assert main(["score", "model", "between.csv"]) == 2
    assert "'' in row 2 of the data" in sentence(capsys)


def test_numbers_that_pandas_takes_for_text(here, rng, capsys):
    wide = "\n".join(f"{i},{i * i}" for i in range(20))
    (here / "wide.csv").write_text(f"a,b\n{wide}\n3,18446744073709551615\n4,-5\n")
    assert main(["train", "wide.csv", "--out", "model", *TINY]) == 0
    capsys.readouterr()
    mixed = pandas.Series([1, "x", None], dtype=object)
    with pytest.raises(ValueError, match="'x' in row 1 of the data"):
        text._numbers("a", mixed, "b")
    with pytest.raises(ValueError, match="'None' in row 1 of the data"):
        text._numbers("a", pandas.Series(["1", None], dtype=object), "b")
    (here / "nan.csv").write_text(f"a,b\n{wide}\n3,nan \n")
    assert main(["score", "model", "nan.csv"]) == 2
    assert "got nan in row 20 of the data" in sentence(capsys)
