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
from mla_lm.config.compose import with_overrides
from mla_lm.config.explain import key_of
from mla_lm.data import PreparedData, prepare
from mla_lm.data.prepared import sha256 as text_digest
from mla_lm.data.shards import digest
from mla_lm.data.tokenizer import Tokenizer
from mla_lm.errors import UserError
from mla_lm.interop.importing import is_foreign, read_folder
from mla_lm.machine import Resolved, accelerator_type, resolve_precision
from mla_lm.model import Transformer

KEPT = ("data.seq_len", "data.cache_dir", "data.tokenizer", "model.vocab_size")  # of the run


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
            require_corpus(self.path, read(self.path, RECORD)[0], found.manifest)
        return found


def load_subject(cfg: EvalConfig, *, data_words: Sequence[str]) -> Subject:
    """The model on its device; `data_words` are overrides of the `data` group.

    Raises UserError for what cannot be loaded, and for words that would change the tokenizer.
    """
    if of_tokenizer := [w for w in data_words if key_of(w).startswith("data.tokenizer")]:
        raise UserError(f"{of_tokenizer[0]}: the tokenizer is that of ckpt={cfg.ckpt}")
    path = Path(cfg.ckpt).expanduser()
    if is_foreign(path):
        found = read_folder(path, overrides=data_words)
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
        content = read(path, RECORD)[1]
        step, sha256 = content[STEP], checkpoint_file.digest_of(path)
        if data_words:
            own = run.model_copy(update={"init_from": None})
            own_tokenizer = run.data.tokenizer.of_checkpoint()
            data = with_overrides(own, data_words, keep=KEPT).data
            data = data.model_copy(update={"tokenizer": own_tokenizer})
            run = run.model_copy(update={"data": data})
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
