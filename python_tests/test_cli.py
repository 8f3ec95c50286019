from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
import types
import warnings

import numpy as np
import pytest
from processes import HANG

import drocc_ext
from drocc_ext.cli.main import main
from drocc_ext.estimators import DROCC

# Such as scikit-learn's for an array where it has seen names: the command line must not cause it.
pytestmark = pytest.mark.filterwarnings("error::UserWarning")

TINY = ["--max-steps", "3", "--hidden", "4", "--seed", "0"]
NAMES = ["age", "height", "weight"]


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_csv(path, rows, header=None, separator=","):
    lines = [] if header is None else [header]
    lines += [
        [value if isinstance(value, str) else repr(float(value)) for value in r] for r in rows
    ]
    path.write_text("".join(separator.join(line) + "\n" for line in lines))


def expected_scores(rows, new):
    return DROCC(max_steps=3, hidden=4, random_state=0).fit(rows).decision_function(new)


def read_scores(text):
    rows = list(csv.DictReader(io.StringIO(text)))
    assert rows[0].keys() == {"anomaly_score", "anomalous"}
    return np.array([[float(row["anomaly_score"]), int(row["anomalous"])] for row in rows])


def write(path, rows):
    if path.suffix == ".csv":
        write_csv(path, rows)
    elif path.suffix == ".npy":
        np.save(path, rows)
    else:
        np.savez(path, X=rows)


@pytest.mark.parametrize("suffix", [".csv", ".npy", ".npz"])
def test_train_and_score_equal_the_estimator(suffix, here, rng, capsys):
    rows, new = rng.normal(size=(40, 3)), rng.normal(size=(15, 3))
    write(here / f"train{suffix}", rows)
    write(here / f"new{suffix}", new)
    assert main(["train", f"train{suffix}", "--out", "model", *TINY]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "trained on 40 of 40 rows and 3 of 3 features" in captured.err
    assert main(["score", "model", f"new{suffix}"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    scores = read_scores(captured.out)
    np.testing.assert_array_equal(scores[:, 0], expected_scores(rows, new))
    np.testing.assert_array_equal(scores[:, 1], DROCC.load("model").predict(new))
    assert main(["score", "model", f"new{suffix}", "--out", "scores.csv"]) == 0
    assert (here / "scores.csv").read_text() == captured.out
    assert sorted(p.name for p in here.iterdir() if "new" not in p.name) == sorted(
        ["model", "scores.csv", f"train{suffix}"]
    )


def test_options_reach_the_estimator(here, rng):
    write(here / "a.npy", rng.normal(size=(30, 2)))
    options = {
        "radius": 1.5,
        "gamma": 3.0,
        "num_steps": 2,
        "step_size": 0.2,
        "mu": 0.5,
        "hidden": 5,
        "max_steps": 4,
        "batch_size": 16,
        "learning_rate": 0.01,
        "weight_decay": 0.001,
        "contamination": 0.2,
        "metric": "mahalanobis",
    }
    flags = {"num_steps": "steps"}
    arguments = [
        part
        for name, value in options.items()
        for part in (f"--{flags.get(name, name.replace('_', '-'))}", str(value))
    ]
    assert main(["train", "a.npy", "--out", "model", "--seed", "3", *arguments]) == 0
    parameters = DROCC.load("model").get_params()
    expected = {**DROCC().get_params(), **options, "random_state": 3}
    assert parameters == expected


def test_columns_are_found_by_name(here, rng, capsys):
    rows, new = rng.normal(size=(40, 3)), rng.normal(size=(9, 3))
    write_csv(here / "train.csv", rows, NAMES)
    wider = np.column_stack([new[:, 2], np.arange(9), new[:, 0], new[:, 1]])
    write_csv(here / "new.csv", wider, ["weight", "extra", "age", "height"])
    np.save(here / "new.npy", new)
    write_csv(here / "lacking.csv", new[:, :2], ["age", "size"])
    write_csv(here / "narrow.csv", new[:, :2])
    assert main(["train", "train.csv", "--out", "model", *TINY]) == 0
    for name in ("new.csv", "new.npy"):
        capsys.readouterr()
        assert main(["score", "model", name]) == 0
        captured = capsys.readouterr()
        scores = read_scores(captured.out)[:, 0]
        np.testing.assert_array_equal(scores, expected_scores(rows, new))
        assert captured.err == ""
    assert main(["score", "model", "lacking.csv"]) == 2
    assert "lacking.csv: columns are missing: 'height', 'weight'" in capsys.readouterr().err
    assert main(["score", "model", "narrow.csv"]) == 2
    assert "narrow.csv: must have 3 columns ('age', 'height', 'weight'), got 2" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("suffix", [".csv", ".npy", ".npz"])
def test_labels_choose_the_training_rows_and_give_metrics(suffix, here, rng, capsys):
    rows = rng.normal(size=(60, 3))
    labels = np.arange(60) % 3  # 0 = normal
    rows[labels > 0] += 50
    table = np.insert(rows, 1, labels, axis=1)
    if suffix == ".csv":
        text = [[*row[:1], ["good", "bad", "worse"][int(row[1])], *row[2:]] for row in table]
        write_csv(here / "data.csv", text, ["age", "kind", "height", "weight"])
        label, normal = "kind", "good"
    elif suffix == ".npy":
        np.save(here / "data.npy", table)
        label, normal = "-3", "0"
    else:
        np.savez(here / "data.npz", features=rows, y=labels.astype(np.int8)[:, None])
        label, normal = "y", "0"
    chosen = ["--label", label, "--normal", normal]
    assert main(["train", f"data{suffix}", "--out", "model", *chosen, *TINY]) == 0
    assert "trained on 20 of 60 rows and 3 of 3 features" in capsys.readouterr().err
    assert main(["score", "model", f"data{suffix}", *chosen]) == 0
    captured = capsys.readouterr()
    scores = read_scores(captured.out)[:, 0]
    np.testing.assert_array_equal(scores, expected_scores(rows[labels == 0], rows))
    above = scores[labels > 0][:, None] - scores[labels == 0]
    auc = np.mean((above > 0) + 0.5 * (above == 0))
    assert f"AUC {auc:.4f}, F1 of the anomalies " in captured.err
    assert main(["train", f"data{suffix}", "--out", "new", "--label", label]) == 2
    assert "--label and --normal go together" in capsys.readouterr().err
    assert main(["train", f"data{suffix}", "--out", "new", "--label", label, "--normal", "9"]) == 2
    assert f"no row has the label '9' in '{label}', which holds " in capsys.readouterr().err
    assert not (here / "new").exists()


def expected_with(rows, negatives, metric="l2"):
    fitted = DROCC(max_steps=3, hidden=4, random_state=0, metric=metric)
    return fitted.fit(rows, X_negative=negatives)


@pytest.mark.parametrize("metric", ["l2", "mahalanobis"])
@pytest.mark.parametrize("suffix", [".csv", ".npy", ".npz"])
@pytest.mark.parametrize("other", [".csv", ".npy", ".npz"])
def test_negatives_equal_the_estimator(suffix, other, metric, here, rng, capsys):
    rows, negatives = rng.normal(size=(40, 3)), rng.normal(3, 1, size=(6, 3))
    write(here / f"train{suffix}", rows)
    write(here / f"known{other}", negatives)
    options = ["--negatives", f"known{other}", "--metric", metric]
    assert main(["train", f"train{suffix}", "--out", "model", *options, *TINY]) == 0
    captured = capsys.readouterr()
    assert "trained on 40 of 40 rows, 6 negatives and 3 of 3 features" in captured.err
    expected = expected_with(rows, negatives, metric)
    loaded = DROCC.load("model")
    assert loaded.metric == metric
    np.testing.assert_array_equal(loaded.decision_function(rows), expected.decision_function(rows))
    assert loaded.threshold_ == expected.threshold_


def test_columns_of_negatives_are_found_by_name(here, rng):
    rows, negatives = rng.normal(size=(40, 3)), rng.normal(3, 1, size=(6, 3))
    write_csv(here / "train.csv", rows, NAMES)
    wider = np.column_stack([negatives[:, 2], np.arange(6), negatives[:, 0], negatives[:, 1]])
    write_csv(here / "known.csv", wider, ["weight", "extra", "age", "height"])
    np.save(here / "known.npy", negatives)
    write_csv(here / "nameless.csv", rows)
    write_csv(here / "named.csv", negatives, NAMES)
    expected = expected_with(rows, negatives).decision_function(rows)
    for data, known in (
        ("train.csv", "known.csv"),
        ("train.csv", "known.npy"),
        ("nameless.csv", "named.csv"),
    ):
        assert main(["train", data, "--out", "model", "--negatives", known, *TINY]) == 0
        vars(loaded := DROCC.load("model")).pop("feature_names_in_", None)
        np.testing.assert_array_equal(loaded.decision_function(rows), expected)


@pytest.mark.parametrize(
    ("data", "known", "label"),
    [
        # A label by name or position, in both files, only in DATA, or with columns elsewhere.
        (["kind", *NAMES], ["kind", *NAMES], "kind"),
        (["kind", *NAMES], [*NAMES, "kind"], "kind"),
        (["kind", *NAMES], NAMES, "kind"),
        (["kind", *NAMES], ["height", "kind", "extra", "weight", "age"], "kind"),
        (["kind", *NAMES], ["extra", *NAMES], "kind"),
        (["kind", *NAMES], ["extra", *NAMES], "0"),
        ([*NAMES, "kind"], [*NAMES, "extra"], "-1"),
        (["kind", *NAMES], [*NAMES, "extra"], "0"),
        (["kind", *NAMES], NAMES, "0"),
        (["kind", *NAMES], ["label", *NAMES], "0"),
    ],
)
def test_a_label_column_of_negatives_is_left_out(data, known, label, here, rng, capsys):
    rows, negatives = rng.normal(size=(30, 3)), rng.normal(3, 1, size=(6, 3))
    kinds = ["good", "bad", "good"] * 10
    cells = {name: rows[:, i] for i, name in enumerate(NAMES)} | {"kind": kinds}
    write_csv(here / "train.csv", zip(*(cells[name] for name in data), strict=True), data)
    cells = {name: negatives[:, i] for i, name in enumerate(NAMES)}
    cells |= {"kind": ["bad"] * 6, "label": ["other"] * 6, "extra": np.arange(6)}
    write_csv(here / "known.csv", zip(*(cells[name] for name in known), strict=True), known)
    chosen = ["--label", label, "--normal", "good", "--negatives", "known.csv"]
    assert main(["train", "train.csv", "--out", "model", *chosen, *TINY]) == 0
    message = "trained on 20 of 30 rows, 6 negatives and 3 of 3 features"
    assert message in capsys.readouterr().err
    expected = expected_with(rows[np.array(kinds) == "good"], negatives)
    vars(loaded := DROCC.load("model")).pop("feature_names_in_")
    np.testing.assert_array_equal(loaded.decision_function(rows), expected.decision_function(rows))


def test_one_labelled_file_serves_for_both(here, rng, capsys):
    rows = np.concatenate([rng.normal(size=(20, 3)), rng.normal(3, 1, size=(6, 3))])
    kinds = ["good"] * 20 + ["bad"] * 6
    cells = zip(*rows.T, kinds, strict=True)
    write_csv(here / "all.csv", cells, [*NAMES, "kind"])
    chosen = ["--label", "kind", "--normal", "good", "--negatives", "all.csv"]
    assert main(["train", "all.csv", "--out", "model", *chosen, *TINY]) == 0
    assert "trained on 20 of 26 rows, 6 negatives" in capsys.readouterr().err
    np.save(here / "good.npy", np.column_stack([rows[:20], np.zeros(20)]))
    np.save(here / "all.npy", np.column_stack([rows, np.arange(26) >= 20]))
    chosen = ["--label", "3", "--normal", "0", "--negatives", "good.npy"]
    assert main(["train", "all.npy", "--out", "model", *chosen, *TINY]) == 2
    assert "good.npy: must hold rows with another label than '0'" in capsys.readouterr().err


@pytest.mark.parametrize("labelled", [False, True])
def test_labels_of_negatives_in_numpy_files(labelled, here, rng):
    rows, negatives = rng.normal(size=(30, 3)), rng.normal(3, 1, size=(6, 3))
    y = np.arange(30) % 2
    expected = expected_with(rows[y == 0], negatives).decision_function(rows)
    known = np.insert(negatives, 1, 7.0, axis=1) if labelled else negatives
    np.save(here / "train.npy", np.insert(rows, 1, y, axis=1))
    np.save(here / "known.npy", known)
    np.savez(here / "train.npz", features=rows, y=y)
    arrays = {"y": np.ones(6)} if labelled else {}
    np.savez(here / "known.npz", features=negatives, **arrays)
    np.savez(here / "more.npz", features=negatives, other=rows, **arrays)
    for suffix, known, label in (
        ("npy", "known.npy", ["1"]),
        ("npz", "known.npz", ["y"]),
        ("npz", "more.npz", ["y", "--key", "features"]),
    ):
        options = ["--label", *label, "--normal", "0", "--negatives", known]
        assert main(["train", f"train.{suffix}", "--out", "model", *options, *TINY]) == 0
        np.testing.assert_array_equal(DROCC.load("model").decision_function(rows), expected)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (None, [], "known.csv: No such file or directory"),
        ("", [], "known.csv: the file is empty"),
        ("age,height,weight\n", [], "known.csv: must hold at least one row and one feature"),
        ("1,2\n", [], "known.csv: must have 3 columns ('age', 'height', 'weight'), got 2"),
        ("age,size\n1,2\n", [], "known.csv: columns are missing: 'height', 'weight'"),
        ("1,2,nan\n", [], "known.csv: values must be finite, got nan"),
        ("1,2,x\n", [], "known.csv: 'x' in row 0 of the data, column 2"),
        ("1,2,3,4\n", [], "known.csv: must have 3 columns ('age', 'height', 'weight'), got 4"),
    ],
)
def test_bad_negatives_get_one_sentence(content, options, message, here, rng, capsys):
    write_csv(here / "train.csv", rng.normal(size=(30, 3)), NAMES)
    if content is not None:
        (here / "known.csv").write_text(content)
    before = sorted(here.iterdir())
    arguments = ["train", "train.csv", "--out", "model", "--negatives", "known.csv", *options]
    assert main([*arguments, *TINY]) == 2
    check_one_sentence(capsys, message)
    assert sorted(here.iterdir()) == before


def test_negatives_of_nameless_data(here, rng, capsys):
    np.save(here / "a.npy", rng.normal(size=(30, 3)))
    np.save(here / "wide.npy", rng.normal(size=(30, 4)))
    np.save(here / "labelled.npy", np.zeros((30, 4)))
    (here / "known.txt").write_text("1\n")
    np.savez(here / "known.npz", u=np.eye(3))
    for known, message in (
        ("wide.npy", "wide.npy: must have 3 features, got 4"),
        ("known.txt", "known.txt: the file's name must end in .csv, .tsv"),
    ):
        assert main(["train", "a.npy", "--out", "model", "--negatives", known, *TINY]) == 2
        check_one_sentence(capsys, message)
    np.savez(here / "a.npz", X=rng.normal(size=(30, 3)))
    options = ["--key", "X", "--negatives", "known.npz"]
    assert main(["train", "a.npz", "--out", "model", *options, *TINY]) == 2
    check_one_sentence(capsys, "known.npz: no array is named 'X', there are 'u'")
    # By name the label of a .csv file cannot be found in an .npy file of one column more.
    write_csv(here / "a.csv", np.column_stack([np.eye(3), [0, 0, 1]]), [*NAMES, "kind"])
    options = ["--label", "kind", "--normal", "0.0", "--negatives", "labelled.npy"]
    assert main(["train", "a.csv", "--out", "model", *options, *TINY]) == 2
    check_one_sentence(capsys, "labelled.npy: no label column 'kind', there are columns 0 to 3")
    assert not (here / "model").exists()


def test_forms_of_csv(here, rng, capsys):
    rows = rng.normal(size=(20, 3))
    write_csv(here / "plain.csv", rows, NAMES)
    text = (here / "plain.csv").read_text()
    forms = {
        "semicolon.csv": text.replace(",", ";"),
        "tab.csv": text.replace(",", "\t"),
        "excel.csv": "\ufeff" + text.replace("\n", "\r\n"),
        "blank.csv": text.replace("\n", "\n\n  \n"),
        "quoted.csv": text.replace("height", '"height"'),
        "headless.csv": text.split("\n", 1)[1].rstrip(),
        "UPPER.CSV": text,
    }
    for name, form in forms.items():
        (here / name).write_bytes(form.encode())
        assert main(["train", name, "--out", f"{name}.model", *TINY]) == 0, name
        fitted = DROCC.load(f"{name}.model")
        names = vars(fitted).pop("feature_names_in_", None)
        assert (names is None) if name == "headless.csv" else (list(names) == NAMES)
        np.testing.assert_array_equal(
            fitted.decision_function(rows), expected_scores(rows, rows), err_msg=name
        )


def npy_bytes(array):
    np.save(file := io.BytesIO(), array)
    return file.getvalue()


def npz_bytes(array):
    np.savez_compressed(file := io.BytesIO(), X=array)
    return file.getvalue()


BAD_FILES = [
    ("absent.csv", None, [], "absent.csv: No such file or directory"),
    ("absent.npz", None, [], "absent.npz: No such file or directory"),
    ("a.txt", "1,2\n", [], "must end in .csv, .tsv (or those with .gz), .parquet, .npy or .npz"),
    ("a.csv", "", [], "a.csv: the file is empty"),
    ("a.csv", "a,b\n", [], "at least one row and one feature, got shape (0, 2)"),
    (
        "a.csv",
        "1,2\n3,x\n",
        [],
        "'x' in row 1 of the data, column 1 (both counted from 0) is not a number",
    ),
    (
        "a.csv",
        "a,b\n1,2\n3,\n",
        [],
        "'' in row 1 of the data, column 'b' (both counted from 0) is not a num",
    ),
    (
        "a.csv",
        "id,2020\n1,2\n",
        [],
        "'id' in row 0 of the data, column 0 (both counted from 0) is not a num",
    ),
    ("a.csv", "1,2\n\n3,4,5\n", [], "every line must have 2 cells, got more in row 1"),
    ("a.csv", "a,b\n1,2\n3,nan\n", [], "got nan in row 1 of the data, feature 'b'"),
    ("a.csv", "1,inf\n3,4\n", [], "got inf in row 0 of the data, feature 1"),
    ("a.csv", "a,\n1,2\n", [], "the header has no name for column 1"),
    ("a.csv", "a,b,a\n1,2,3\n", [], "two columns named 'a'"),
    ("a.csv", b"\xff\xfe\x00", [], "not a UTF-8 text file"),
    ("a.csv", '1,"2\n', [], "not a CSV file"),
    ("a.csv", "a,b\n1,2\n", ["--label", "c"], "no label column 'c', there are 'a', 'b'"),
    ("a.csv", "1,2\n3,4\n", ["--label", "2"], "no label column '2', there are columns 0 to 1"),
    ("a.csv", "a\n1\n2\n", ["--label", "a"], "at least one row and one feature, got shape (2, 0)"),
    ("a.csv", "1,2\n", ["--key", "X"], "a key ('X') can only be chosen in an .npz file"),
    ("a.csv", "1,2\n", [], "minimum of 2 is required"),
    ("a.csv", "1,2\n1,2\n", [], "a column must vary to be used"),
    ("a.npy", "text", [], "a.npy: not a readable numpy file"),
    ("a.npy", "", [], "a.npy: not a readable numpy file"),
    ("a.npz", "text", [], "a.npz: not a readable numpy file"),
    ("a.npz", npz_bytes(np.zeros((9, 9)))[:-40], [], "a.npz: not a readable numpy file"),
    ("a.npy", npz_bytes(np.zeros((9, 9))), [], "a.npy: not a readable numpy file"),
    ("a.npz", npy_bytes(np.zeros((9, 9))), [], "a.npz: not a readable numpy file"),
    ("a.npy", npy_bytes(np.zeros((9, 9)))[:-40], [], "a.npy: not a readable numpy file"),
    ("a.npy", np.zeros(4), [], "must be numbers of shape [N, D], got float64 of shape (4,)"),
    ("a.npy", np.array([["a", "b"]]), [], "must be numbers of shape [N, D], got <U1"),
    ("a.npy", np.array([[{}]], dtype=object), [], "not a readable numpy file"),
    ("a.npy", np.zeros((0, 3)), [], "at least one row and one feature, got shape (0, 3)"),
    ("a.npy", np.full((3, 2), np.nan), [], "got nan in row 0 of the data, feature 0"),
    ("a.npy", np.eye(3), ["--label", "y"], "no label column 'y', there are columns 0 to 2"),
    ("a.npz", {"u": np.eye(3), "v": np.eye(3)}, [], "choose the key of the features, .* 'u', 'v'"),
    ("a.npz", {"u": np.eye(3)}, ["--key", "w"], "no array is named 'w', there are 'u'"),
    ("a.npz", {"u": np.eye(3)}, ["--label", "w"], "no array is named 'w', there are 'u'"),
    ("a.npz", {"X": np.eye(3), "y": np.ones(2)}, ["--label", "y"], "one label for each of the 3"),
]


@pytest.mark.parametrize(("name", "content", "options", "message"), BAD_FILES)
def test_bad_files_get_one_sentence(name, content, options, message, here, rng, capsys):
    path = here / name
    if isinstance(content, np.ndarray):
        np.save(path, content)
    elif isinstance(content, dict):
        np.savez(path, **content)
    elif content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = sorted(here.iterdir())
    if "--label" in options:
        options = [*options, "--normal", "1"]
    assert main(["train", name, "--out", "model", *options]) == 2
    check_one_sentence(capsys, message)
    assert sorted(here.iterdir()) == before


def check_one_sentence(capsys, message):
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("drocc-ext: ")
    assert captured.err.count("\n") == 1
    before, _, after = message.partition(" .* ")
    assert before in captured.err
    assert after in captured.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--contamination", "0.7"], "contamination must be in (0, 0.5], got 0.7"),
        (["--radius", "-1"], "radius must be > 0"),
        (["--gamma", "0.5"], "gamma must be >= 1"),
        (["--hidden", "0"], "hidden must be >= 1, got 0"),
        (["--device", "quantum"], "cannot use device 'quantum'"),
        (["--learning-rate", "1e30", "--max-steps", "50"], "finite"),
        (["--out", "a.npy"], "a.npy: the output must be a directory, got a file"),
    ],
)
def test_bad_options_leave_nothing(options, message, here, rng, capsys):
    np.save(here / "a.npy", rng.normal(size=(30, 3)))
    content = (here / "a.npy").read_bytes()
    assert main(["train", "a.npy", "--out", "model", *options]) == 2
    check_one_sentence(capsys, message)
    assert [p.name for p in here.iterdir()] == ["a.npy"]
    assert (here / "a.npy").read_bytes() == content


def test_failed_score_leaves_the_former_output(here, rng, capsys):
    np.save(here / "a.npy", rng.normal(size=(30, 3)))
    np.save(here / "wide.npy", rng.normal(size=(30, 4)))
    assert main(["train", "a.npy", "--out", "model", *TINY]) == 0
    (here / "scores.csv").write_text("former")
    capsys.readouterr()
    for arguments, message in (
        (["score", "model", "wide.npy"], "wide.npy: must have 3 features, got 4"),
        (["score", "model", "absent.npy"], "absent.npy: No such file or directory"),
        (["score", "absent", "a.npy"], "absent/config.json does not exist"),
        (
            ["score", "model", "wide.npy", "--label", "0", "--normal", "x"],
            "no row has the label 'x'",
        ),
    ):
        assert main([*arguments, "--out", "scores.csv"]) == 2
        check_one_sentence(capsys, message)
    assert (here / "scores.csv").read_text() == "former"
    assert main(["score", "model", "a.npy", "--out", "no/scores.csv"]) == 2
    check_one_sentence(capsys, "no/scores.csv: no must be an existing directory")
    assert main(["score", "model", "a.npy", "--out", "model"]) == 2
    check_one_sentence(capsys, "model: the output must be a file, got a directory")
    assert {p.name for p in here.iterdir()} == {"a.npy", "wide.npy", "model", "scores.csv"}


def test_an_interrupt_is_one_sentence(here, rng, capsys, monkeypatch):
    np.save(here / "a.npy", rng.normal(size=(20, 3)))

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("drocc_ext.cli.commands.DROCC.fit", interrupted)
    assert main(["train", "a.npy", "--out", "model", *TINY]) == 130
    assert capsys.readouterr().err == "drocc-ext: interrupted, nothing was written\n"
    assert {p.name for p in here.iterdir()} == {"a.npy"}


def test_warnings_are_one_line(here, rng, capsys):
    np.save(here / "a.npy", rng.normal(size=(30, 3)))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["train", "a.npy", "--out", "model", "--step-size", "0.01", *TINY]) == 0
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("drocc-ext: warning: the adversarial search travels 5 * ")
    assert second.startswith("trained on 30 of 30 rows")


def test_text_labels_without_a_header(here, rng, capsys):
    rows = [[value, name] for value, name in zip(rng.normal(size=9), "aaabaaaab", strict=True)]
    write_csv(here / "a.csv", rows)
    chosen = ["--label", "-1", "--normal", "a"]
    assert main(["train", "a.csv", "--out", "model", *chosen, *TINY]) == 0
    assert "trained on 7 of 9 rows and 1 of 1 features" in capsys.readouterr().err


def test_failed_train_leaves_the_former_model(here, rng):
    np.save(here / "a.npy", rng.normal(size=(30, 3)))
    assert main(["train", "a.npy", "--out", "model", *TINY]) == 0
    before = {p.name: p.read_bytes() for p in (here / "model").iterdir()}
    assert main(["train", "absent.npy", "--out", "model"]) == 2
    assert {p.name: p.read_bytes() for p in (here / "model").iterdir()} == before


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["train"],
        ["train", "a.csv"],
        ["score"],
        ["train", "a.csv", "--out", "m", "--mu"],
        ["train", "a.csv", "--out", "m", "--metric", "l1"],
        ["train", "a.csv", "--out", "m", "--negatives"],
    ],
)
def test_unreadable_arguments_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert "usage: drocc-ext" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["info"], ["demo"], ["train"], ["score"]])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as error:
        main([*command, "--help"])
    assert error.value.code == 0
    assert "usage: drocc-ext" in capsys.readouterr().out


def test_info_prints_versions_and_the_build(capsys):
    assert main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("torch: ") for line in lines)
    for name, value in drocc_ext.build_info().items():
        assert f"{name}: {value}" in lines


def test_demo_passes_its_directory_on(monkeypatch):
    calls = []
    demo = types.ModuleType("drocc_ext.demo")
    demo.main = calls.append
    monkeypatch.setitem(sys.modules, "drocc_ext.demo", demo)
    monkeypatch.setattr(drocc_ext, "demo", demo, raising=False)
    assert main(["demo"]) == 0
    assert main(["demo", "--out", "elsewhere"]) == 0
    assert calls == ["drocc-demo", "elsewhere"]


def test_demo_says_what_to_install(monkeypatch, capsys):
    demo = types.ModuleType("drocc_ext.demo")

    def fail(out):
        raise ModuleNotFoundError("No module named 'matplotlib'")

    demo.main = fail
    monkeypatch.setitem(sys.modules, "drocc_ext.demo", demo)
    monkeypatch.setattr(drocc_ext, "demo", demo, raising=False)
    assert main(["demo"]) == 2
    check_one_sentence(
        capsys, "needs the packages of drocc-ext[demo]: No module named 'matplotlib'"
    )


@pytest.mark.parametrize("rows", [10, 20000])
def test_a_reader_that_stops_early_is_no_error(rows, here, rng):
    """Few rows fail when the output is flushed, many already while it is written."""
    np.save(here / "a.npy", rng.normal(size=(rows, 2)))
    assert main(["train", "a.npy", "--out", "model", "--radius", "1", *TINY]) == 0
    command = [sys.executable, "-m", "drocc_ext.cli", "score", "model", "a.npy"]
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, env=buffered) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=HANG) == 0
