"""The types that tables come in: what a column holds decides, for scores and for sentences."""

from __future__ import annotations

import datetime
from decimal import Decimal

import numpy as np
import pytest
import torch

from drocc_ext.estimators import DROCC
from drocc_ext.estimators.inputs import digits_of

FEW = {"max_steps": 12, "network": (16, 16)}


def test_the_type_of_a_table():
    pandas = pytest.importorskip("pandas", reason="needs pandas")
    x = np.ones((3, 2))
    for table, digits in (
        (x, 53),
        (x.astype("f4"), 24),
        (x.astype("f2"), 11),
        (x.astype(int), 53),
        (x.tolist(), 53),
        (torch.ones(3, 2), 24),
        (torch.ones(3, 2, dtype=torch.float64), 53),
        (pandas.DataFrame({"a": x[:, 0].astype("f4"), "b": x[:, 0].astype("i2")}), [24, 53]),
        (pandas.DataFrame({"a": x[:, 0].astype("f2"), "b": x[:, 0]}), [11, 53]),
        (pandas.DataFrame(x).astype("Float32"), [24, 24]),
        (pandas.DataFrame(x).astype(pandas.SparseDtype("float32")), [24, 24]),
        (pandas.DataFrame(x).astype(pandas.SparseDtype(int)), [53, 53]),
        (pandas.DataFrame(x).astype(object), [53, 53]),
    ):
        assert digits_of(table).tolist() == digits


def test_a_sparse_column_beside_others(rng):
    pandas = pytest.importorskip("pandas", reason="needs pandas")
    frame = pandas.DataFrame({"a": rng.normal(size=60), "kind": rng.choice(list("xyz"), 60)})
    sparse = pandas.get_dummies(frame, sparse=True, dtype=float)
    scores = DROCC(random_state=0, **FEW).fit(sparse).decision_function(sparse)
    dense = pandas.get_dummies(frame, dtype=float)
    expected = DROCC(random_state=0, **FEW).fit(dense).decision_function(dense)
    np.testing.assert_array_equal(scores, expected)


@pytest.mark.parametrize("others", ["f2", "f4", "f8"])
def test_each_column_has_its_own_type(others, rng, tmp_path):
    """Integers beside short fractions are none themselves; 0.1 of float16 is 0.1 of all types."""
    pandas = pytest.importorskip("pandas", reason="needs pandas")
    values = rng.normal(size=(200, 2)).astype(others)
    frame = pandas.DataFrame({"a": values[:, 0], "b": values[:, 1]})
    frame["day"], frame["port"] = 20240104, np.int16(8080)
    frame["rate"] = np.full(200, 0.1, "f2")
    fitted = DROCC(random_state=0, **FEW).fit(frame)
    fitted.save(tmp_path / "model")
    usual = fitted.decision_function(frame[:5])
    for detector in (fitted, DROCC.load(tmp_path / "model")):
        for kind in ("f2", "f4", "f8"):
            again = frame[:5].assign(rate=np.full(5, 0.1, kind))
            np.testing.assert_array_equal(detector.decision_function(again), usual)
        for column in ("day", "port"):
            moved = frame[:5].assign(**{column: frame[column][:5] + 1})
            with pytest.warns(UserWarning, match=f"constant in training.*'{column}'"):
                assert (detector.decision_function(moved) > usual + 1).all()
    module = fitted.to_module()
    moved = frame[:5].assign(day=20240105).to_numpy(np.float64)
    assert (module(torch.from_numpy(moved))[0].numpy() > usual + 1).all()


@pytest.mark.parametrize("backend", [None, "numpy_nullable", "pyarrow", "table"])
def test_what_holds_no_numbers_in_any_type_of_pandas(backend, rng, tmp_path):
    pandas = pytest.importorskip("pandas", reason="needs pandas")
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow")
    count = 60
    frame = pandas.DataFrame(
        {
            "a": rng.normal(size=count),
            "when": pandas.date_range("2020", periods=count),
            "day": [datetime.date(2020, 1, 1)] * count,
            "code": ["1", "2"] * (count // 2),
            "gap": [1.5, None] * (count // 2),
            "cents": [Decimal("1.5"), Decimal("2.5")] * (count // 2),
            "yes": [True, False] * (count // 2),
        }
    )
    frame.to_parquet(tmp_path / "x.parquet")
    options = {} if backend in (None, "table") else {"dtype_backend": backend}
    frame = pandas.read_parquet(tmp_path / "x.parquet", **options)
    given = pyarrow.Table.from_pandas if backend == "table" else lambda frame: frame
    detector = DROCC(random_state=0, **FEW)
    for column, message in {
        "when": r"^DROCC: column 'when' must hold numbers, got dates",
        "day": r"^DROCC: column 'day' must hold numbers, got dates",
        "code": r"^DROCC: column 'code' must hold numbers, got categories or text",
        "gap": r"^Input X contains .*\. Column 'gap' has missing values",
    }.items():
        with pytest.raises(ValueError, match=message):
            detector.fit(given(frame[["a", column]]))
    detector.fit(given(frame[["a", "cents", "yes"]]))
    assert list(detector.feature_names_in_) == ["a", "cents", "yes"]
    # An Arrow table of shuffled rows has their index as a column more.
    shuffled = DROCC(random_state=0, **FEW).fit(given(frame[["a", "cents"]].iloc[::-1]))
    assert list(shuffled.feature_names_in_) == ["a", "cents"]
    expected = frame[["a", "cents", "yes"]].to_numpy().astype(float)
    np.testing.assert_array_equal(
        detector.decision_function(given(frame[["a", "cents", "yes"]])),
        DROCC(random_state=0, **FEW).fit(expected).decision_function(expected),
    )


def test_objects_that_are_no_numbers(rng):
    pandas = pytest.importorskip("pandas", reason="needs pandas")
    values = rng.normal(size=40)
    detector = DROCC(random_state=0, **FEW)
    for column, message in (
        (pandas.period_range("2020", periods=40, freq="D"), "got dates or times"),
        (pandas.Series([1.5, pandas.NA] * 20, dtype=object), "Column 'b' has missing values"),
        (pandas.interval_range(0, 40), "got objects of type Interval"),
    ):
        with pytest.raises(ValueError, match=message):
            detector.fit(pandas.DataFrame({"a": values, "b": column}))
    dates = np.array([[value, datetime.date(2020, 1, 1)] for value in values], dtype=object)
    with pytest.raises(ValueError, match=r"^DROCC: column 1 must hold numbers, got dates"):
        detector.fit(dates)
    with pytest.raises(ValueError, match=r"^DROCC: X must be a table of one type, got a struct"):
        detector.fit(pandas.DataFrame({"a": values, "b": values}).to_records(index=False))
