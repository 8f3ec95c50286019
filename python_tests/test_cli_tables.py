"""The command line trains, scores, finds columns and labels, and says what it is."""

from __future__ import annotations

import io
import os
import sys
import types

import numpy as np
import pytest
from cli_cases import (
    NAMES,
    TINY,
    check_one_sentence,
    expected_scores,
    read_scores,
    write,
    write_csv,
)

import drocc_ext
from drocc_ext.cli.main import main
from drocc_ext.estimators import DROCC

# Such as scikit-learn's for an array where it has seen names: the command line must not cause it.
pytestmark = pytest.mark.filterwarnings("error::UserWarning")


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
        "spaced.csv": text.replace(",", ", ").replace(NAMES[1], f'"{NAMES[1]}"'),
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


def test_text_labels_without_a_header(here, rng, capsys):
    rows = [[value, name] for value, name in zip(rng.normal(size=9), "aaabaaaab", strict=True)]
    write_csv(here / "a.csv", rows)
    chosen = ["--label", "-1", "--normal", "a"]
    assert main(["train", "a.csv", "--out", "model", *chosen, *TINY]) == 0
    assert "trained on 7 of 9 rows and 1 of 1 features" in capsys.readouterr().err


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


@pytest.mark.parametrize("names", [["400.0", "402.0", "404.0"], ["2020", "2021", "2024"]])
def test_a_header_of_numbers(names, here, rng, capsys):
    """Wavelengths, years: a header where the model knows them, or where one says so."""
    rows = rng.normal(size=(30, 3))
    write_csv(here / "a.csv", rows, names)
    write_csv(here / "turned.csv", rows[:, ::-1], names[::-1])
    assert main(["train", "a.csv", "--out", "model", "--header", *TINY]) == 0
    assert "trained on 30 of 30 rows" in capsys.readouterr().err
    assert list(DROCC.load("model").feature_names_in_) == names
    for name in ("a.csv", "turned.csv"):
        assert main(["score", "model", name]) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        np.testing.assert_array_equal(read_scores(captured.out)[:, 0], expected_scores(rows, rows))
    # A column that is asked for by its name is in a header too.
    lines = (here / "a.csv").read_text().splitlines()
    labelled = ["kind," + lines[0], *("good," + line for line in lines[1:])]
    (here / "b.csv").write_text("\n".join(labelled))
    for options in (["--exclude", "kind"], ["--label", "kind", "--normal", "good"]):
        assert main(["train", "b.csv", "--out", "other", *options, *TINY]) == 0
        assert "trained on 30 of 30 rows" in capsys.readouterr().err
        assert list(DROCC.load("other").feature_names_in_) == names
    assert main(["score", "other", "b.csv", *options]) == 0
    captured = capsys.readouterr()
    assert captured.err == "no AUC: every row has the normal label\n"
    assert len(read_scores(captured.out)) == 30


def test_names_with_blanks(here, rng, capsys):
    pandas = pytest.importorskip("pandas", reason="needs pandas")
    rows = rng.normal(size=(30, 3))
    frame = pandas.DataFrame(rows, columns=["a", " b", " c"])
    frame.to_csv("a.csv", index=False)
    frame.to_parquet("a.parquet")
    DROCC(max_steps=3, random_state=0, network=(8,)).fit(pandas.read_csv("a.csv")).save("model")
    found = []
    for name in ("a.csv", "a.parquet"):
        assert main(["score", "model", name]) == 0
        found.append(capsys.readouterr().out)
    assert found[0] == found[1]


def test_outputs_by_their_names(here, rng, capsys):
    pandas = pytest.importorskip("pandas", reason="needs pandas")
    write_csv(here / "a.csv", rng.normal(size=(30, 2)), ["anomaly_score", "größe"])
    assert main(["train", "a.csv", "--out", "model", *TINY]) == 0
    assert main(["score", "model", "a.csv"]) == 0
    expected = read_scores(capsys.readouterr().out)
    for name, separator in (("s.csv.gz", ","), ("s.tsv", "\t"), ("s.tsv.xz", "\t"), ("s.txt", ",")):
        assert main(["score", "model", "a.csv", "--out", name]) == 0
        found = pandas.read_csv(name, sep=separator, float_precision="round_trip")
        np.testing.assert_array_equal(found.to_numpy(), expected)
    capsys.readouterr()
    assert main(["score", "model", "a.csv", "--out", "-"]) == 0
    np.testing.assert_array_equal(read_scores(capsys.readouterr().out), expected)
    assert main(["score", "model", "a.csv", "--out", "scores/"]) == 2
    check_one_sentence(capsys, "the output must be a file, got a directory")
    assert not (here / "-").exists() and not (here / "scores").exists()
    os.symlink("loop", here / "loop")
    assert main(["score", "model", "a.csv", "--out", "loop"]) == 2
    check_one_sentence(capsys, "loop: Too many levels of symbolic links")
    for name in ("s.parquet", "s.npy", "s.csv.zip", "s.json"):
        capsys.readouterr()
        assert main(["score", "model", "a.csv", "--out", name]) == 2
        check_one_sentence(capsys, "the output is text, .csv or .tsv (also .gz), got .")
        assert not (here / name).exists()
    assert main(["explain", "model", "a.csv", "--out", "e.csv"]) == 0
    explained = pandas.read_csv("e.csv")
    assert list(explained) == ["drocc_anomaly_score", "anomaly_score", "größe"]


def test_an_output_that_cannot_hold_a_name(here, rng, capsys, monkeypatch):
    write_csv(here / "a.csv", rng.normal(size=(30, 2)), ["a", "größe"])
    assert main(["train", "a.csv", "--out", "model", *TINY]) == 0
    capsys.readouterr()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert main(["explain", "model", "a.csv"]) == 2
    check_one_sentence(capsys, r"standard output cannot hold '\xf6\xdf' in its encoding ascii")
