"""Where text comes from: a corpus for every `data.kind`."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from mla_lm.config import (
    DataConfig,
    FilesConfig,
    HubConfig,
    JsonlConfig,
    ParquetConfig,
    StdlibConfig,
    SyntheticConfig,
    TextConfig,
)
from mla_lm.data.corpora import files, synthetic, tables
from mla_lm.data.corpora.document import Corpus, Document
from mla_lm.data.corpora.files import Files
from mla_lm.errors import UserError

__all__ = ["Corpus", "Document", "open_corpus"]


def open_corpus(cfg: DataConfig) -> Corpus:
    """Find the files or the data set; nothing is read yet. Raises UserError where there is none."""
    try:
        return _open(cfg)
    except OSError as error:
        raise UserError(f"{error.filename or cfg.kind}: {error.strerror}") from None


def _open(cfg: DataConfig) -> Corpus:
    match cfg:
        case StdlibConfig():
            found = files.library_files()
            documents = partial(files.text_documents, found, in_pieces=False)
            return Corpus("stdlib", found.source(), found.n_bytes, documents, None)
        case TextConfig():
            alone = len(files.find_files(cfg.path, key="data.path").paths) == 1
            corpus = _from_files(cfg, ("",), partial(files.text_documents, in_pieces=alone))
            return corpus._replace(source=corpus.source | {"in_pieces": alone})
        case JsonlConfig():
            read_lines = partial(files.jsonl_documents, field=cfg.field)
            return _from_files(cfg, (".jsonl", ".jsonl.gz"), read_lines)
        case ParquetConfig():
            read_rows = partial(tables.parquet_documents, column=cfg.column)
            return _from_files(cfg, (".parquet",), read_rows)
        case HubConfig():
            return _from_hub(cfg)
        case SyntheticConfig():
            generate = partial(synthetic.synthetic_documents, cfg)
            size = cfg.n_documents * cfg.seq_len
            return Corpus(f"synthetic {cfg.task}", {"length": cfg.seq_len}, size, generate, None)


def _from_files(
    cfg: FilesConfig, suffixes: tuple[str, ...], read: Callable[[Files], Iterator[Document]]
) -> Corpus:
    """Files of `path` to train on, without those of `val_path`, which are to validate on."""
    train = files.find_files(cfg.path, key="data.path", suffixes=suffixes)
    if cfg.val_path is None:
        return Corpus(cfg.path, train.source(), train.n_bytes, partial(read, train), None)
    val = files.find_files(cfg.val_path, key="data.val_path", suffixes=suffixes)
    held_out = {path.resolve() for path in val.paths}
    train = train._replace(paths=[p for p in train.paths if p.resolve() not in held_out])
    if not train.paths:
        raise UserError(f"data.val_path={cfg.val_path}: holds every file of data.path={cfg.path}")
    source = {"train": train.source(), "val": val.source()}
    n_bytes = train._replace(paths=train.paths + val.paths).n_bytes
    return Corpus(cfg.path, source, n_bytes, partial(read, train), partial(read, val))


def _from_hub(cfg: HubConfig) -> Corpus:
    """A data set by name; a local folder is also told apart by its files."""
    local = Path(os.path.expanduser(cfg.name))
    found = files.below(local, left_out=lambda name: False) if local.is_dir() else []
    source = Files(local, sorted(found)).source()
    splits = [cfg.split, *([cfg.val_split] if cfg.val_split else [])]
    train, *val = (partial(tables.hub_documents, cfg, split) for split in splits)
    return Corpus(cfg.name, source, cfg.max_bytes, train, val[0] if val else None)
