"""The first line of a text table, names or a row, and lines that are not whole."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from cli_cases import TINY, sentence, table

from drocc_ext import DROCC
from drocc_ext.cli.main import main
from drocc_ext.cli.tables import read_table

pandas = pytest.importorskip("pandas", reason="the command line reads text by pandas")
pytestmark = pytest.mark.filterwarnings("error::UserWarning")

YEARS = ["2015", "2016", "2017", "2018"]


@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize(
    "line", ["0,1,2", "2020,2021,2022", "2020,2021,2022,2023", "400.0,402.5,405.0,407.5"]
)
def test_a_first_line_of_counted_numbers_is_spoken_of(line, here):
    (here / "a.csv").write_text(f"{line}\n{line}\n")
    told = rf"the first line is read as a row, not as names: {line[:5]}.*, or with --header"
    with pytest.warns(UserWarning, match=told):
        values = read_table("a.csv").values
    np.testing.assert_array_equal(values, [np.fromstring(line, sep=",")] * 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_table("a.csv", header=True).names == line.split(",")
        for row in ("1,2,3", "1,2,3,4", "5,5,5,5", "-1,0,1,2", "100,101,102.5,103"):
            (here / "a.csv").write_text(f"{row}\n{row}\n")
            assert len(read_table("a.csv").values) == 2


def test_a_row_of_missing_values_is_names_where_that_is_said(here):
    for asked in ({"header": True}, {"select": ["inf", "nan"]}):
        read = table("nan,inf\n1,2\n", **asked)
        order = [0, 1] if "header" in asked else [1, 0]
        assert read.names == [["nan", "inf"][at] for at in order]
        assert read.values.tolist() == [[[1.0, 2.0][at] for at in order]]


def test_text_beside_the_numbers_may_have_quotes_and_lines_and_be_long(here):
    long = "x" * 300_000
    content = f'a,note\n1,"two\nlines, ""so"""\n2,inch 5"\n3,"{long}"\n'
    assert table(content, exclude=["note"]).values.tolist() == [[1.0], [2.0], [3.0]]
    with pytest.raises(ValueError, match="is a quote not closed"):
        # Two quotes that are not closed: the rows between them would be one cell.
        table('a,note\n1,"open\n2,x\n3,"too\n4,x\n', exclude=["note"])


@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize(
    ("first", "options"),
    [
        (["country", *YEARS], {"exclude": ["0"]}),
        ([*YEARS, "quality"], {"label": "-1"}),
        ([*YEARS, "quality"], {"label": "4"}),
        (["country", *YEARS, "quality"], {"exclude": ["0"], "label": "5"}),
    ],
)
def test_years_beside_a_column_that_is_left_out_by_its_position(first, options, here, rng):
    """They would be read as a row, and every score would stand one line too low."""
    frame = pandas.DataFrame(rng.normal(size=(5, len(first))), columns=first)
    for name in {"country", "quality"}.intersection(first):
        frame[name] = [f"text {row}" for row in range(5)]
    frame.to_csv("a.csv", index=False)
    with pytest.warns(UserWarning, match=r"the first line is read as a row, not as names"):
        assert len(read_table("a.csv", **options).values) == 6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read_table("a.csv", header=True, **options).values) == 5


def test_years_behind_an_index(here, rng):
    frame = pandas.DataFrame(rng.normal(size=(5, 4)), columns=YEARS)
    frame.to_csv("a.csv")
    read = read_table("a.csv")
    assert read.names == YEARS
    np.testing.assert_array_equal(read.values, frame.to_numpy())
    with pytest.raises(ValueError, match="'' in row 0 of the data"):  # a value that is missing
        table(",2,3,4\n1,2,3,4\n")


def test_long_texts(here):
    """Beyond what Python's reader takes by itself, in the first line too."""
    long = "lorem, ipsum " * 12_000
    content = f'id,x,text\n1,2,"{long}"\n3,4,"{long}"\n'
    assert table(content, exclude=["id", "text"]).values.tolist() == [[2], [4]]
    headless = content.partition("\n")[2]
    assert table(headless, exclude=["0", "2"]).values.tolist() == [[2], [4]]


def test_names_that_differ_by_blanks_are_no_one_column(here):
    with pytest.raises(ValueError, match="columns are missing: 'a', 'a '"):
        table("a,b\n1,2\n", select=["a", "a "])


def test_names_of_columns_that_are_left_out(here):
    """Spreadsheets and instruments end each line with a separator; names may come twice."""
    content = "a,b,c,\n1,2,3,\n4,5,6,\n"
    with pytest.raises(ValueError, match=r"no name for column 3; columns that are no features can"):
        table(content)
    for options in ({"exclude": ["3"]}, {"exclude": ["-1"]}, {"select": ["a", "b", "c"]}):
        assert table(content, **options).values.tolist() == [[1, 2, 3], [4, 5, 6]]
    content = "a,x,x,b\n1,u,v,2\n3,w,z,4\n"
    for options in ({"exclude": ["1", "2"]}, {"select": ["a", "b"]}):
        assert table(content, **options).values.tolist() == [[1, 2], [3, 4]]
    for options in ({"exclude": ["1"]}, {"exclude": ["x"]}, {"label": "x", "exclude": ["2"]}):
        with pytest.raises(ValueError, match="two columns named 'x'"):
            table(content, **options)


@pytest.mark.parametrize("quoted", [False, True])
def test_lines_that_are_too_short(quoted, here):
    """A cell in the middle is lost: the numbers behind it would count for their neighbours."""
    note = '"two\nlines"' if quoted else "n"
    content = f"id,a,b,note\n1,2,3,{note}\n2,4,5\n"
    at = 4 if quoted else 3
    message = f"a.csv: every line must have 4 cells, got 3 in line {at}"
    with pytest.raises(ValueError, match=message):
        table(content, exclude=["id", "note"])
    with pytest.raises(ValueError, match=message):
        table(content, select=["b", "a"])
    whole = table(content.replace("2,4,5", '"2","4",5,'), exclude=["id", "note"])
    assert whole.values.tolist() == [[2, 3], [4, 5]]
    blank = table(content.replace("2,4,5", '\n   \n2,4,5,"a,b"\n\n'), exclude=["id", "note"])
    assert blank.values.tolist() == [[2, 3], [4, 5]]
    # A separator in a text makes up for the cell that is lost.
    joined = 'name,x,y,phone\n"Smith, J",1.5,2.5,555\n"Doe, A",2.5,556\n'
    with pytest.raises(ValueError, match="every line must have 4 cells, got 3 in line 3"):
        table(joined, exclude=["name", "phone"])
    listed = 'a,tags,b,id\n1,"[""x""]",2,1001\n3,"[""p"",""q"",""r"",""s""]",1003\n'
    with pytest.raises(ValueError, match="every line must have 4 cells, got 3 in line 3"):
        table(listed, exclude=["tags", "id"])
    all_quoted = 'a,tags,b,id\n"1","[""p"",""q""]","1003"\n'
    with pytest.raises(ValueError, match="every line must have 4 cells, got 3 in line 2"):
        table(all_quoted, exclude=["tags", "id"])
    titled = "sep=;\nid;a\n1;2\n3\n"
    with pytest.raises(ValueError, match="every line must have 2 cells, got 1 in line 4"):
        table(titled, exclude=["a"])


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".parquet"])
def test_the_type_of_a_table_is_the_models(kind, suffix, here, rng, capsys):
    """A usual value that the type rounds is no deviation in float64, as in Python."""
    options = ["--max-steps", "3", "--network", "8", "--seed", "0"]
    x = rng.normal(size=(120, 3))
    x[:, 1] = 0.1 if kind is np.float16 else 20241201
    if suffix == ".npy":
        np.save("train.npy", x.astype(kind))
    elif suffix == ".npz":
        np.savez("train.npz", X=x.astype(kind))
    else:
        pytest.importorskip("pyarrow", reason="pandas writes Parquet by it")
        pandas.DataFrame(x.astype(kind), columns=["a", "b", "c"]).to_parquet("train.parquet")
    named = pandas.DataFrame(x, columns=["a", "b", "c"])
    named.to_csv("new.csv", index=False, float_format="%.17g")
    assert main(["train", f"train{suffix}", "--out", "model", *options]) == 0
    expected = DROCC(max_steps=3, network=(8,), random_state=0).fit(x.astype(kind))
    capsys.readouterr()
    assert main(["score", "model", "new.csv", "--out", "scores.csv"]) == 0
    assert "constant" not in capsys.readouterr().err
    scores = pandas.read_csv("scores.csv")["anomaly_score"]
    np.testing.assert_allclose(scores, expected.decision_function(x), rtol=1e-6)


def test_columns_of_several_types(here, rng, capsys):
    """The command line gives each its own, as Python does."""
    pytest.importorskip("pyarrow", reason="pandas writes Parquet by it")
    options = ["--max-steps", "3", "--network", "8", "--seed", "0"]
    frame = pandas.DataFrame(rng.normal(size=(120, 2)).astype("f2"), columns=["a", "b"])
    frame["amount"] = rng.integers(0, 10**9, 120)
    frame["rate"], frame["day"] = np.full(120, 0.1, "f2"), 20240104
    frame.to_parquet("train.parquet")
    assert main(["train", "train.parquet", "--out", "model", *options]) == 0
    expected = DROCC(max_steps=3, network=(8,), random_state=0).fit(frame)
    new = frame.assign(rate=0.1)
    new.to_parquet("new.parquet")
    assert main(["score", "model", "new.parquet", "--out", "scores.csv"]) == 0
    scores = pandas.read_csv("scores.csv")["anomaly_score"]
    np.testing.assert_allclose(scores, expected.decision_function(new), rtol=1e-6)
    np.testing.assert_allclose(scores, expected.decision_function(frame), rtol=1e-6)
    assert "constant" not in capsys.readouterr().err


def test_warnings_name_the_columns_of_the_file(here, rng, capsys):
    options = ["--max-steps", "3", "--network", "8", "--seed", "0"]
    frame = pandas.DataFrame(rng.normal(size=(60, 3)), columns=["a", "b", "k"])
    frame["k"] = 7.0
    frame.insert(0, "id", range(60))
    frame.to_csv("a.csv", index=False)
    assert main(["train", "a.csv", "--exclude", "id", "--out", "model", *options]) == 0
    frame.assign(k=8.0).to_csv("b.csv", index=False)
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["score", "model", "b.csv", "--out", "s.csv"]) == 0
    assert "constant in training" in (said := capsys.readouterr().err)
    assert "(from 0): 'k'" in said


def test_labels_are_listed_as_they_are_compared(here, rng):
    np.savez("a.npz", X=rng.normal(size=(4, 2)), y=np.array([0.1, 0.1, 0.3, 0.3], np.float32))
    labels = read_table("a.npz", label="y").labels
    assert labels.listed() == "0.1, 0.3"
    assert labels.equal("0.1").tolist() == [True, True, False, False]


def test_outputs_by_the_last_end_of_their_names(here, rng, capsys):
    np.save("a.npy", rng.normal(size=(30, 2)))
    assert main(["train", "a.npy", "--out", "model", *TINY]) == 0
    found = []
    for name in ("s.csv", "a.npy.csv", "a.tsv.csv", "sales.parquet.csv"):
        assert main(["score", "model", "a.npy", "--out", name]) == 0
        found.append((here / name).read_text())
    assert len(set(found)) == 1 and "," in found[0]
    (here / "e.tsv.csv").write_text("a,b\n1,2\n")
    assert read_table("e.tsv.csv").names == ["a", "b"]
    capsys.readouterr()
    for name in ("s.npy", "s.parquet.gz", "s.csv.zip"):
        assert main(["score", "model", "a.npy", "--out", name]) == 2
        assert "the output is text" in sentence(capsys)


@pytest.mark.parametrize(
    ("first", "names"),
    [
        ("Temp, C;Druck, bar;x", ["Temp, C", "Druck, bar", "x"]),
        ("a, in m;b", ["a, in m", "b"]),
        ("a;b,c;d;e", ["a;b", "c;d;e"]),
        ('"a;b;c",d', ["a;b;c", "d"]),
    ],
)
def test_names_that_hold_another_separator(first, names, here):
    separator = "," if len(first.split(",")) == 2 and ", " not in first else ";"
    row = separator.join(["1.5"] * len(names))
    read = table(f"{first}\n\n{row}\n{row}\n")
    assert read.names == names
    assert read.values.tolist() == [[1.5] * len(names)] * 2
