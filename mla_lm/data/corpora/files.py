"""Documents in files: the standard library, UTF-8 text, JSON lines.

Read in blocks, so that memory does not grow with a file. A file of several is one document whose
key is its name, the same on every machine; a single file is cut at blank lines, and its pieces
are, like rows, their own keys: neither order nor place can move a document to the other split.
"""

import codecs
import glob
import gzip
import hashlib
import json
import os
import re
import sysconfig
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from mla_lm.data.corpora.document import Document, row
from mla_lm.data.cutting import cut
from mla_lm.errors import UserError

NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
GENERATED = {"encodings", "pydoc_data"}  # character tables and a dump of the manual
BLOCK = 2**20  # bytes
PIECE = 4096  # characters: a single file is cut into documents of about this size
BLANK_LINE, LINE_END = re.compile(r"\n[ \t\r]*\n"), re.compile(r"\n")


class Files(NamedTuple):
    """Files in the order of their names below `root`."""

    root: Path
    paths: list[Path]

    def name(self, path: Path) -> str:
        """The name of a file, the same wherever the folder lies."""
        return path.relative_to(self.root).as_posix()

    def source(self) -> dict[str, Any]:
        """Number and bytes of the files, and a digest of their names, sizes and times."""
        listing, n_bytes = hashlib.sha256(), 0
        for path in self.paths:
            stat = path.stat()
            line = f"{self.name(path)}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
            listing.update(line.encode(errors="surrogateescape"))
            n_bytes += stat.st_size
        return {"files": len(self.paths), "bytes": n_bytes, "listing": listing.hexdigest()}


def find_files(path: str, *, key: str, suffixes: Sequence[str] = ("",)) -> Files:
    """The file, the files below the folder, or those matching the glob that `key`=`path` names.

    A folder gives those of one of the `suffixes`, hidden ones left out. Raises UserError where
    there is none, or where a link in the folder leads out of it.
    """
    where = Path(os.path.expanduser(path))
    if where.is_file():
        return Files(where.parent, [where])
    if where.is_dir():
        found = below(where, left_out=lambda name: name.startswith("."))
        if any(p.is_symlink() for p in found):
            found = _each_once(where, found)
        files = [p for p in found if p.name.endswith(tuple(suffixes)) and p.is_file()]
        kinds = " or ".join(filter(None, suffixes))
        return _sorted(where, files, f"{key}={path}: the folder holds no files {kinds}".rstrip())
    fixed = Path(*takewhile(lambda part: not glob.has_magic(part), where.parts))
    matches = _each_once(fixed, map(Path, glob.glob(str(where), recursive=True)))
    files = [p for p in matches if p.is_file()]
    return _sorted(fixed, files, f"{key}={path}: no such file or folder, and no file matches")


def library_files() -> Files:
    """The sources of this Python's standard library without tests and generated tables."""
    root = Path(sysconfig.get_path("stdlib"))
    found = below(root, left_out=(NOT_LIBRARY | GENERATED).__contains__)
    sources = [p for p in found if p.suffix == ".py" and not p.is_symlink()]
    return _sorted(root, sources, f"{root}: no library sources here; use data=text data.path=...")


def below(root: Path, *, left_out: Callable[[str], bool]) -> list[Path]:
    """Files and links below a folder, without those of some names and what lies in them."""
    found = []

    def refuse(error: OSError) -> None:
        raise error

    for folder, folders, files in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if not left_out(name)]
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        found += [Path(folder, name) for name in (*files, *links) if not left_out(name)]
    return found


def _each_once(root: Path, found: Iterable[Path]) -> list[Path]:
    """Every file under one name, its own rather than that of a link; none outside of `root`."""
    inside, once = root.resolve(), {}
    for path in sorted(found):
        target = path.resolve()
        if not (target.exists() and target.is_relative_to(inside)):
            raise UserError(f"{path}: links out of {root} or to nothing")
        if target not in once or target == inside / path.relative_to(root):
            once[target] = path
    return list(once.values())


def _sorted(root: Path, found: list[Path], otherwise: str) -> Files:
    if not found:
        raise UserError(otherwise)
    return Files(root, sorted(found, key=lambda p: p.relative_to(root).as_posix()))


def text_documents(files: Files, *, in_pieces: bool) -> Iterator[Document]:
    """One document a file, or each in pieces of `PIECE` characters or more."""
    boundaries = (BLANK_LINE, LINE_END)
    for path in files.paths:
        if in_pieces:
            for piece in cut(read_text(path), boundaries, at_least=PIECE, at_most=4 * PIECE):
                yield row(piece, str(path))
        else:
            yield Document(files.name(path).encode(errors="surrogateescape"), read_text(path))


def read_text(path: Path) -> Iterator[str]:
    """A file of UTF-8 text in blocks, without a byte-order mark; UserError names a bad byte."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = pending = 0

    def not_utf8(error: UnicodeDecodeError) -> UserError:
        return UserError(f"{path}: not UTF-8 text (byte {offset - pending + error.start})")

    try:
        with path.open("rb") as file:
            if file.read(3) == codecs.BOM_UTF8:
                offset = 3
            file.seek(offset)
            while block := file.read(BLOCK):
                if (nul := block.find(0)) >= 0:
                    raise UserError(f"{path}: not text, a NUL character (byte {offset + nul})")
                pending = len(decoder.getstate()[0])
                yield decoder.decode(block)
                offset += len(block)
            pending = len(decoder.getstate()[0])
            decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise not_utf8(error) from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def jsonl_documents(files: Files, field: str) -> Iterator[Document]:
    """The strings in `field`, one a line; null counts as empty, blank lines are no documents.

    Read by Python's own `json` and `gzip`: a UserError names file and line of whatever is not a
    JSON object with a string there.
    """
    for path in files.paths:
        for number, line in _lines(path):
            where = f"{path}: line {number}"
            try:
                record = json.loads(line.decode())
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where}: not JSON ({error})") from None
            if not isinstance(record, dict):
                raise UserError(f"{where}: not a JSON object")
            if field not in record:
                raise UserError(f"{where}: no field {field!r} in {str([*record])[:80]}")
            text = record[field]
            if not isinstance(text, str | None):
                raise UserError(f"{where}: field {field!r} is no string")
            yield row(text, where)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a plain or .gz file that are not blank, numbered from 1."""
    number = 0
    if path.suffix == ".gz" and path.stat().st_size == 0:
        raise UserError(f"{path}: line 1: truncated or damaged gzip (an empty file)")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if line.strip():
                    yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: line {number + 1}: truncated or damaged gzip ({error})") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
