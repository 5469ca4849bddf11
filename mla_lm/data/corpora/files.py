"""Documents in files: the standard library, UTF-8 text, JSON lines.

Read in blocks, so that memory does not grow with a file. A file of several is one document whose
key is its name, the same on every machine; a single file is cut at blank lines, and its pieces
are, like rows, their own keys.
"""

import codecs
import glob
import gzip
import hashlib
import io
import json
import os
import re
import sysconfig
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from mla_lm.data.corpora.document import Document, row, row_of
from mla_lm.data.cutting import cut
from mla_lm.errors import UserError

NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
GENERATED = {"encodings", "pydoc_data"}  # character tables and a dump of the manual
COMPRESSED = (".gz", ".parquet")
BLOCK = 2**20  # characters
PIECE = 4096  # characters: a single file is cut into documents of about this size
BLANK_LINE, LINE_END = re.compile(r"\n[ \t\r]*\n"), re.compile(r"\n")


class Files(NamedTuple):
    """Files in the order of their names below `root`."""

    root: Path
    paths: list[Path]

    @classmethod
    def of(cls, root: Path, paths: Iterable[Path], *, missing: str) -> "Files":
        """Files in their order; UserError says what is `missing` where there is none."""
        files = cls(root, [path for path in paths if path.is_file()])
        if not files.paths:
            raise UserError(missing)
        return files._replace(paths=sorted(files.paths, key=files.name))

    def name(self, path: Path) -> str:
        """The name of a file, the same wherever the folder lies."""
        return path.relative_to(self.root).as_posix()

    @property
    def n_bytes(self) -> int | None:
        """Bytes of text; None where a file is compressed."""
        if any(path.suffix in COMPRESSED for path in self.paths):
            return None
        return sum(path.stat().st_size for path in self.paths)

    def source(self) -> dict[str, Any]:
        """Number and bytes of the files, and a digest of their names, sizes and times."""
        listing, n_bytes = hashlib.sha256(), 0
        for path in self.paths:
            stat = path.stat()
            listing.update(os.fsencode(f"{self.name(path)}\0{stat.st_size}\0{stat.st_mtime_ns}\n"))
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
        found = _each_once(where, below(where, left_out=lambda name: name.startswith(".")))
        found = [p for p in found if p.name.endswith(tuple(suffixes))]
        kinds = " or ".join(filter(None, suffixes))
        missing = f"{key}={path}: the folder holds no files {kinds}".rstrip()
        return Files.of(where, found, missing=missing)
    fixed = Path(*takewhile(lambda part: not glob.has_magic(part), where.parts))
    found = _each_once(fixed, map(Path, glob.glob(str(where), recursive=True)))
    missing = f"{key}={path}: no such file or folder, and no file matches"
    return Files.of(fixed, found, missing=missing)


def library_files() -> Files:
    """The sources of this Python's standard library without tests and generated tables."""
    root = Path(sysconfig.get_path("stdlib"))
    found = below(root, left_out=(NOT_LIBRARY | GENERATED).__contains__)
    sources = [p for p in found if p.suffix == ".py" and not p.is_symlink()]
    missing = f"{root}: no library sources here; use data=text data.path=..."
    return Files.of(root, sources, missing=missing)


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


def text_documents(files: Files, *, in_pieces: bool) -> Iterator[Document]:
    """One document per file, or each cut into pieces of `PIECE` characters or more."""
    boundaries = (BLANK_LINE, LINE_END)
    for path in files.paths:
        if in_pieces:
            for piece in cut(read_text(path), boundaries, at_least=PIECE, at_most=4 * PIECE):
                yield row(piece, str(path))
        else:
            yield Document(os.fsencode(files.name(path)), read_text(path))


def read_text(path: Path) -> Iterator[str]:
    """A file of UTF-8 text in blocks, without a byte-order mark; UserError names a bad byte."""
    with path.open("rb") as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        try:
            while block := text.read(BLOCK):
                if "\0" in block:
                    raise UserError(f"{path}: not text, it has a NUL character")
                yield block
        except UnicodeDecodeError as error:
            byte = file.tell() - len(error.object) + error.start  # `object` is the last one read
            raise UserError(f"{path}: not UTF-8 text (byte {byte})") from None


def jsonl_documents(files: Files, field: str) -> Iterator[Document]:
    """The strings in `field`, one per line; null counts as empty, blank lines are no documents.

    Read by Python's own `json` and `gzip`: a UserError names file and line of whatever is not a
    JSON object with a string there.
    """
    for path in files.paths:
        number = 0
        try:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                    if line.strip():
                        record = json.loads(line.decode())
                        yield row_of(record, field, f"{path}: line {number}")
        except UserError:
            raise
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: line {number}: not JSON ({error})") from None
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{path}: line {number + 1}: damaged gzip ({error})") from None
