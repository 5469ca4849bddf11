"""The corpus that a configuration names: one reader for every `data.kind`."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from mla_lm import config
from mla_lm.config.secret import hidden
from mla_lm.data.corpora import files, synthetic, tables
from mla_lm.data.corpora.document import Corpus, Document
from mla_lm.data.corpora.files import Files
from mla_lm.errors import UserError


def open_corpus(cfg: config.DataConfig) -> Corpus:
    """Find the files or the data set; nothing is read yet. Raises UserError where there is none."""
    match cfg:
        case config.StdlibConfig():
            found = files.library_files()
            source = files.source(found)
            return Corpus("stdlib", source, partial(files.text_documents, found), None)
        case config.TextConfig():
            return _from_files(cfg, ("",), files.text_documents)
        case config.JsonlConfig():
            read_lines = partial(files.jsonl_documents, cfg=cfg)
            return _from_files(cfg, (".jsonl", ".jsonl.gz"), read_lines)
        case config.ParquetConfig():
            read_rows = partial(tables.parquet_documents, cfg=cfg)
            return _from_files(cfg, (".parquet",), read_rows)
        case config.HubConfig():
            return _from_hub(cfg)
        case config.SyntheticConfig():
            generate = partial(synthetic.synthetic_documents, cfg)
            return Corpus(f"synthetic {cfg.task}", {"length": cfg.seq_len}, generate, None)


def _from_files(
    cfg: config.FilesConfig, suffixes: tuple[str, ...], read: Callable[[Files], Iterator[Document]]
) -> Corpus:
    """Training files of `path`, and those of `val_path`, which are left out of them."""
    train = files.find_files(cfg.path, key="data.path", suffixes=suffixes)
    if cfg.val_path is None:
        return Corpus(hidden(cfg.path), files.source(train), partial(read, train), None)
    val = files.find_files(cfg.val_path, key="data.val_path", suffixes=suffixes)
    held_out = {path.resolve() for path in val.values()}
    train = {name: path for name, path in train.items() if path.resolve() not in held_out}
    if not train:
        raise UserError(f"data.val_path={cfg.val_path}: holds every file of data.path={cfg.path}")
    source = {"train": files.source(train), "val": files.source(val)}
    return Corpus(hidden(cfg.path), source, partial(read, train), partial(read, val))


def _from_hub(cfg: config.HubConfig) -> Corpus:
    """A data set by name; the source of a local folder also describes its files."""
    local = Path(cfg.name)
    source = files.source(files.below(local)) if local.is_dir() else {}
    read = partial(tables.hub_documents, cfg)
    val = partial(read, cfg.val_split) if cfg.val_split else None
    return Corpus(hidden(cfg.name), source, partial(read, cfg.split), val)
