"""What the commands do. Each takes the parsed arguments and returns the exit status."""

from __future__ import annotations

import argparse
import csv
import importlib
import io
import itertools
import os
import platform
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sklearn
import torch

import drocc_ext
from drocc_ext import metrics
from drocc_ext._files import atomic_write
from drocc_ext.cli.main import OPTIONS, begin_output, say
from drocc_ext.cli.tables import STDIN, Table, read_table
from drocc_ext.cli.text import PACKERS
from drocc_ext.estimators import DROCC
from drocc_ext.estimators.inputs import check_parameters
from drocc_ext.estimators.recipes import recipe_of
from drocc_ext.models.persistence import check_place
from drocc_ext.training.ranks import OneProcess, all_ranks

STDOUT = "-"
_NO_TEXT = (
    *(".parquet", ".npy", ".npz", ".json", ".xlsx", ".xls", ".feather", ".arrow", ".pkl", ".h5"),
    *(".zip", ".zst"),
)


def info(arguments: argparse.Namespace) -> int:
    """Print versions and how the native library was built."""
    lines = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__,
        **drocc_ext.build_info(),
    }
    _print("".join(f"{name}: {value}\n" for name, value in lines.items()))
    return 0


def bench(arguments: argparse.Namespace) -> int:
    """Print how long each operator takes here."""
    from drocc_ext.cli.bench import table

    for option in ("rows", "columns", "repeats"):
        value = getattr(arguments, option)
        if not 1 <= value <= 2**31 - 1:
            raise ValueError(f"--{option} must be from 1 to {2**31 - 1}, got {value}")
    try:
        if torch.device(arguments.device).type not in ("cpu", "cuda"):
            raise AssertionError("the operators run on cpu and cuda")
        torch.empty(0, device=arguments.device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"cannot use device {arguments.device!r}: {reason}") from error
    _print(table(arguments.device, arguments.rows, arguments.columns, arguments.repeats))
    return 0


def demo(arguments: argparse.Namespace) -> int:
    """Run the demonstration."""
    try:
        from drocc_ext import demo

        _check_writable(Path(arguments.out))
        begin_output(arguments.out)
        demo.main(arguments.out)
    except ImportError as error:
        raise ValueError(f"the demo needs the packages of drocc-ext[demo]: {error}") from error
    return 0


def train(arguments: argparse.Namespace) -> int:
    """Train on the normal rows of a table and save the model."""
    with _ranks(arguments) as ranks:
        return _train(arguments, ranks)


def _train(arguments: argparse.Namespace, ranks: OneProcess) -> int:
    out = Path(arguments.out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: the output must be a directory, got a file")
    _check_writable(out)
    check_place("train", out)
    if arguments.data == arguments.negatives == STDIN:
        raise ValueError("DATA and --negatives cannot both be standard input")
    chosen = {
        name: value
        for _, name, _, _ in (*OPTIONS, ("", "metric", str, ""), ("", "device", str, ""))
        if (value := getattr(arguments, name)) is not None
    }
    detector = DROCC(
        **chosen,
        random_state=arguments.seed,
        verbose=ranks.is_first and sys.stderr is not None and sys.stderr.isatty(),
    )
    table = _read(arguments)
    rows = table.values
    if table.labels is not None:
        rows = rows[_is_normal(arguments, table)]
    negatives = None if arguments.negatives is None else _read_negatives(arguments, table)
    if len(rows) < 2:
        raise ValueError(f"{arguments.data}: must hold two normal rows or more, got {len(rows)}")
    _check_memory(detector, *rows.shape)
    known = None if negatives is None else _named(negatives, table.names)
    detector.fit(_named(rows, table.names, table.kinds), X_negative=known)
    begin_output(out)
    ranks.first_alone(lambda: detector.save(out))
    if not ranks.is_first:
        return 0
    used = detector._inputs(rows[:1].astype(np.float64)).shape[1]
    also = "" if negatives is None else f", {len(negatives)} negatives"
    say(
        f"trained on {len(rows)} of {len(table.values)} rows{also} and {used} of {rows.shape[1]} "
        f"features, radius {detector.radius_:.4g}, saved in {out}"
    )
    return 0


@contextmanager
def _ranks(arguments: argparse.Namespace) -> Iterator[OneProcess]:
    """Join the processes that torchrun has started, if it has started several."""
    size = os.environ.get("WORLD_SIZE", "1")
    if not size.isdecimal():
        raise ValueError(f"WORLD_SIZE must be a number of processes, got {size!r}")
    if int(size) == 1 or "RANK" not in os.environ:
        yield OneProcess()
        return
    if STDIN in (arguments.data, arguments.negatives):
        raise ValueError("under torchrun DATA must be a file, got standard input")
    from drocc_ext.training.distributed import join_ranks

    check_parameters(DROCC(device=arguments.device or "cpu"))  # before it is used
    join_ranks(torch.device(arguments.device or "cpu"))
    try:
        yield all_ranks()
    finally:
        torch.distributed.destroy_process_group()


def score(arguments: argparse.Namespace) -> int:
    """Score a table with a saved model."""
    detector, table, rows = _model_and_rows(arguments)
    scores = detector.decision_function(rows)
    lines = zip(scores.tolist(), (scores > detector.threshold_).astype(int), strict=True)
    if table.labels is not None and bool((normal := _is_normal(arguments, table)).all()):
        say("no AUC: every row has the normal label")
    elif table.labels is not None:
        auc = metrics.roc_auc(-scores, normal)
        f1 = metrics.f1_top_n(-scores, normal)
        recall = metrics.recall_at_fpr(-scores, normal, 0.03)
        say(f"AUC {auc:.4f}, F1 of the anomalies {f1:.4f}, recall at 3 % FPR {recall:.4f}")
    _write(arguments, ["anomaly_score", "anomalous"], lines, f"scored {len(rows)} rows")
    return 0


def explain(arguments: argparse.Namespace) -> int:
    """Write the contribution of each column to the score of each row of a table."""
    detector, table, rows = _model_and_rows(arguments)
    parts = detector.explain(rows)
    names = table.names or [f"column {i}" for i in range(rows.shape[1])]
    first = "anomaly_score"
    while first in names:  # a feature may be the score of another detector
        first = f"drocc_{first}"
    scores = detector.decision_function(rows)
    lines = zip(scores.tolist(), *parts.T.tolist(), strict=True)
    _write(arguments, [first, *names], lines, f"explained {len(rows)} rows")
    return 0


def _model_and_rows(
    arguments: argparse.Namespace,
) -> tuple[DROCC, Table, Any]:
    """Check the output, load the model and read the rows it is to look at."""
    out = _out(arguments)
    if out is not None and not out.parent.is_dir():
        raise ValueError(f"{out}: {out.parent} must be an existing directory")
    if out is not None and (out.is_dir() or arguments.out.endswith(os.sep)):
        raise ValueError(f"{out}: the output must be a file, got a directory")
    if out is not None and out.is_file() and _is_file(arguments.data, out):
        raise ValueError(f"{out}: the output must be another file than the data")
    if (
        out is not None
        and Path(os.path.realpath(out)).suffix in (".json", ".safetensors")
        and _is_file(arguments.model, Path(os.path.realpath(out)).parent)
    ):
        raise ValueError(f"{out}: the output must be no file of the model")
    if out is not None and _form(out) in _NO_TEXT:
        raise ValueError(f"{out}: the output is text, .csv or .tsv (also .gz), got {_form(out)}")
    if out is None:
        _print("")
    detector = DROCC.load(arguments.model)
    names = getattr(detector, "feature_names_in_", None)
    table = _read(arguments, None if names is None else list(names))
    rows = _features(arguments.data, table, detector.n_features_in_)
    if names is None or table.names is None:
        # The columns are chosen here; scikit-learn would warn where only one side has names.
        if names is not None:
            del detector.feature_names_in_
            table = replace(table, names=list(names))
        return detector, table, rows
    return detector, table, _named(rows, list(names))


def _named(rows: npt.NDArray[Any], names: list[str] | None, kinds: list[str] | None = None) -> Any:
    """Give columns their names, for sentences and for the model, and the types that they had."""
    if names is None:
        return rows
    frame = importlib.import_module("pandas").DataFrame(rows, columns=names)
    return frame if kinds is None else frame.astype(dict(zip(names, kinds, strict=True)))


def _write(
    arguments: argparse.Namespace, header: list[str], lines: Iterable[Any], done: str
) -> None:
    out = _out(arguments)
    tabs = out is not None and _form(out) == ".tsv"
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t" if tabs else ",", lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    if out is None:
        _print(text.getvalue())
    else:
        packed = PACKERS.get(out.suffix.lower(), bytes)(text.getvalue().encode())
        begin_output(out)
        atomic_write(out, lambda file: file.write(packed))
        say(f"{done}, written to {out}")


def _out(arguments: argparse.Namespace) -> Path | None:
    """Say which file the table goes into; None is standard output."""
    return None if arguments.out in (None, STDOUT) else Path(arguments.out)


def _form(out: Path) -> str:
    """Read from its name what a file holds, packed or not."""
    return Path(out.stem if out.suffix.lower() in PACKERS else out.name).suffix.lower()


def _is_file(path: str, other: Path) -> bool:
    with suppress(OSError, ValueError):
        return os.path.samefile(path, other)
    return False


def _print(text: str) -> None:
    if sys.stdout is None:
        raise ValueError("standard output is closed")
    try:
        if text:
            begin_output("standard output")
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except UnicodeEncodeError as error:
        raise ValueError(
            f"standard output cannot hold {text[error.start : error.end]!a} in its encoding "
            f"{error.encoding}; --out FILE.csv is UTF-8, as is PYTHONIOENCODING=utf-8"
        ) from error
    except OSError as error:
        error.filename = "standard output"
        raise


def _read(arguments: argparse.Namespace, select: list[str] | None = None) -> Table:
    if (arguments.label is None) != (arguments.normal is None):
        raise ValueError(
            "--label and --normal go together: where labels are, and which is normal; "
            "--exclude leaves a column out"
        )
    return read_table(
        arguments.data,
        key=arguments.key,
        label=arguments.label,
        exclude=arguments.exclude,
        select=select,
        header=arguments.header,
    )


def _read_negatives(arguments: argparse.Namespace, table: Table) -> npt.NDArray[np.float64]:
    path = arguments.negatives
    key = arguments.key if Path(path).suffix.lower() == ".npz" else None
    negatives = read_table(
        path,
        key=key,
        label=arguments.label,
        exclude=arguments.exclude,
        select=table.names,
        like=table,
        header=arguments.header,
    )
    rows = _features(path, negatives, table.values.shape[1])
    if negatives.labels is None:
        return rows
    anomalous = ~negatives.labels.equal(arguments.normal)
    other = negatives.labels.written_otherwise(arguments.normal)
    if other is not None:  # text is compared as it is written, and these would be trained on
        raise ValueError(
            f"{path}: labels must be written as --normal is, {arguments.normal!r}, got {other!r} "
            f"in {arguments.label!r}"
        )
    if not anomalous.any():
        raise ValueError(
            f"{path}: must hold rows with another label than {arguments.normal!r} in "
            f"{arguments.label!r}, got none"
        )
    chosen: npt.NDArray[np.float64] = rows[anomalous]
    return chosen


def _features(path: str, table: Table, count: int) -> npt.NDArray[np.float64]:
    if table.values.shape[1] != count:
        raise ValueError(f"{path}: must have {count} features, got {table.values.shape[1]}")
    return table.values


def _is_normal(arguments: argparse.Namespace, table: Table) -> npt.NDArray[np.bool_]:
    assert table.labels is not None
    normal = table.labels.equal(arguments.normal)
    if not normal.any():
        raise ValueError(
            f"{arguments.data}: no row has the label {arguments.normal!r} in {arguments.label!r}, "
            f"which holds {table.labels.listed()}"
        )
    return normal


def _check_writable(out: Path) -> None:
    """Say before a long training what would fail after it."""
    place = out.absolute()
    while not place.exists():
        if place.is_symlink():
            raise ValueError(f"{out}: {place} must be a directory, got a link to nothing")
        place = place.parent
    if not place.is_dir():
        raise ValueError(f"{out}: {place} must be a directory, got a file")
    if not os.access(place, os.W_OK):
        raise PermissionError(13, "the directory cannot be written", str(place))
    config = out / "config.json"  # of a former model
    if config.is_file() and not os.access(config, os.W_OK):
        raise PermissionError(13, "the file is read-only", str(config))


def _check_memory(detector: DROCC, rows: int, columns: int) -> None:
    """Refuse a network that this machine has no memory for; the system would end the process."""
    if not hasattr(os, "sysconf"):
        return
    recipe = recipe_of(detector.get_params(deep=False))
    widths = recipe.network
    widths = (detector.network or widths) if detector.hidden is None else (detector.hidden,)
    if not all(isinstance(width, int) for width in widths):
        return
    has = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    sizes = [columns + 1, *widths, 1]
    weights = sum(a * b for a, b in itertools.pairwise(sizes))
    members = recipe.members_on_few_rows if rows < recipe.few_rows else 1
    batch = min(rows, recipe.batch_size) if isinstance(recipe.batch_size, int) else rows
    # Gradients, Adam's two moments and two orders of the weights for one; weights of all, then a
    # copy in float64. In a step some vectors of units for each row.
    needs = weights * (5 * 4 + members * (4 + 8)) + 8 * 4 * batch * sum(widths)
    if needs > has:
        raise ValueError(
            f"there is not enough memory for {', '.join(map(str, widths))} hidden units, which "
            f"need {needs / 2**30:.3g} GiB of the machine's {has / 2**30:.3g}"
        )
