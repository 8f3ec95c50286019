"""The command line: `drocc-ext info | demo | train | score`."""

from __future__ import annotations

import argparse
import csv
import io
import os
import platform
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import numpy as np
import numpy.typing as npt
import sklearn
import torch

import drocc_ext
from drocc_ext import metrics
from drocc_ext.cli.tables import Table, read_table, same_label
from drocc_ext.estimators import DROCC
from drocc_ext.models.persistence import atomic_write
from drocc_ext.training.loss import METRICS

# option, parameter of DROCC, type, help
_OPTIONS: tuple[tuple[str, str, type, str], ...] = (
    ("--radius", "radius", float, "inner radius, in standard deviations (default: from the data)"),
    ("--gamma", "gamma", float, "outer radius divided by inner radius"),
    ("--steps", "num_steps", int, "ascent steps of the search"),
    ("--step-size", "step_size", float, "length of a step, in radii"),
    ("--noise-scale", "noise_scale", float, "standard deviation of the starting noise"),
    ("--mu", "mu", float, "weight of the adversarial term"),
    ("--hidden", "hidden", int, "hidden units"),
    ("--max-steps", "max_steps", int, "optimizer steps"),
    ("--batch-size", "batch_size", int, "rows per optimizer step"),
    ("--learning-rate", "learning_rate", float, "Adam's learning rate at the start"),
    ("--weight-decay", "weight_decay", float, "Adam's weight decay"),
    ("--contamination", "contamination", float, "share of training rows to call anomalous"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Data go to standard output, all else to standard error. A fault is reported there in one
    sentence, with exit status 2 and without a half-written output.

    Args:
        argv: Arguments after the program's name; None takes those of the process.

    Returns:
        The exit status.

    Raises:
        SystemExit: As argparse does, with status 2 for arguments it cannot read.
    """
    arguments = _parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            status: int = arguments.run(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The reader, such as `head`, has what it wants; the interpreter's own flush must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        _say("drocc-ext: interrupted, nothing was written")
        return 130
    except OSError as error:
        message = str(error) if error.filename is None else f"{error.filename}: {error.strerror}"
    except (ValueError, FloatingPointError) as error:
        message = str(error)
    _say(f"drocc-ext: {' '.join(message.split())}")
    return 2


def _info(arguments: argparse.Namespace) -> int:
    lines = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__,
        **drocc_ext.build_info(),
    }
    for name, value in lines.items():
        print(f"{name}: {value}")
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    try:
        from drocc_ext import demo

        demo.main(arguments.out)
    except ImportError as error:
        raise ValueError(f"the demo needs the packages of drocc-ext[demo]: {error}") from error
    return 0


def _train(arguments: argparse.Namespace) -> int:
    out = Path(arguments.out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: the output must be a directory, got a file")
    table = _read(arguments)
    rows = table.values
    if table.labels is not None:
        rows = rows[_is_normal(arguments, table.labels)]
    negatives = None if arguments.negatives is None else _read_negatives(arguments, table)
    detector = DROCC(
        **{parameter: getattr(arguments, parameter) for _, parameter, _, _ in _OPTIONS},
        metric=arguments.metric,
        device=arguments.device,
        random_state=arguments.seed,
        verbose=sys.stderr.isatty(),
    ).fit(rows, X_negative=negatives)
    if table.names is not None:
        detector.feature_names_in_ = np.asarray(table.names, dtype=object)
    detector.save(out)
    used = detector.network_.config["in_features"]
    also = "" if negatives is None else f", {len(negatives)} negatives"
    _say(
        f"trained on {len(rows)} of {len(table.values)} rows{also} and {used} of {rows.shape[1]} "
        f"features, radius {detector.radius_:.4g}, saved in {out}"
    )
    return 0


def _score(arguments: argparse.Namespace) -> int:
    out = None if arguments.out is None else Path(arguments.out)
    if out is not None and not out.parent.is_dir():
        raise ValueError(f"{out}: {out.parent} must be an existing directory")
    if out is not None and out.is_dir():
        raise ValueError(f"{out}: the output must be a file, got a directory")
    detector = DROCC.load(arguments.model)
    names = getattr(detector, "feature_names_in_", None)
    if names is not None:
        # The columns are chosen here; scikit-learn would warn of an array without names.
        del detector.feature_names_in_
    table = _read(arguments)
    rows = _features(arguments.data, table, names, detector.n_features_in_)
    scores = detector.decision_function(rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["anomaly_score", "anomalous"])
    writer.writerows(zip(scores.tolist(), (scores > detector.threshold_).astype(int), strict=True))
    if table.labels is not None:
        normal = _is_normal(arguments, table.labels)
        auc = metrics.roc_auc(-scores, normal)
        f1 = metrics.f1_top_n(-scores, normal)
        recall = metrics.recall_at_fpr(-scores, normal, 0.03)
        _say(f"AUC {auc:.4f}, F1 of the anomalies {f1:.4f}, recall at 3 % FPR {recall:.4f}")
    if out is None:
        print(text.getvalue(), end="")
    else:
        atomic_write(out, lambda file: file.write(text.getvalue().encode()))
        _say(f"scored {len(rows)} rows, written to {out}")
    return 0


def _read(arguments: argparse.Namespace) -> Table:
    if (arguments.label is None) != (arguments.normal is None):
        raise ValueError("--label and --normal go together: where labels are, and which is normal")
    return read_table(arguments.data, key=arguments.key, label=arguments.label)


def _read_negatives(arguments: argparse.Namespace, table: Table) -> npt.NDArray[np.float64]:
    path = arguments.negatives
    key = arguments.key if Path(path).suffix.lower() == ".npz" else None
    negatives = read_table(path, key=key, label=arguments.label, like=table)
    rows = _features(path, negatives, table.names, table.values.shape[1])
    if negatives.labels is None:
        return rows
    anomalous = np.array([not same_label(label, arguments.normal) for label in negatives.labels])
    if not anomalous.any():
        raise ValueError(
            f"{path}: must hold rows with another label than {arguments.normal!r} in "
            f"{arguments.label!r}, got none"
        )
    chosen: npt.NDArray[np.float64] = rows[anomalous]
    return chosen


def _features(
    path: str, table: Table, names: Sequence[str] | None, count: int
) -> npt.NDArray[np.float64]:
    rows = table.values if names is None else table.select(path, list(names))
    if rows.shape[1] != count:
        raise ValueError(f"{path}: must have {count} features, got {rows.shape[1]}")
    return rows


def _is_normal(arguments: argparse.Namespace, labels: list[str]) -> npt.NDArray[np.bool_]:
    normal = np.array([same_label(label, arguments.normal) for label in labels])
    if not normal.any():
        found = ", ".join(sorted(set(labels))[:8])
        raise ValueError(
            f"{arguments.data}: no row has the label {arguments.normal!r} in {arguments.label!r}, "
            f"which holds {found}"
        )
    return normal


def _say(message: str) -> None:
    print(message, file=sys.stderr)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    _say(f"drocc-ext: warning: {message}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="drocc-ext", description="Deep Robust One-Class Classification of tables."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    info = commands.add_parser("info", help="versions and how the native library was built")
    info.set_defaults(run=_info)

    demo = commands.add_parser("demo", help="train on small data sets, with tables and a picture")
    demo.add_argument("--out", default="drocc-demo", metavar="DIR", help="default: %(default)s")
    demo.set_defaults(run=_demo)

    train = commands.add_parser("train", help="train on normal rows and save the model")
    _add_data(train)
    train.add_argument("--out", required=True, metavar="DIR", help="where to save the model")
    defaults = DROCC().get_params()
    for option, parameter, kind, text in _OPTIONS:
        default = defaults[parameter]
        shown = text if default is None else f"{text} (default: {default:g})"
        train.add_argument(
            option, dest=parameter, type=kind, default=default, metavar="X", help=shown
        )
    train.add_argument(
        "--negatives",
        metavar="FILE",
        help="known anomalies: a file as DATA, of the same features (and --key, if .npz); where it "
        "has the label, rows with the normal one are left out",
    )
    train.add_argument(
        "--metric",
        choices=METRICS,
        default="l2",
        help="of the shell; mahalanobis weighs the features by their influence (default: l2)",
    )
    train.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    train.add_argument("--seed", type=int, help="for the same result every time")
    train.set_defaults(run=_train)

    score = commands.add_parser("score", help="score rows with a saved model")
    score.add_argument("model", metavar="DIR", help="where train saved the model")
    _add_data(score)
    score.add_argument("--out", metavar="FILE.csv", help="default: standard output")
    score.set_defaults(run=_score)
    return parser


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", help="a .csv, .npy or .npz file of numbers")
    parser.add_argument("--key", help=".npz: array of the features (default: X, or the only one)")
    parser.add_argument(
        "--label",
        help="labels, not a feature: a column by name or position from 0 (.csv), by position "
        "(.npy), or an array (.npz)",
    )
    parser.add_argument("--normal", metavar="VALUE", help="label of normal rows; needs --label")
