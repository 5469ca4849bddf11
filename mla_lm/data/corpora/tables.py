"""Documents in tables: Parquet files, and data sets of the Hugging Face hub through `datasets`.

A row is a document; null or empty text is an empty document. Rows are streamed.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mla_lm.config import HubConfig, ParquetConfig
from mla_lm.data.corpora.document import Document, row
from mla_lm.data.corpora.files import Files
from mla_lm.errors import UserError, one_line
from mla_lm.files import open_regular

ROWS = 256  # read at once from a Parquet file
BUFFER = 2**20  # bytes
EXPANSION = 20  # text is packed to a tenth at best
OFFLINE = (
    "use data=stdlib; data=text, jsonl or parquet with data.path=FILES; "
    "or data.name=FOLDER, a copy of the data set"
)


def parquet_documents(files: Files, cfg: ParquetConfig) -> Iterator[Document]:
    """The strings in a column of every file; one that many rows share is in memory once."""
    for path in files.values():
        number = 0
        try:
            for number, value in enumerate(_column(path, cfg), start=1):
                record, where = {cfg.column: value.as_py()}, f"{path}: row {number}"
                yield row(record, cfg.column, where, longest=cfg.max_row_bytes)
        except UserError:
            raise
        except Exception as error:  # whatever Arrow raises
            raise UserError(f"{path}: after row {number}: {one_line(error)}") from None


def _column(path: Path, cfg: ParquetConfig) -> Iterator[Any]:
    """The values of a column; UserError for a row group that is small in the file only."""
    import pyarrow.parquet as pq

    with open_regular(path) as file:
        metadata = pq.read_metadata(file)
        names = [metadata.schema.column(index).path for index in range(metadata.num_columns)]
        if cfg.column not in names:
            raise UserError(f"{path}: no column {cfg.column!r} of text in {', '.join(names)[:80]}")
        for index in range(metadata.num_row_groups):
            chunk = metadata.row_group(index).column(names.index(cfg.column))
            size, packed = chunk.total_uncompressed_size, chunk.total_compressed_size
            if size > EXPANSION * max(packed, cfg.max_row_bytes):
                unpacked = f"{packed:,} bytes unpack to {size:,}"
                rule = f"more than {EXPANSION} times data.max_row_bytes={cfg.max_row_bytes}"
                raise UserError(f"{path}: row group {index + 1}: {unpacked}, {rule}")
        options = {"metadata": metadata, "read_dictionary": [cfg.column], "buffer_size": BUFFER}
        for batch in pq.ParquetFile(file, **options).iter_batches(ROWS, columns=[cfg.column]):
            yield from batch.column(0)


def hub_documents(cfg: HubConfig, split: str) -> Iterator[Document]:
    """The strings in `cfg.column` of one split, at most `cfg.max_bytes` of text.

    Raises UserError with what else to do where the hub cannot be reached.
    """
    local = Path(cfg.name)
    name = str(local.resolve()) if local.is_dir() else cfg.name
    options = {"path": name, "name": cfg.subset, "split": split, "revision": cfg.revision}
    n_bytes = 0
    for document in _rows(f"{cfg.name} {split}", cfg, **options):
        n_bytes += len(document.key)
        if cfg.max_bytes is not None and n_bytes > cfg.max_bytes:
            return
        yield document


def _rows(where: str, cfg: HubConfig, **options: Any) -> Iterator[Document]:
    """The strings in the column of a streamed data set."""
    import datasets
    import huggingface_hub

    for library in (datasets, huggingface_hub):  # they print what is raised as well
        library.utils.logging.set_verbosity(logging.CRITICAL)
    number = 0
    try:
        rows = datasets.load_dataset(streaming=True, **options)
        if rows.features is not None and cfg.column in rows.features:
            rows = rows.select_columns([cfg.column])
        for number, record in enumerate(rows, start=1):
            place = f"{where}: row {number}"
            yield row(record, cfg.column, place, longest=cfg.max_row_bytes)
    except UserError:
        raise
    except ConnectionError:
        raise UserError(f"{where}: the Hugging Face hub cannot be reached; {OFFLINE}") from None
    except Exception as error:  # whatever a format's reader raises
        raise UserError(f"{where}: after row {number}: {one_line(error)}") from None
