"""Documents in tables: Parquet files and data sets of the Hugging Face hub, through `datasets`.

A row is a document; null or empty text is an empty document. Rows are streamed.
"""

import glob
import logging
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
    for path in files.values():
        options = {"data_files": [glob.escape(str(path.resolve()))], "batch_size": ROWS}
        yield from _rows(str(path), column, path="parquet", split="train", **options)


def hub_documents(cfg: HubConfig, split: str) -> Iterator[Document]:
    """The strings in `cfg.column` of one split, at most `cfg.max_bytes` of text.

    Raises UserError with what else to do where the hub cannot be reached.
    """
    local = Path(cfg.name)
    name = str(local.resolve()) if local.is_dir() else cfg.name
    options = {"path": name, "name": cfg.subset, "split": split, "revision": cfg.revision}
    n_bytes = 0
    for document in _rows(f"{cfg.name} {split}", cfg.column, **options):
        n_bytes += len(document.key)
        if cfg.max_bytes is not None and n_bytes > cfg.max_bytes:
            return
        yield document


def _rows(where: str, column: str, **options: Any) -> Iterator[Document]:
    """The strings in `column` of a streamed data set."""
    import datasets
    import huggingface_hub

    for library in (datasets, huggingface_hub):  # they print what is raised as well
        library.utils.logging.set_verbosity(logging.CRITICAL)
    number = 0
    try:
        rows = datasets.load_dataset(streaming=True, **options)
        if rows.features is not None and column in rows.features:
            rows = rows.select_columns([column])
        for number, record in enumerate(rows, start=1):
            yield row(record, column, f"{where}: row {number}")
    except UserError:
        raise
    except ConnectionError:
        raise UserError(f"{where}: the Hugging Face hub cannot be reached; {OFFLINE}") from None
    except Exception as error:  # whatever a format's reader raises
        raise UserError(f"{where}: after row {number}: {one_line(error)}") from None
