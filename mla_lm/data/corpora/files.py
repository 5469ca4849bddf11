"""Documents in files: the standard library, UTF-8 text, JSON lines.

Read in blocks, so that memory does not grow with the size of a file. A text file is one document,
and its key is its name below the folder, the same on every machine.
"""

import glob
import hashlib
import io
import json
import os
import stat
import sysconfig
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from mla_lm.config import JsonlConfig
from mla_lm.data.corpora.document import Document, row
from mla_lm.errors import UserError
from mla_lm.files import MARK, open_regular, read_lines

NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
GENERATED = {"encodings", "pydoc_data"}  # character tables and a dump of the manual
BLOCK = 2**20  # characters


Files = dict[str, Path]  # by their paths relative to a common folder, sorted


def find_files(path: str, *, key: str, suffixes: tuple[str, ...] = ("",)) -> Files:
    """The file, the files below the folder, or those matching the glob that `key`=`path` names.

    A folder gives those of one of the `suffixes`. Hidden files are left out, and folders that this
    package wrote; a file with several names counts once. Raises UserError where there is none.
    """
    where = Path(path)
    if where.is_file():
        return {where.name: where}
    if where.is_dir():
        found = [p for p in below(where).values() if p.name.endswith(suffixes)]
        missing = f"the folder holds no files {' or '.join(suffixes)}".rstrip()
    else:
        plain = [*takewhile(lambda part: not glob.has_magic(part), where.parts)]
        where, pattern = Path(*plain), where.parts[len(plain) :]
        found = _matches(where, pattern)
        missing = "no such file or folder, and no file matches"
    found = [path for path in found if not _written_here(path, where)]
    if not found:
        raise UserError(f"{key}={path}: {missing}; what mla_lm wrote is left out")
    return _named(where, {p.resolve(): p for p in sorted(found, reverse=True)}.values())


def _matches(where: Path, pattern: Sequence[str]) -> list[Path]:
    """Files that match; hidden ones where the pattern says so. `**` enters no linked folder."""
    every = ("*",) if pattern[-1:] == ("**",) else ()
    try:
        found = [*where.glob("/".join((*pattern, *every)))] if pattern else [where]
    except ValueError as error:
        raise UserError(f"{where.joinpath(*pattern)}: {error}") from None
    with_hidden = any(part[0] == "." for part in pattern)
    return [
        path
        for path in found
        if os.path.lexists(path)
        if not path.is_dir()
        if with_hidden or all(part[0] != "." for part in path.relative_to(where).parts)
    ]


def _written_here(path: Path, root: Path) -> bool:
    """Whether a file lies in a folder below `root` that this package wrote."""
    below_root = takewhile(lambda folder: folder != root, path.parents)
    return any((folder / MARK).exists() for folder in below_root)


def below(root: Path, *, left_out: Collection[str] = ()) -> Files:
    """Files below a folder, links followed, without hidden ones and names in `left_out`.

    A folder that several links lead to, in a circle perhaps, is entered once.
    """
    found, entered = list[Path](), set[str]()

    def refuse(error: OSError) -> None:
        raise error

    for folder, folders, names in os.walk(root, onerror=refuse, followlinks=True):
        if (real := os.path.realpath(folder)) in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if not (name[0] == "." or name in left_out))
        found += [Path(folder, name) for name in names if name[0] != "."]
    return _named(root, found)


def _named(root: Path, paths: Iterable[Path]) -> Files:
    return dict(sorted((path.relative_to(root).as_posix(), path) for path in paths))


def library_files() -> Files:
    """The sources of this Python's standard library without tests and generated tables."""
    found = below(Path(sysconfig.get_path("stdlib")), left_out=NOT_LIBRARY | GENERATED)
    return {n: p for n, p in found.items() if p.suffix == ".py" and not p.is_symlink()}


def source(files: Files) -> dict[str, Any]:
    """Number and bytes of the files, and a digest of their names, sizes and times.

    UserError for a pipe or a device, which may never end.
    """
    listing, n_bytes = hashlib.sha256(), 0
    for name, path in files.items():
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise UserError(f"{path}: not a regular file")
        listing.update(os.fsencode(f"{name}\0{found.st_size}\0{found.st_mtime_ns}\n"))
        n_bytes += found.st_size
    return {"files": len(files), "bytes": n_bytes, "listing": listing.hexdigest()}


def text_documents(files: Files) -> Iterator[Document]:
    """One document per file."""
    for name, path in files.items():
        yield Document(os.fsencode(name), read_text(path))


def read_text(path: Path) -> Iterator[str]:
    """A file of UTF-8 text in blocks, without a byte-order mark; UserError names a bad byte."""
    with open_regular(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        try:
            while block := text.read(BLOCK):
                if "\0" in block:
                    raise UserError(f"{path}: not text, it has a NUL character")
                yield block
        except UnicodeDecodeError as error:
            byte = file.tell() - len(error.object) + error.start  # `object` is the last one read
            raise UserError(f"{path}: not UTF-8 text (byte {byte})") from None


def jsonl_documents(files: Files, cfg: JsonlConfig) -> Iterator[Document]:
    """The strings in a field, one per line; null counts as empty, blank lines are no documents.

    Read by Python's own `json` and `gzip`: a UserError names file and line of whatever is not a
    JSON object with a string there.
    """
    for path in files.values():
        rule = f"data.max_row_bytes={cfg.max_row_bytes}"
        lines = read_lines(path, longest=cfg.max_row_bytes, rule=rule)
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}: line {number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where}: not JSON ({error})") from None
            yield row(record, cfg.field, where, longest=cfg.max_row_bytes)
