"""Files and folders that appear whole or not at all, whenever the process is killed.

They are written in a temporary folder beside their place, so that no file system has to copy them
and no name of a library's temporary files matters; on disk before they are renamed, and the folder
around them after.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from mla_lm.errors import UserError, one_line

TEMPORARY = ".tmp"
LOCK = ".lock"  # in a folder that a process works in


@contextmanager
def claimed(folder: Path, *, key: str) -> Iterator[None]:
    """Keep other processes from working in a folder; UserError where one does."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=0):
            yield
    except Timeout:
        raise UserError(f"{key}={folder}: another process works there") from None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write to, which then takes the place of `path`, or is gone."""
    with _beside(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # what others may do; safetensors would let nobody read
        yield temporary
        temporary.chmod(mode)
        to_disk(temporary)
        os.replace(temporary, path)
    to_disk(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which then is `path`, or is gone; UserError where `path` holds anything."""
    path = path.resolve()
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"out={path}: not an empty folder; name a new one")
    with _beside(path) as temporary:
        temporary.mkdir()
        try:
            yield temporary
            mode = temporary.stat().st_mode & 0o666  # safetensors would let nobody else read
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


def remove_temporaries(folder: Path) -> None:
    """Delete what writers that were killed left in a folder."""
    for stale in folder.glob(f".*{TEMPORARY}"):
        shutil.rmtree(stale, ignore_errors=True)


def to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, would survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY) as folder:
        yield Path(folder) / path.name


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; UserError where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be a JSON object")
    return content


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
