"""Writing files: links and modes stay, devices are written to, what a killed writer left goes."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest
import torch
from torch import nn

from drocc_ext import _files
from drocc_ext._files import atomic_write
from drocc_ext.models.networks import MLP
from drocc_ext.models.persistence import save_model


def put(content: bytes, path: str | os.PathLike[str]) -> None:
    atomic_write(path, lambda file: file.write(content))


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """Let every write beyond a size fail, as on a full disk (python ignores the signal)."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755])
def test_a_file_keeps_its_mode(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(mode)
    seen = []

    def write(file: BinaryIO) -> None:
        (temporary,) = tmp_path.glob(".file.*.tmp")
        seen.append(stat.S_IMODE(temporary.stat().st_mode))
        file.write(b"new")

    atomic_write(path, write)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == mode == seen[0]


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give files away")
def test_a_file_keeps_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    os.chown(path, 1234, 4321)
    put(b"new", path)
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 4321)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write to every file")
def test_a_read_only_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o444)
    with pytest.raises(PermissionError):
        put(b"new", path)
    assert path.read_bytes() == b"old"


def test_links_are_followed_and_stay(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target = tmp_path / "there" / "file"
    (tmp_path / "link").symlink_to("there/file")
    (tmp_path / "second").symlink_to(tmp_path / "link")
    for content in (b"dangling at first", b"and not any more"):
        put(content, tmp_path / "second")
        assert target.read_bytes() == content
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "second").is_symlink()
    assert names(tmp_path / "there") == ["file"]
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError):
        put(b"", tmp_path / "loop")
    assert (tmp_path / "loop").is_symlink()


def test_a_device_stays_a_device(tmp_path: Path) -> None:
    null = tmp_path / "null"
    try:
        os.mknod(null, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        null.write_bytes(b"")
    except PermissionError:
        null.unlink(missing_ok=True)
        null.symlink_to(os.devnull)
    before = os.stat(null).st_mode
    put(b"content", null)
    assert os.stat(null).st_mode == before
    assert stat.S_ISCHR(before)
    assert names(tmp_path) == ["null"]
    with pytest.raises(OSError, match="No space left"):
        put(b"content", "/dev/full")


def test_a_fifo_gets_the_content(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    received = []
    reader = threading.Thread(target=lambda: received.append((tmp_path / "fifo").read_bytes()))
    reader.start()
    put(b"content", tmp_path / "fifo")
    reader.join()
    assert received == [b"content"]
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)
    assert names(tmp_path) == ["fifo"]


@pytest.mark.parametrize("regular", [True, False])
def test_standard_output_by_its_name(regular: bool, tmp_path: Path) -> None:
    code = "import drocc_ext._files as f; f.atomic_write('/dev/stdout', lambda o: o.write(b'text'))"
    with open(tmp_path / "out", "wb") as file:
        out = file if regular else subprocess.PIPE
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.argv = ['drocc-ext']; {code}"],
            stdout=out,
            check=True,
        )
    assert ((tmp_path / "out").read_bytes() if regular else done.stdout) == b"text"
    assert names(tmp_path) == ["out"]


def test_paths_that_name_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="path must name a file, got ''"):
        put(b"", "")
    with pytest.raises(IsADirectoryError):
        put(b"", tmp_path)
    with pytest.raises(ValueError, match="directory must be named, got ''"):
        save_model("", MLP(2))
    missing = tmp_path / "none" / "file"
    with pytest.raises(FileNotFoundError) as caught:
        put(b"", missing)
    assert caught.value.filename == str(missing)


def test_a_file_that_is_mounted_by_itself_is_written_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: object) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    path = tmp_path / "mounted"
    path.write_bytes(b"a longer content than the new one")
    monkeypatch.setattr(os, "replace", busy)
    atomic_write(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["mounted"]


def test_an_error_names_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        atomic_write(tmp_path / "missing" / "file", lambda file: file.write(b"new"))
    assert str(caught.value) == f"[Errno 2] No such file or directory: '{tmp_path}/missing/file'"

    def refused(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "one", None, "other")

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(PermissionError) as caught:
        atomic_write(tmp_path / "file", lambda file: file.write(b"new"))
    assert str(caught.value) == f"[Errno 13] Permission denied: '{tmp_path}/file'"


def test_the_longest_name(tmp_path: Path) -> None:
    path = tmp_path / ("ä" * 127)  # 254 bytes of the 255 that a name may have
    put(b"one", path)
    put(b"two", path)
    assert path.read_bytes() == b"two"
    assert names(tmp_path) == [path.name]


def test_a_full_disk_is_an_os_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    state = {"weight": torch.zeros(100_000)}
    with disk_of(10_000):
        with pytest.raises(OSError):
            put(bytes(20_000), path)
        with pytest.raises(OSError):  # torch alone makes a RuntimeError of it
            atomic_write(path, lambda file: torch.save(state, file))
        with pytest.raises(OSError):
            save_model(tmp_path / "model", nn.Linear(300, 300))
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_an_error_of_the_writer_stays_itself(tmp_path: Path) -> None:
    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise ZeroDivisionError("on purpose")

    with pytest.raises(ZeroDivisionError):
        atomic_write(tmp_path / "file", fail)
    assert names(tmp_path) == []


def test_what_a_killed_writer_left_is_cleared(tmp_path: Path) -> None:
    code = (
        "import sys, time; sys.argv = ['drocc-ext']; import drocc_ext._files as f\n"
        "def write(file):\n"
        "    file.write(b'half'); file.flush(); print('now', flush=True); time.sleep(600)\n"
        f"f.atomic_write({str(tmp_path / 'a[b]*.pt')!r}, write)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"now\n"
        (living,) = names(tmp_path)
        others = ["a.pt", "b", f".b.{'0' * 16}.tmp", f".a[b]*.pt.{'0' * 15}.tmp"]
        for other in others:
            (tmp_path / other).write_bytes(b"")
        put(b"whole", tmp_path / "a[b]*.pt")
        assert names(tmp_path) == sorted([living, *others, "a[b]*.pt"])  # a living writer's stays
        process.send_signal(signal.SIGKILL)
        process.wait()
    put(b"whole", tmp_path / "a[b]*.pt")
    assert names(tmp_path) == sorted([*others, "a[b]*.pt"])


def test_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_files, "fcntl", None)
    (tmp_path / f".file.{'0' * 16}.tmp").write_bytes(b"whose?")
    put(b"one", tmp_path / "file")
    put(b"two", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"two"
    assert names(tmp_path) == [f".file.{'0' * 16}.tmp", "file"]
    for _ in range(3):
        save_model(tmp_path / "model", MLP(2))
    # Nothing is removed that another save may be about to name.
    assert len(list((tmp_path / "model").glob("weights-*"))) == 3
    for path in (tmp_path / "model").glob("weights-*"):
        os.utime(path, (0, 0))
    save_model(tmp_path / "model", MLP(2))
    assert len(list((tmp_path / "model").glob("weights-*"))) == 2


def test_a_suspended_holder_of_a_directory_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_files, "_LONGEST_WAIT", 0.1)
    with _files.locked_directory(tmp_path) as first:
        with _files.locked_directory(tmp_path) as second:
            assert (first, second) == (True, False)
        save_model(tmp_path, MLP(2))
    with _files.locked_directory(tmp_path) as again:
        assert again


def test_a_full_disk_is_named_and_a_new_directory_does_not_stay(tmp_path: Path) -> None:
    model = MLP(50, hidden=100)
    with disk_of(10_000), pytest.raises(OSError, match=r"large") as raised:
        save_model(tmp_path / "new", model)
    assert raised.value.filename.startswith(str(tmp_path / "new" / "weights-"))
    assert names(tmp_path) == []
    save_model(tmp_path / "new", MLP(2))
    former = names(tmp_path / "new")
    with disk_of(10_000), pytest.raises(OSError, match=r"large"):
        save_model(tmp_path / "new", model)
    assert names(tmp_path / "new") == former


def test_weights_without_a_description_do_not_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path, MLP(2))
    former = names(tmp_path)

    def write(path: Path, writer: object, like: Path | None = None) -> None:
        if path.name == "config.json":
            raise OSError(28, "No space left on device")
        path.write_bytes(b"")

    monkeypatch.setattr("drocc_ext.models.persistence.atomic_write", write)
    with pytest.raises(OSError, match="No space"):
        save_model(tmp_path, MLP(2))
    assert names(tmp_path) == former
