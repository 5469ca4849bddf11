"""Documents in tables: Parquet files and data sets of the Hugging Face hub, through `datasets`.

A row is a document; null or empty text is an empty document. Rows are streamed.
"""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mla_lm.config import HubConfig
from mla_lm.data.corpora.document import Document, row
from mla_lm.data.corpora.files import Files
from mla_lm.errors import UserError, one_line

ROWS = 256  # read at once from a Parquet file
OFFLINE = (
    "use data=stdlib; data=text, jsonl or parquet with data.path=FILES; "
    "or data.name=FOLDER, a copy of the data set"
)


def parquet_documents(files: Files, column: str) -> Iterator[Document]:
    """The strings in `column` of every file."""
    import glob

    for path in files.paths:
        options = {"data_files": [glob.escape(str(path.resolve()))], "batch_size": ROWS}
        rows = _open(str(path), column, path="parquet", split="train", **options)
        yield from _documents(rows, column, str(path))


def parquet_bytes(files: Files) -> int:
    """Uncompressed bytes of the files, all columns."""
    import pyarrow
    import pyarrow.parquet

    total = 0
    for path in files.paths:
        try:
            metadata = pyarrow.parquet.read_metadata(path)
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{path}: not a Parquet file ({one_line(error)})") from None
        total += sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    return total


def hub_documents(cfg: HubConfig, split: str) -> Iterator[Document]:
    """The strings in `cfg.column` of one split, at most `cfg.max_bytes` of text.

    Raises UserError with what else to do where the hub cannot be reached.
    """
    local = Path(os.path.expanduser(cfg.name))
    name = str(local.resolve()) if local.is_dir() else cfg.name
    where = f"{cfg.name} {split}"
    rows = _open(where, cfg.column, path=name, name=cfg.subset, split=split, revision=cfg.revision)
    n_bytes = 0
    for document in _documents(rows, cfg.column, where):
        n_bytes += len(document.key)
        if cfg.max_bytes is not None and n_bytes > cfg.max_bytes:
            return
        yield document


def _open(where: str, column: str, **options: Any) -> Any:
    """An iterable data set that has the column."""
    import datasets
    import huggingface_hub

    for library in (datasets, huggingface_hub):  # they print what is raised as well
        library.utils.logging.set_verbosity(logging.CRITICAL)
    try:
        rows = datasets.load_dataset(streaming=True, **options)
    except ConnectionError:
        raise UserError(f"{where}: the Hugging Face hub cannot be reached; {OFFLINE}") from None
    except Exception as error:  # whatever a format's reader raises
        raise UserError(f"{where}: {one_line(error)}") from None
    if rows.features is not None and column not in rows.features:
        raise UserError(f"{where}: no column {column!r} among {', '.join(rows.features)}")
    return rows.select_columns([column]) if rows.features is not None else rows


def _documents(rows: Any, column: str, where: str) -> Iterator[Document]:
    number = 0
    try:
        for number, record in enumerate(rows, start=1):
            place = f"{where}: row {number}"
            if column not in record:
                raise UserError(f"{place}: no column {column!r} in {str([*record])[:80]}")
            text = record[column]
            if not isinstance(text, str | None):
                raise UserError(f"{place}: column {column!r} is no string")
            yield row(text, place)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{where}: behind row {number}: {one_line(error)}") from None
