"""Known anomalies on the command line."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest
from cli_cases import NAMES, TINY, check_one_sentence, write, write_csv

from drocc_ext.cli.main import main
from drocc_ext.estimators import DROCC

# Such as scikit-learn's for an array where it has seen names: the command line must not cause it.
pytestmark = pytest.mark.filterwarnings("error::UserWarning")


SUFFIXES = (".csv", ".npy", ".npz")


def expected_with(rows, negatives, metric="l2"):
    fitted = DROCC(max_steps=3, hidden=4, random_state=0, metric=metric)
    return fitted.fit(rows, X_negative=negatives)


@pytest.mark.parametrize(
    "suffix, other, metric",
    [*((a, b, "l2") for a in SUFFIXES for b in SUFFIXES), (".npy", ".npy", "mahalanobis")],
)
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


@pytest.mark.parametrize(
    ("exclude", "label"),
    [("id", "kind"), ("id", "-1"), ("id", "4"), ("0", "kind"), ("0", "-1"), ("0", "4")],
)
@pytest.mark.parametrize("known", [[*NAMES, "kind"], ["kind", *NAMES], ["kind", *NAMES, "id"]])
def test_positions_stand_for_names_in_both_files(known, exclude, label, here, rng, capsys):
    rows, kinds = rng.normal(size=(30, 3)), ["good", "bad", "good"] * 10
    write_csv(
        here / "train.csv", zip(range(30), *rows.T, kinds, strict=True), ["id", *NAMES, "kind"]
    )
    cells = {name: rows[:6, i] for i, name in enumerate(NAMES)}
    cells |= {"kind": kinds[:6], "id": np.arange(6)}
    write_csv(here / "known.csv", zip(*(cells[name] for name in known), strict=True), known)
    chosen = ["--exclude", exclude, "--label", label, "--normal", "good"]
    chosen += ["--negatives", "known.csv"]
    assert main(["train", "train.csv", "--out", "model", *chosen, *TINY]) == 0
    assert "20 of 30 rows, 2 negatives and 3 of 3 features" in capsys.readouterr().err


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


@pytest.mark.parametrize("written", ["1.0", "01", "1e0"])
def test_labels_of_negatives_that_are_written_otherwise(written, here, rng, capsys):
    """All rows of that label, normal ones, would be trained on as anomalies."""
    rows = [list(map(repr, row)) for row in rng.normal(size=(40, 3)).tolist()]
    write_csv(here / "train.csv", [[*row, "1"] for row in rows], [*NAMES, "y"])
    known = [[*row, written if i % 2 else "0"] for i, row in enumerate(rows)]
    write_csv(here / "known.csv", known, [*NAMES, "y"])
    options = ["--label", "y", "--normal", "1", "--negatives", "known.csv"]
    assert main(["train", "train.csv", "--out", "model", *options, *TINY]) == 2
    check_one_sentence(capsys, f"labels must be written as --normal is, '1', got {written!r}")
    assert not (here / "model").exists()


def test_labels_of_negatives_that_are_decimals(here, rng, capsys):
    pandas = pytest.importorskip("pandas", reason="needs pandas")
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    frame = pandas.DataFrame(rng.normal(size=(40, 3)), columns=NAMES)
    frame.assign(y=1).to_csv("train.csv", index=False)
    for kind in (pyarrow.decimal128(10, 2), pyarrow.decimal128(38, 10), pyarrow.float64()):
        labels = pyarrow.array(
            [Decimal(int(i >= 6)) for i in range(40)], pyarrow.decimal128(38, 10)
        )
        known = pyarrow.Table.from_pandas(frame).append_column("y", labels.cast(kind))
        parquet.write_table(known, "known.parquet")
        options = ["--label", "y", "--normal", "1", "--negatives", "known.parquet"]
        assert main(["train", "train.csv", "--out", "model", *options, *TINY]) == 0
        assert "40 of 40 rows, 6 negatives" in capsys.readouterr().err
