"""What the tests of the command line share: files, and what they give."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import numpy as np

from drocc_ext.cli import main as command_line
from drocc_ext.cli.tables import read_table
from drocc_ext.estimators import DROCC

# Processes of these tests run elsewhere, with the package that is tested.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(command_line.__file__).parents[2])}
TINY = ["--max-steps", "3", "--hidden", "4", "--seed", "0"]

NAMES = ["age", "height", "weight"]


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


def check_one_sentence(capsys, message):
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("drocc-ext: ")
    assert captured.err.count("\n") == 1
    before, _, after = message.partition(" .* ")
    assert before in captured.err
    assert after in captured.err


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
