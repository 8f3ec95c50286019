"""The command line: `drocc-ext info | bench | demo | train | score | explain`.

Only a command imports torch.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType, ModuleType
from typing import Any, TextIO

from drocc_ext import __version__


def _share_or_auto(text: str) -> float | str:
    return "auto" if text == "auto" else float(text)


def _widths(text: str) -> tuple[int, ...]:
    return tuple(int(width) for width in text.split(","))


_share_or_auto.__name__, _widths.__name__ = "share", "units"  # argparse names them in its errors

# option, parameter of DROCC, type, help; a default in it is the estimator's, which a test compares
OPTIONS: tuple[tuple[str, str, Callable[[str], Any], str], ...] = (
    ("--network", "network", _widths, "units of the hidden layers (default: 256,256)"),
    ("--hidden", "hidden", int, "units of the paper's one hidden layer: Algorithm 1 to the letter"),
    ("--radius", "radius", float, "inner radius, in scaled columns (default: from the data)"),
    ("--gamma", "gamma", float, "outer radius divided by inner radius (default: 1)"),
    ("--steps", "num_steps", int, "ascent steps of the search (default: 3)"),
    ("--step-size", "step_size", float, "length of a step, in radii (default: 0.2)"),
    ("--noise-scale", "noise_scale", float, "deviation of the starting noise (default: 1)"),
    ("--mu", "mu", float, "weight of the adversarial term (default: 1)"),
    ("--max-steps", "max_steps", int, "optimizer steps (default: 400)"),
    ("--batch-size", "batch_size", int, "rows per optimizer step (default: 128)"),
    ("--learning-rate", "learning_rate", float, "Adam's, at the start (default: 0.003)"),
    ("--weight-decay", "weight_decay", float, "Adam's weight decay (default: 0)"),
    (
        "--contamination",
        "contamination",
        _share_or_auto,
        "share of normal rows that may be called anomalous, or auto (default: 0.1)",
    ),
)
METRICS = ("l2", "mahalanobis")

_INTERNAL_ERROR = 70  # as in sysexits.h
_INTERRUPTED = 130
_LARGEST = 2**31 - 1
_NOTHING = "before anything was written"
_interrupted = False
_importing = False
_written = _NOTHING


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Data go to standard output, all else to standard error. Whatever is wrong with a file or an
    option is said there in one sentence, with exit status 2 and without a half-written output. An
    error of another kind is the library's own: its name is said, with status 70, and where it
    happened if the environment variable DROCC_TRACEBACK is set.

    Args:
        argv: Arguments after the program's name; None takes those of the process, which then
            belongs to this call.

    Returns:
        The exit status.

    Raises:
        SystemExit: As argparse does, with status 2 for arguments it cannot read.
    """
    if argv is None:
        _on_sigint(_on_interrupt)
    try:
        return _guarded(argv)
    except KeyboardInterrupt:  # which came while another error was at hand
        return _say_interrupted()
    finally:
        if argv is None:  # nothing is left to interrupt but the interpreter's end
            _on_sigint(signal.SIG_IGN)
            if _interrupted:
                _forget_interrupt()


def _guarded(argv: Sequence[str] | None) -> int:
    try:
        return _run(argv)
    except BrokenPipeError:
        # The reader, such as `head`, has what it wants.
        _leave_stdout(argv)
        return 0
    except KeyboardInterrupt:
        return _say_interrupted()
    except OSError as error:
        message = str(error) if error.filename is None else f"{error.filename}: {error.strerror}"
        _leave_stdout(argv)
    except (ValueError, FloatingPointError) as error:
        message = str(error)
    except MemoryError as error:
        message = f"there is not enough memory ({error})"
    except Exception as error:
        if _interrupted:  # an import that was interrupted may fail with what it likes
            return _say_interrupted()
        if not _is_out_of_memory(error):
            say(f"drocc-ext: internal error: {type(error).__name__}: {_one_line(str(error))}")
            if "DROCC_TRACEBACK" in os.environ:
                importlib.import_module("traceback").print_exc()
            return _INTERNAL_ERROR
        message = f"there is not enough memory ({str(error).partition(chr(10))[0]})"
    say(f"drocc-ext: {_one_line(message)}")
    return 2


def say(message: str) -> None:
    """Print a line to standard error, if there is one and it takes it.

    Args:
        message: The line.
    """
    if sys.stderr is not None:  # print would take standard output instead
        with suppress(OSError):  # a full device is no reason to fail
            print(message, file=sys.stderr)


def begin_output(place: object) -> None:
    """Take note that from now on an interrupt may leave something written.

    Args:
        place: Where.
    """
    global _written
    _written = f"while writing {place}"


def _run(argv: Sequence[str] | None) -> int:
    global _written
    _written = _NOTHING
    arguments = _parser().parse_args(argv)
    for option, name, kind, _ in (*OPTIONS, ("--seed", "seed", int, "")):
        value = getattr(arguments, name, None)
        values = value if isinstance(value, tuple) else (value,)
        for number in values if kind in (int, _widths) else ():
            if number is not None and number > _LARGEST:
                raise ValueError(f"{option} must be at most {_LARGEST}, got {number}")
    if (getattr(arguments, "seed", None) or 0) < 0:
        raise ValueError(f"--seed must be >= 0, got {arguments.seed}")
    if getattr(arguments, "out", None) == "":
        raise ValueError("--out must name a place, got ''")
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        commands = _imported("drocc_ext.cli.commands")
        status: int = getattr(commands, arguments.command)(arguments)
    if sys.stdout is not None:
        sys.stdout.flush()
    return status


def _on_sigint(action: Any) -> None:
    with suppress(ValueError):  # only the main thread may
        signal.signal(signal.SIGINT, action)


def _imported(name: str) -> ModuleType:
    """Import a module before an interrupt counts: C++ that is interrupted may abort the process."""
    global _importing
    _importing = True
    try:
        module = importlib.import_module(name)
    finally:
        _importing = False
    if _interrupted:
        raise KeyboardInterrupt
    return module


def _on_interrupt(number: int, frame: FrameType | None) -> None:
    global _interrupted
    first, _interrupted = not _interrupted, True
    if not (_importing and first):  # who is impatient asks twice
        raise KeyboardInterrupt


def _forget_interrupt() -> None:
    """Let the interpreter end with the status it is given.

    Code that a C extension runs while it is imported, and that is interrupted, makes CPython end
    the process by the signal, whatever was caught since. Running any code so again undoes that.
    """
    with suppress(Exception):
        ctypes = importlib.import_module("ctypes")
        ctypes.pythonapi.PyRun_SimpleString(b"")


def _say_interrupted() -> int:
    say(f"drocc-ext: interrupted {_written}")
    return _INTERRUPTED


def _leave_stdout(argv: Sequence[str] | None) -> None:
    """Let the interpreter's own flush at its end have somewhere to go, if this call is its last."""
    if argv is not None:
        return
    with suppress(OSError, ValueError, AttributeError):  # there may be none
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _is_out_of_memory(error: Exception) -> bool:
    words = (
        "not enough memory",
        "can't allocate memory",
        "out of memory",
        "Unable to allocate",
        "Storage size",
    )
    return any(part in str(error) for part in words)


def _one_line(message: str) -> str:
    return " ".join(message.split())


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    say(f"drocc-ext: warning: {_one_line(str(message))}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="drocc-ext", description="Deep Robust One-Class Classification of tables."
    )
    parser.add_argument("--version", action="version", version=f"drocc-ext {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")

    commands.add_parser("info", help="versions and how the native library was built")

    bench = commands.add_parser("bench", help="time the operators on this machine")
    bench.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    bench.add_argument("--rows", type=int, default=256, help="of a batch (default: %(default)s)")
    bench.add_argument("--columns", type=int, default=784, help="default: %(default)s")
    bench.add_argument("--repeats", type=int, default=21, help="default: %(default)s")

    demo = commands.add_parser("demo", help="train on small data sets, with tables and a picture")
    demo.add_argument("--out", default="drocc-demo", metavar="DIR", help="default: %(default)s")

    train = commands.add_parser("train", help="train on normal rows and save the model")
    _add_data(train)
    train.add_argument("--out", required=True, metavar="DIR", help="where to save the model")
    for option, parameter, kind, text in OPTIONS:
        train.add_argument(option, dest=parameter, type=kind, metavar="X", help=text)
    train.add_argument(
        "--negatives",
        metavar="FILE",
        help="known anomalies: a file as DATA, of the same features (and --key, if .npz); where it "
        "has the label, rows with the normal one are left out",
    )
    train.add_argument(
        "--metric",
        choices=METRICS,
        help="of the shell; mahalanobis weighs the features by their influence (default: l2)",
    )
    train.add_argument("--device", help="cpu, cuda or cuda:N (default: cpu)")
    train.add_argument(
        "--seed", type=int, help="for the same result every time (with one number of threads)"
    )

    score = commands.add_parser("score", help="score rows with a saved model")
    score.add_argument("model", metavar="DIR", help="where train saved the model")
    _add_data(score)
    score.add_argument("--out", metavar="FILE.csv", help="default, and -: standard output")

    explain = commands.add_parser("explain", help="contribution of each column to rows' scores")
    explain.add_argument("model", metavar="DIR", help="where train saved the model")
    _add_data(explain)
    explain.add_argument("--out", metavar="FILE.csv", help="default, and -: standard output")
    return parser


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data",
        metavar="DATA",
        help="a table of numbers: .csv or .tsv (also .gz), .parquet, .npy, .npz, or - for CSV from "
        "standard input; all but .npy and .npz need drocc-ext[cli]",
    )
    parser.add_argument("--key", help=".npz: array of the features (default: X, or the only one)")
    parser.add_argument(
        "--label",
        help="labels, not a feature: a column by name or position from 0, or an array (.npz)",
    )
    parser.add_argument(
        "--normal", metavar="VALUE", help="label of normal rows, as it is written; needs --label"
    )
    parser.add_argument(
        "--exclude",
        metavar="COLUMN",
        action="append",
        default=[],
        help="no feature either, such as an identifier: by name or position; may be repeated",
    )
    parser.add_argument(
        "--header",
        action="store_true",
        help="text: the first line holds names, even if they are numbers",
    )
