"""Atomic files and folders, locks on folders, JSON objects and digests.

A file or folder is written in a temporary folder beside its final place (same file system), synced
to disk, renamed, and its parent folder synced: after `kill -9` it is there whole or not at all, and
what the killed writer has left is deleted when the same is written again.
"""

import codecs
import errno
import fcntl
import glob
import gzip
import hashlib
import json
import os
import shutil
import stat
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BufferedIOBase, BufferedReader
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from mla_lm.errors import UserError, one_line

TEMPORARY = ".tmp"
RANDOM = "?" * 8  # of the name of a temporary folder
LOCK = ".lock"
LONGEST = 2**27  # bytes of a text or JSON file that is read whole
MARK = ".mla_lm"  # in folders that this package writes, so that none of it is read as data


@contextmanager
def claimed(folder: Path, *, key: str) -> Iterator[None]:
    """Lock a folder against other processes; UserError where one holds the lock."""
    mark(folder)
    try:
        with FileLock(folder / LOCK, timeout=0):
            yield
    except Timeout:
        raise UserError(f"{key}={folder}: another process works there") from None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file that replaces `path` at the end, and is deleted on an error."""
    with _beside(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # by the umask; safetensors writes 0600
        yield temporary
        temporary.chmod(mode)
        to_disk(temporary)
        os.replace(temporary, path)
    to_disk(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill that becomes `path` at the end; UserError where `path` is not empty."""
    path = path.resolve()
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"out={path}: not an empty folder; name a new one")
    with _beside(path, hidden="") as temporary:  # it may be large
        mark(temporary)
        try:
            yield temporary
            mode = temporary.stat().st_mode & 0o666  # by the umask; safetensors writes 0600
            for inside in temporary.rglob("*"):
                if inside.is_file():
                    inside.chmod(mode)
                to_disk(inside)
            to_disk(temporary)
            os.replace(temporary, path)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UserError(f"out={path}: cannot be written ({reason})") from None
        except UserError as error:
            raise UserError(str(error).replace(str(temporary), str(path))) from None
    to_disk(path.parent)


def mark(folder: Path) -> None:
    """Make a folder, if it is not there, and say that this package writes what is in it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()


def require_writable(path: Path) -> None:
    """Refuse a file that cannot be written, before the work whose result it is to hold."""
    if path.is_dir():
        raise UserError(f"{path}: a folder of that name exists")
    with _beside(path) as temporary:
        temporary.touch()


def remove_temporaries(folder: Path, name: str = ".*") -> None:
    """Delete what killed writers of files of that name, a pattern, have left in a folder."""
    for stale in folder.glob(f"{name}.{RANDOM}{TEMPORARY}"):
        with suppress(OSError), _held(stale):  # where it is not that of a living one
            shutil.rmtree(stale, ignore_errors=True)


def unhidden(folder: Path) -> list[Path]:
    """What is in a folder, hidden files apart: a lock, what a killed process was about to write."""
    return [path for path in folder.glob("*") if not path.name.startswith(".")]


def to_disk(path: Path) -> None:
    """Sync a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _beside(path: Path, *, hidden: str = ".") -> Iterator[Path]:
    """A place for `path` in a temporary folder beside it; an OSError there names `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = f"{hidden}{path.name}"
    remove_temporaries(path.parent, glob.escape(name))
    with (
        named(path),
        TemporaryDirectory(dir=path.parent, prefix=f"{name}.", suffix=TEMPORARY) as folder,
        _held(folder),
    ):
        yield Path(folder) / path.name


@contextmanager
def _held(folder: str | Path) -> Iterator[None]:
    """Lock a folder, where the file system can; BlockingIOError where another process does."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if isinstance(error, BlockingIOError):
                raise  # other errors: a file system without locks
        yield
    finally:
        os.close(descriptor)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Let an OSError name `path` where it names no file, as that of a full disk, or a temporary."""
    try:
        yield
    except OSError as error:
        where = str(error.filename or "")
        if error.errno is None or (where and not (path.name in where and TEMPORARY in where)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None


def open_regular(path: Path) -> BufferedReader:
    """Open a file that others may have placed; OSError for a pipe or device, which may not end."""
    return open(path, "rb", opener=_regular)


def _regular(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe waits for its writer
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "not a regular file", path)


def read_text(path: Path) -> str:
    """The UTF-8 text in a file, without a byte-order mark; ValueError beyond `LONGEST` bytes."""
    with open_regular(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > LONGEST:
            raise ValueError(f"{size:,} bytes, at most {LONGEST:,} are read")
        return file.read().decode("utf-8-sig")


def read_lines(path: Path, *, longest: int, rule: str) -> Iterator[bytes]:
    """The lines of a file, plain or .gz; UserError with the rule for one beyond `longest` bytes."""
    number = 0
    try:
        with open_regular(path) as raw:
            file: BufferedIOBase = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
            while line := file.readline(longest + 1):
                number += 1
                line = line if number > 1 else line.removeprefix(codecs.BOM_UTF8)
                if len(line) > longest:
                    raise UserError(f"{path}: line {number}: longer than {rule}")
                yield line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: line {number + 1}: damaged gzip ({error})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; UserError where there is none."""
    try:
        content = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be a JSON object")
    return content


def write_object(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a file by a JSON object."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a file by a text."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
