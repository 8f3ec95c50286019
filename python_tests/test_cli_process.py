"""Options, outputs and streams of a command, as people and shells have them."""

from __future__ import annotations

import os
import random
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from cli_cases import ENVIRONMENT, TINY, sentence
from processes import HANG

from drocc_ext.cli import main as command_line
from drocc_ext.cli.commands import DROCC
from drocc_ext.cli.main import main
from drocc_ext.estimators.recipes import recipe_of
from drocc_ext.training.loss import METRICS

pandas = pytest.importorskip("pandas", reason="the command line reads text by pandas")
pytestmark = pytest.mark.filterwarnings("error::UserWarning")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hidden", "10000000000000"], "--hidden must be at most 2147483647"),
        (["--hidden", "2147483647"], "not enough memory for 2147483647 hidden units"),
        (["--network", "1000000000"], "not enough memory for 1000000000 hidden units"),
        (["--device", "meta"], "cannot use device 'meta'"),
        (["--device", ""], "cannot use device ''"),
        (["--device", "cpu:99x"], "cannot use device 'cpu:99x'"),
        (["--weight-decay", "1e308"], "weight_decay must fit float32"),
        (["--learning-rate", "1e308"], "learning_rate must fit float32"),
        (["--mu", "nan"], "mu must be >= 0"),
        (["--radius", "inf"], "radius must be > 0 and finite"),
        (["--gamma", "nan"], "gamma must be >= 1"),
        (["--seed", "-1"], "--seed must be >= 0, got -1"),
        (["--seed", "4294967296"], "--seed must be at most 2147483647"),
        (["--seed", "9" * 4000], "--seed must be at most 2147483647"),
        (["--out", ""], "--out must name a place, got ''"),
        (["--out", "a.npy/model"], "a.npy must be a directory, got a file"),
        (["--key", "X"], "a key ('X') can only be chosen in an .npz file"),
    ],
)
def test_options_that_cannot_be(options, message, here, rng, capsys):
    np.save("a.npy", rng.normal(size=(30, 3)))
    status = main(["train", "a.npy", "--out", "model", "--max-steps", "3", *options])
    said = sentence(capsys)
    assert status == 2
    assert message in said
    assert os.listdir() == ["a.npy"]


def test_outputs_of_score(here, rng, capsys):
    np.save("a.npy", rng.normal(size=(30, 3)))
    assert main(["train", "a.npy", "--out", "model", *TINY]) == 0
    content = (here / "a.npy").read_bytes()
    capsys.readouterr()
    for out, message in (("", "--out must name a place"), ("a.npy", "another file than the data")):
        assert main(["score", "model", "a.npy", "--out", out]) == 2
        assert message in sentence(capsys)
    assert (here / "a.npy").read_bytes() == content
    (here / "scores.csv").write_text("")
    (here / "scores.csv").chmod(0o600)
    (here / "link.csv").symlink_to("scores.csv")
    assert main(["score", "model", "a.npy", "--out", "link.csv"]) == 0
    assert (here / "link.csv").is_symlink()
    assert stat.S_IMODE((here / "scores.csv").stat().st_mode) == 0o600
    assert len((here / "scores.csv").read_text().split()) == 31
    before = os.stat(os.devnull).st_mode
    assert main(["score", "model", "a.npy", "--out", os.devnull]) == 0
    assert os.stat(os.devnull).st_mode == before
    capsys.readouterr()
    assert main(["score", "model", "a.npy", "--out", "/dev/full"]) == 2
    assert "No space left on device" in sentence(capsys)


def test_shown_defaults_are_the_estimators():
    parameters = DROCC().get_params()
    defaults = {**parameters, **vars(recipe_of(parameters))}
    for _, parameter, kind, help_text in command_line.OPTIONS:
        if parameter == "hidden":  # asks for another recipe
            assert defaults["hidden"] is None
            continue
        shown = re.search(r"\(default: ([^)]*)\)$", help_text)[1]
        if parameter == "radius":
            assert (defaults["radius"], shown) == (None, "from the data")
        else:
            assert kind(shown) == defaults[parameter]
    assert command_line.METRICS == METRICS
    assert defaults["metric"] == "l2"
    assert defaults["device"] == "cpu"


def test_an_error_of_the_library_is_none_of_the_user(here, rng, capsys, monkeypatch):
    np.save("a.npy", rng.normal(size=(20, 3)))

    def broken(*_, **__):
        raise AttributeError("on\npurpose")

    monkeypatch.setattr(DROCC, "fit", broken)
    assert main(["train", "a.npy", "--out", "model", *TINY]) == 70
    said = capsys.readouterr().err
    assert said == "drocc-ext: internal error: AttributeError: on purpose\n"
    monkeypatch.setenv("DROCC_TRACEBACK", "1")
    assert main(["train", "a.npy", "--out", "model", *TINY]) == 70
    assert "Traceback" in capsys.readouterr().err


def run(arguments, **options):
    """The command line as a process of its own."""
    command = [sys.executable, "-m", "drocc_ext.cli", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, env=ENVIRONMENT, **options)


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["train", "--help"], ["fly"], []])
def test_help_and_version_need_no_torch(arguments):
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: print('torch' in sys.modules, 'numpy' in sys.modules))\n"
        f"sys.argv = ['drocc-ext', *{arguments!r}]\n"
        "from drocc_ext.cli.main import main\n"
        "sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False False"
    assert done.returncode == (0 if arguments and arguments[-1].startswith("--") else 2)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("stream", ["stdout", "stderr", "full"])
def test_closed_streams(stream, here):
    command = f"exec {sys.executable} -m drocc_ext info"
    redirected = {"stdout": ">&-", "stderr": "2>&-", "full": ">/dev/full"}[stream]
    done = subprocess.run(
        ["sh", "-c", f"{command} {redirected}"], capture_output=True, text=True, env=ENVIRONMENT
    )
    if stream == "stderr":
        assert done.returncode == 0
        assert done.stdout.startswith("python: ")
        return
    assert done.returncode == 2
    wanted = "standard output is closed" if stream == "stdout" else "No space left on device"
    assert wanted in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_interrupt_while_importing(here):
    """At several moments of the start, which is mostly imports."""
    for _ in range(3):
        with run(["info"], stdout=subprocess.PIPE) as process:
            started = time.monotonic()
            maps = Path(f"/proc/{process.pid}/maps")
            while process.poll() is None and "libtorch" not in maps.read_text():
                assert time.monotonic() < started + 120
                time.sleep(0.01)
            time.sleep(random.uniform(0, 1))
            process.send_signal(signal.SIGINT)
            said = process.stderr.read().decode()
            process.wait(timeout=120)
        assert process.returncode in (0, 130)
        if process.returncode == 130:
            moments = ("before anything was written", "while writing standard output")
            assert said in [f"drocc-ext: interrupted {moment}\n" for moment in moments]


def test_the_default_networks_thresholds_and_explanations(here, rng, capsys):
    rows = rng.normal(size=(60, 3))
    np.save("rows.npy", rows)
    options = ["--network", "8,4", "--contamination", "auto", "--max-steps", "3", "--seed", "0"]
    assert command_line.main(["train", "rows.npy", "--out", "model", *options]) == 0
    fitted = DROCC("auto", network=(8, 4), max_steps=3, random_state=0).fit(rows)
    loaded = DROCC.load("model")
    np.testing.assert_array_equal(loaded.decision_function(rows), fitted.decision_function(rows))
    assert loaded.threshold_ == fitted.threshold_
    assert command_line.main(["explain", "model", "rows.npy", "--out", "why.csv"]) == 0
    lines = Path("why.csv").read_text().splitlines()
    assert lines[0] == "anomaly_score,column 0,column 1,column 2"
    found = np.array([[float(part) for part in line.split(",")] for line in lines[1:]])
    np.testing.assert_allclose(found[:, 1:], fitted.explain(rows), rtol=1e-5, atol=1e-7)
    with pytest.raises(SystemExit):
        command_line.main(["train", "rows.npy", "--out", "m", "--network", "8,wide"])
    assert "argument --network: invalid units value: '8,wide'" in capsys.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
def test_standard_output_that_is_full_is_named():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "drocc_ext", "info"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=HANG,
            check=False,
        )
    assert (done.returncode, done.stderr) == (
        2,
        "drocc-ext: standard output: No space left on device\n",
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
def test_standard_error_that_is_full_is_no_failure(here, rng):
    np.save("a.npy", rng.normal(size=(30, 3)))
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "drocc_ext.cli", "train", "a.npy", "--out", "model", *TINY],
            stderr=full,
            timeout=HANG,
            check=False,
        )
    assert done.returncode == 0
    assert DROCC.load("model").radius_ > 0


def test_explanations_of_a_file_without_names_have_those_of_the_model(here, rng):
    rows = rng.normal(size=(60, 2))
    body = "".join(f"{a},{b}\n" for a, b in rows.tolist())
    Path("named.csv").write_text("width,height\n" + body)
    Path("bare.csv").write_text(body)
    train = ["train", "named.csv", "--out", "model", "--max-steps", "3", "--seed", "0"]
    assert command_line.main(train) == 0
    for name in ("named", "bare"):
        assert (
            command_line.main(["explain", "model", f"{name}.csv", "--out", f"{name}.out.csv"]) == 0
        )
    found = Path("bare.out.csv").read_text()
    assert found == Path("named.out.csv").read_text()
    assert found.startswith("anomaly_score,width,height\n")


def test_a_read_only_model_is_told_before_training(here, rng, monkeypatch, capsys):
    np.save("rows.npy", rng.normal(size=(60, 3)))
    train = ["train", "rows.npy", "--out", "model", "--max-steps", "3"]
    assert command_line.main(train) == 0
    config, access = Path("model/config.json"), os.access
    # As root every file can be written.
    monkeypatch.setattr(
        os, "access", lambda path, mode: Path(path) != config and access(path, mode)
    )
    monkeypatch.setattr(DROCC, "fit", lambda *_, **__: pytest.fail("it trained"))
    capsys.readouterr()
    assert command_line.main(train) == 2
    assert capsys.readouterr().err == f"drocc-ext: {config}: the file is read-only\n"
