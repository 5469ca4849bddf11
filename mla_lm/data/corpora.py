"""Where text comes from: documents of Python's standard library or of the user's own files.

A document has a name that does not depend on the machine, and the split hashes that name: the same
documents are held out everywhere, whatever their order.
"""

import glob
import hashlib
import sysconfig
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from mla_lm.config import DataConfig
from mla_lm.errors import UserError

NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
GENERATED = {"encodings", "pydoc_data"}  # character tables and a dump of the manual
PIECE = 4096  # characters: a single file is cut into documents of about this size, at blank lines
LONGEST = 4 * PIECE  # where no blank line comes


class Document(NamedTuple):
    """`text` is never empty."""

    name: str
    text: str


class Scan(NamedTuple):
    """What one pass over a corpus tells."""

    digest: str  # SHA-256 over all names and texts
    validation: frozenset[str]  # names of the held-out documents
    n_documents: int
    n_bytes: int


def documents(cfg: DataConfig) -> Iterator[Document]:
    """The documents of the corpus in a fixed order; raises UserError naming the file at fault."""
    if cfg.kind == "stdlib":
        root = Path(sysconfig.get_path("stdlib"))
        left_out = NOT_LIBRARY | GENERATED
        found = [p for p in root.rglob("*.py") if not left_out & set(p.relative_to(root).parts)]
        if not found:
            raise UserError(
                f"{root}: this Python has no library sources; use data=text data.path=..."
            )
        return _whole_files(root, found)
    return _user_text(str(cfg.path))


def scan(cfg: DataConfig) -> Scan:
    """Digest a corpus and choose its validation documents: those whose hash is below the fraction.

    The smallest hash is always held out, so that a small corpus has a validation split too.
    """
    digest, validation = hashlib.sha256(), set()
    smallest, n_documents, n_bytes = (2.0, ""), 0, 0
    for name, text in documents(cfg):
        encoded = text.encode()
        name_bytes = name.encode(errors="surrogateescape")
        digest.update(name_bytes + f"\0{len(encoded)}\0".encode() + encoded)
        place = int.from_bytes(hashlib.sha256(name_bytes).digest()[:8]) / 2**64
        smallest = min(smallest, (place, name))
        if place < cfg.val_fraction:
            validation.add(name)
        n_documents, n_bytes = n_documents + 1, n_bytes + len(encoded)
    if n_documents < 2:
        source = cfg.path or cfg.kind
        raise UserError(
            f"{source}: {n_documents} document(s), too little text to train and validate"
        )
    validation.add(smallest[1])
    if len(validation) == n_documents:
        raise UserError(f"data.val_fraction={cfg.val_fraction}: leaves no document to train on")
    return Scan(digest.hexdigest(), frozenset(validation), n_documents, n_bytes)


def _user_text(path: str) -> Iterator[Document]:
    where = Path(path).expanduser()
    if where.is_dir():
        files = [
            p
            for p in where.rglob("*")
            if p.is_file() and not any(part.startswith(".") for part in p.relative_to(where).parts)
        ]
        if not files:
            raise UserError(f"{path}: the folder holds no files")
        return _whole_files(where, files) if len(files) > 1 else _pieces(files[0])
    if where.is_file():
        return _pieces(where)
    matches = [Path(p) for p in glob.glob(str(where), recursive=True) if Path(p).is_file()]
    if not matches:
        raise UserError(f"data.path={path}: no such file or folder, and no file matches")
    if len(matches) == 1:
        return _pieces(matches[0])
    fixed = takewhile(lambda part: not glob.has_magic(part), where.parts)
    return _whole_files(Path(*fixed), matches)


def _whole_files(root: Path, files: list[Path]) -> Iterator[Document]:
    """One document a file, empty files left out."""
    for name, path in sorted((p.relative_to(root).as_posix(), p) for p in files):
        if text := _read(path):
            yield Document(name, text)


def _pieces(path: Path) -> Iterator[Document]:
    """One file as documents of `PIECE` characters or more, cut at a blank line where one comes."""
    text = _read(path)
    if not text.strip():
        raise UserError(f"{path}: the file is empty")
    piece, size, index = [], 0, 0
    whole = text.splitlines(keepends=True)
    for line in (part[i : i + LONGEST] for part in whole for i in range(0, len(part), LONGEST)):
        piece.append(line)
        size += len(line)
        if size >= PIECE and (not line.strip() or size >= LONGEST):
            yield Document(f"{path.name}#{index}", "".join(piece))
            piece, size, index = [], 0, index + 1
    if piece:
        yield Document(f"{path.name}#{index}", "".join(piece))


def _read(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from None
    if "\0" in text:
        raise UserError(f"{path}: not text, it holds a NUL character")
    return text
