"""Writing files: whole or not at all, where the caller meant, and nothing left over."""

from __future__ import annotations

import errno
import glob
import hashlib
import io
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import BinaryIO, cast

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_LONGEST_WAIT = 60.0  # seconds
_LONGEST_NAME = 200  # bytes that leave room for the temporary name's ends, of 255


def atomic_write(
    path: str | os.PathLike[str],
    writer: Callable[[BinaryIO], object],
    like: str | os.PathLike[str] | None = None,
) -> None:
    """Write a file so that a reader, or a crash, meets the old content or the new, never a part.

    A symbolic link stays, and what it points to is written. A regular file keeps its mode and
    owner. What is no regular file (a device, a FIFO, `/dev/stdout`) is written straight, for it
    cannot be replaced by another. Temporary files that killed writers of the same file have left
    are removed.

    Args:
        path: File to write; its directory must exist.
        writer: Called with a binary file. For a regular file it is a temporary one in the same
            directory, which replaces the file afterwards.
        like: File whose mode and owner a new one gets, if that is there; None: the process's.

    Raises:
        ValueError: If path is empty.
        OSError: If the file cannot be written, a full disk included, whatever the writer made of
            that. Like every error of writer, this leaves a regular file as it was, and no temporary
            one.
    """
    if os.fspath(path) == "":
        raise ValueError("atomic_write: path must name a file, got ''")
    if not _is_replaceable(path):
        try:
            with open(path, "wb") as file:
                writer(file)
        except OSError as error:
            if error.errno is not None and error.filename is None:
                error.filename = os.fspath(path)
            raise
        return
    target = Path(os.path.realpath(path))
    clear_temporaries(target.parent, glob.escape(_stem(target.name)))
    former = None
    with suppress(FileNotFoundError):
        former = os.stat(target)
    if former is not None and not os.access(target, os.W_OK):
        # Replacing asks the directory only; a file that forbids writing means it.
        raise PermissionError(13, "the file is read-only", str(target))
    if former is None and like is not None:
        with suppress(FileNotFoundError):
            former = os.stat(like)
    with _temporary(target, former) as (raw, temporary):
        file = io.BufferedWriter(raw)
        try:
            writer(cast(BinaryIO, file))
            file.flush()
            os.fsync(raw.fileno())
        except Exception as error:
            if raw.failure is None and isinstance(error, OSError) and error.filename is None:
                raw.failure = error
            if raw.failure is not None and raw.failure.errno is not None:  # the system's, no name
                raw.failure.filename = str(target)
            # torch, for one, turns a full disk into a RuntimeError.
            if raw.failure is not None and raw.failure is not error:
                raise raw.failure from error
            raise
        if fcntl is None:  # Windows moves no open file
            raw.close()
        with _named(target):
            _replace(target, temporary)
    sync_directory(target.parent)


def _replace(target: Path, temporary: Path) -> None:
    try:
        os.replace(temporary, target)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        # A file that is mounted by itself, as containers do, cannot be exchanged, only written.
        with open(temporary, "rb") as source, open(target, "wb") as file:
            shutil.copyfileobj(source, file)


def clear_temporaries(directory: Path, pattern: str) -> None:
    """Remove the temporary files that killed writers have left; never a living one's.

    Args:
        directory: Where to look.
        pattern: Names of the files that were to be written, as `glob` takes it.
    """
    if fcntl is None:  # without locks a living writer's file looks like a dead one's
        return
    found: list[Path] = []
    with suppress(OSError):
        found = list(directory.glob(f".{pattern}.{'[0-9a-f]' * 16}.tmp"))
    for temporary in found:
        with suppress(OSError):
            descriptor = os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused while it is held
                temporary.unlink()
            finally:
                os.close(descriptor)


@contextmanager
def locked_directory(directory: Path) -> Iterator[bool]:
    """Hold a directory against others that ask for the same; the lock dies with the process.

    Args:
        directory: An existing directory.

    Yields:
        Whether it is held: some systems and network file systems cannot, and a process that was
        suspended while it held the directory is not waited for longer than a minute.
    """
    descriptor = None
    try:
        with suppress(OSError):
            descriptor = os.open(directory, os.O_RDONLY)
        yield descriptor is not None and _lock(descriptor, time.monotonic() + _LONGEST_WAIT)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(descriptor: int, deadline: float) -> bool:
    if fcntl is None:
        return False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        except OSError:
            return False
        else:
            return True


def sync_directory(directory: Path) -> None:
    """Make a rename in a directory durable, where the system can.

    The file is complete by then, so a system that cannot (Windows opens no directories, some
    network file systems do not sync them) is no reason to fail.

    Args:
        directory: The directory.
    """
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class _Recorder(io.FileIO):
    """Remembers the first error of writing."""

    failure: OSError | None = None

    def write(self, data: object) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError as error:
            self.failure = self.failure or error
            raise


def _is_replaceable(path: str | os.PathLike[str]) -> bool:
    """Say whether a path leads to a regular file, or to a place where one can be made."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return True
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(21, os.strerror(21), os.fspath(path))
    # /dev/stdout may be a regular file: one that is open, at a position, and not to be exchanged.
    first = Path(os.path.abspath(path)).parts[1:2]
    return stat.S_ISREG(mode) and first not in (("dev",), ("proc",))


@contextmanager
def _temporary(target: Path, former: os.stat_result | None) -> Iterator[tuple[_Recorder, Path]]:
    """Make a locked temporary file beside a target, gone afterwards unless it was moved."""
    while True:
        temporary = target.with_name(f".{_stem(target.name)}.{secrets.token_hex(8)}.tmp")
        # Nobody else reads it before it has its final mode.
        permissions = 0o666 if former is None else 0o600
        with _named(target):
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, permissions)
        raw = _Recorder(descriptor, "wb")
        if fcntl is None:
            break
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if temporary.exists():  # not cleared between its making and its lock
            break
        raw.close()
    try:
        if former is not None and hasattr(os, "fchown"):
            try:
                os.fchown(descriptor, former.st_uid, former.st_gid)
            except OSError:  # only root may give files away, and others to a group of theirs
                with suppress(OSError):
                    os.fchown(descriptor, -1, former.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(former.st_mode))
        yield raw, temporary
    finally:
        with suppress(OSError):
            temporary.unlink()
        with suppress(OSError):
            raw.close()


@contextmanager
def _named(target: Path) -> Iterator[None]:
    """Let an error name the file that was asked for, not the temporary one."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        # Made anew, as an error of two names would show the second one as None.
        raise OSError(error.errno, error.strerror, str(target)) from error


def _stem(name: str) -> str:
    """Shorten a name that leaves no room for the ends of a temporary one."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= _LONGEST_NAME else hashlib.sha256(encoded).hexdigest()
