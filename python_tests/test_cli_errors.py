"""What goes wrong on the command line is one sentence, and leaves the files as they were."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from cli_cases import ENVIRONMENT, TINY, check_one_sentence
from processes import HANG

from drocc_ext import DROCC
from drocc_ext.cli.main import main

# Such as scikit-learn's for an array where it has seen names: the command line must not cause it.
pytestmark = pytest.mark.filterwarnings("error::UserWarning")


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
        "'x' in row 1 of the data, column 1",
    ),
    (
        "a.csv",
        "a,b\n1,2\n3,\n",
        [],
        "'' in row 1 of the data, column 'b'",
    ),
    (
        "a.csv",
        "id,2020\n1,2\n",
        [],
        "'id' in row 0 of the data, column 0",
    ),
    ("a.csv", "a,b\n1,2\n1,2\n7\xa0,8\n", [], "'7\\xa0' in row 2 of the data, column 'a'"),
    ("a.csv", "a,b\n1,2\n--inf,8\n", [], "'--inf' in row 1 of the data, column 'a'"),
    ("a.csv", "1,2\n\n3,4,5\n", [], "every line must have 2 cells, got 3 in line 3"),
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
    ("a.csv", "1,2\n", [], "a.csv: must hold two normal rows or more, got 1"),
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--contamination", "0.7"], "contamination must be in (0, 0.5], got 0.7"),
        (["--radius", "-1"], "radius must be > 0"),
        (["--gamma", "0.5"], "gamma must be >= 1"),
        (["--hidden", "0"], "hidden must be >= 1, got 0"),
        (["--device", "quantum"], "cannot use device 'quantum'"),
        (["--device", "hpu"], "cannot use device 'hpu'"),
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


def test_a_call_leaves_its_callers_output_alone(here):
    """An error in a process that goes on: its standard output and descriptors stay."""
    code = """
import os
from drocc_ext.cli.main import main

def call():
    return main(["train", "no.csv", "--out", "m"]), len(os.listdir("/proc/self/fd"))

before = call()[1]
status, after = call()
print(status, after - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "2 0\n"


def test_scores_do_not_replace_the_model(here, rng, capsys):
    np.save(here / "a.npy", rng.normal(size=(30, 3)))
    assert main(["train", "a.npy", "--out", "model", *TINY]) == 0
    capsys.readouterr()
    before = {path.name: path.read_bytes() for path in (here / "model").iterdir()}
    for name in before:
        assert main(["score", "model", "a.npy", "--out", f"model/{name}"]) == 2
        check_one_sentence(capsys, "the output must be no file of the model")
        (here / "out.csv").symlink_to(here / "model" / name)
        assert main(["score", "model", "a.npy", "--out", "out.csv"]) == 2
        check_one_sentence(capsys, "the output must be no file of the model")
        (here / "out.csv").unlink()
    assert {path.name: path.read_bytes() for path in (here / "model").iterdir()} == before


def test_training_does_not_replace_what_is_no_model(here, rng, capsys):
    np.save(here / "a.npy", rng.normal(size=(30, 3)))
    (here / "other").mkdir()
    (here / "other" / "config.json").write_text('{"model_type": "bert"}')
    assert main(["train", "a.npy", "--out", "other", *TINY]) == 2
    check_one_sentence(capsys, "must not be there or be of a saved model")
    assert (here / "other" / "config.json").read_text() == '{"model_type": "bert"}'
    (here / "link").symlink_to("nothing")
    assert main(["train", "a.npy", "--out", "link", *TINY]) == 2
    check_one_sentence(capsys, "must be a directory, got a link to nothing")


def test_a_full_device_is_named(here, rng, capsys):
    np.save(here / "a.npy", rng.normal(size=(30, 3)))
    assert main(["train", "a.npy", "--out", "model", *TINY]) == 0
    capsys.readouterr()
    assert main(["score", "model", "a.npy", "--out", "/dev/full"]) == 2
    check_one_sentence(capsys, "/dev/full: No space left")


def test_the_number_of_processes_is_checked(here, rng, capsys, monkeypatch):
    np.save(here / "a.npy", rng.normal(size=(30, 3)))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "two")
    assert main(["train", "a.npy", "--out", "model", *TINY]) == 2
    check_one_sentence(capsys, "WORLD_SIZE must be a number of processes, got 'two'")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for device in ("foo", "meta", *([] if torch.cuda.is_available() else ["cuda"])):
        assert main(["train", "a.npy", "--out", "model", "--device", device, *TINY]) == 2
        check_one_sentence(capsys, f"cannot use device '{device}'")


def interrupted(*_, **__):
    raise KeyboardInterrupt


def test_an_interrupt_is_one_sentence(here, rng, capsys, monkeypatch):
    np.save(here / "a.npy", rng.normal(size=(20, 3)))
    monkeypatch.setattr("drocc_ext.cli.commands.DROCC.fit", interrupted)
    assert main(["train", "a.npy", "--out", "model", *TINY]) == 130
    assert capsys.readouterr().err == "drocc-ext: interrupted before anything was written\n"
    assert {p.name for p in here.iterdir()} == {"a.npy"}


def test_an_interrupt_amid_output_does_not_say_that_nothing_was_written(
    here, rng, capsys, monkeypatch
):
    np.save(here / "a.npy", rng.normal(size=(20, 3)))
    assert main(["train", "a.npy", "--out", "model", *TINY]) == 0
    capsys.readouterr()
    save = DROCC.save
    monkeypatch.setattr(DROCC, "save", lambda *args: interrupted(save(*args)))
    assert main(["train", "a.npy", "--out", "other", *TINY]) == 130
    assert capsys.readouterr().err == "drocc-ext: interrupted while writing other\n"
    assert (here / "other" / "config.json").exists()

    monkeypatch.setattr("drocc_ext.cli.commands.atomic_write", interrupted)
    assert main(["score", "model", "a.npy", "--out", "b.csv"]) == 130
    assert capsys.readouterr().err == "drocc-ext: interrupted while writing b.csv\n"
    assert not (here / "b.csv").exists()
    # The next command has written nothing yet.
    monkeypatch.setattr("drocc_ext.cli.commands.DROCC.load", interrupted)
    assert main(["score", "model", "a.npy", "--out", "b.csv"]) == 130
    assert capsys.readouterr().err == "drocc-ext: interrupted before anything was written\n"


def test_warnings_are_one_line(here, rng, capsys):
    np.save(here / "a.npy", rng.normal(size=(30, 3)))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["train", "a.npy", "--out", "model", "--step-size", "0.01", *TINY]) == 0
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("drocc-ext: warning: the adversarial search travels 5 * ")
    assert second.startswith("trained on 30 of 30 rows")


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


@pytest.mark.parametrize("rows", [pytest.param(10, marks=pytest.mark.slow), 20000])
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
