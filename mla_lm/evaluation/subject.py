"""What is evaluated: a checkpoint or a Hugging Face folder, and the text to do it on."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mla_lm.checkpoint import file as checkpoint_file
from mla_lm.checkpoint.record import (
    RECORD,
    STEP,
    load_checkpoint,
    locate,
    read,
    require_corpus,
    run_folder,
)
from mla_lm.config import EvalConfig, RunConfig
from mla_lm.config.compose import load_config
from mla_lm.config.words import DATA, OF_TOKENIZER, tokenizer_words
from mla_lm.data import PreparedData, prepare
from mla_lm.data.prepared import sha256 as text_digest
from mla_lm.data.shards import digest
from mla_lm.data.tokenizer import Tokenizer
from mla_lm.errors import UserError
from mla_lm.interop.importing import is_foreign, read_folder
from mla_lm.machine import Resolved, accelerator_type, resolve_precision
from mla_lm.model import Transformer

KEPT = ("data.seq_len=", "data.cache_dir=")  # of the run, whatever the text


class Subject(NamedTuple):
    """`folder` is where results go; `own_data` tells that no other text was named."""

    path: Path
    folder: Path
    step: int
    sha256: str
    model: Transformer
    run: RunConfig
    tokenizer: Tokenizer
    own_data: bool
    device: str
    precision: Resolved

    def data(self) -> PreparedData:
        """The corpus; UserError when it is the run's own and has changed since."""
        found = prepare(self.run.data, tokenizer=self.tokenizer)
        if self.own_data and self.path.is_file():
            require_corpus(self.path, found.manifest)
        return found


def load_subject(cfg: EvalConfig, *, data_words: Sequence[str]) -> Subject:
    """The model on its device; `data_words` are overrides of the `data` group.

    Raises UserError for what cannot be loaded, and for words that would change the tokenizer.
    """
    if of_tokenizer := [word for word in data_words if word.startswith(OF_TOKENIZER)]:
        raise UserError(f"{of_tokenizer[0]}: the tokenizer is that of ckpt={cfg.ckpt}")
    path = Path(cfg.ckpt).expanduser()
    if is_foreign(path):
        found = read_folder(path, words=data_words)
        run, tokenizer = found.cfg, found.tokenizer
        model_cfg = run.model if cfg.context is None else run.model.extended(cfg.context)
        model = Transformer(model_cfg).eval()
        model.load_state_dict(found.state)
        folder, step = path, 0
        files = [*sorted(path.glob("*.safetensors")), path / "config.json", path / "tokenizer.json"]
        sha256 = text_digest("".join(map(digest, files)))
    else:
        path = locate(cfg.ckpt)
        model, run, tokenizer = load_checkpoint(path, context=cfg.context)
        folder = run_folder(path)
        record, content = read(path, RECORD)
        step, sha256 = content[STEP], checkpoint_file.digest_of(path)
        if data_words:
            stored = record.overrides
            if any(word.startswith("data=") for word in data_words):  # nothing of the old text
                stored = [w for w in stored if not w.startswith(DATA) or w.startswith(KEPT)]
            words = [*stored, *data_words, *tokenizer_words(run.data.tokenizer)]
            run = run.model_copy(update={"data": load_config(words).data})
    device = accelerator_type()
    precision = resolve_precision(cfg.precision, device)
    return Subject(
        path,
        folder,
        step,
        sha256,
        model.to(device),
        run,
        tokenizer,
        own_data=not data_words,
        device=device,
        precision=precision,
    )
