"""Text to batches: where documents come from, how they become tokens, how tokens are packed."""

from typing import Annotated, Literal

from pydantic import Field

from mla_lm.config.section import Count, Name, PathName, Rules, Section, Size


class TokenizerConfig(Section):
    """Byte-level: one token a byte, a BPE trained on the training split, or an existing one.

    `path` is a `tokenizer.json`, a folder with one, or a name on the Hugging Face hub; of a model
    that began with the weights of another the tokenizer is in its checkpoints.
    """

    kind: Literal["bytes", "bpe", "pretrained"]
    vocab_size: Annotated[int, Field(ge=257)]
    end_of_text: Name
    path: PathName | None

    def rules(self) -> Rules:
        yield "vocab_size", self.kind != "bytes" or self.vocab_size == 257, "must be 257 for bytes"
        existing = self.kind == "pretrained"
        yield "path", existing or self.path is None, f"must be null for {self.kind}"
        yield "path", not existing or self.path is not None, "must name a tokenizer"

    def of_checkpoint(self) -> "TokenizerConfig":
        """The same tokenizer once it is stored in a checkpoint: taken from there, not trained."""
        if self.kind == "bytes":
            return self
        return self.model_copy(update={"kind": "pretrained", "path": "tokenizer.json"})


class CorpusConfig(Section):
    """What all corpora share. `batch_size` counts rows of a forward pass, of all processes."""

    tokenizer: TokenizerConfig
    val_fraction: Annotated[float, Field(gt=0, lt=1)]
    cache_dir: PathName
    verify: Literal["sizes", "full"]
    seq_len: Annotated[int, Field(gt=1)]
    batch_size: Size
    mask_documents: bool

    @property
    def named(self) -> dict[str, str]:
        """The keys that say which files or which data set are read."""
        return self.model_dump(include={"path", "val_path", "name"}, exclude_none=True)


class StdlibConfig(CorpusConfig):
    """The sources of this Python's standard library; a document is a file."""

    kind: Literal["stdlib"]


class FilesConfig(CorpusConfig):
    """Files by name: a file, a folder or a glob; those of `val_path` are the validation split."""

    path: PathName
    val_path: PathName | None


class TextConfig(FilesConfig):
    """UTF-8 text."""

    kind: Literal["text"]


class JsonlConfig(FilesConfig):
    """JSON objects, one a line, plain or .gz; a document is the string in `field`."""

    kind: Literal["jsonl"]
    field: Name
    max_row_bytes: Size


class ParquetConfig(FilesConfig):
    """Parquet files; a document is the string in `column`."""

    kind: Literal["parquet"]
    column: Name
    max_row_bytes: Size


class HubConfig(CorpusConfig):
    """A Hugging Face data set, streamed: a name on the hub, or a folder in the hub's layout."""

    kind: Literal["hub"]
    name: PathName
    subset: Name | None
    revision: Name | None
    split: Name
    val_split: Name | None
    column: Name
    max_bytes: Size | None
    max_row_bytes: Size

    def rules(self) -> Rules:
        yield "val_split", self.val_split != self.split, "must not be the training split"


class SyntheticConfig(CorpusConfig):
    """Generated tasks whose answers can be checked; every document fills one window."""

    kind: Literal["synthetic"]
    task: Literal["recall", "copying", "induction"]
    n_documents: Annotated[int, Field(ge=2)]
    data_seed: Count

    def rules(self) -> Rules:
        one_byte = self.tokenizer.kind == "bytes"
        yield "tokenizer.kind", one_byte, "must be bytes for synthetic data"
        yield "seq_len", self.seq_len >= 16, "must be at least 16 for synthetic data"


DataConfig = Annotated[
    StdlibConfig | TextConfig | JsonlConfig | ParquetConfig | HubConfig | SyntheticConfig,
    Field(discriminator="kind"),
]
