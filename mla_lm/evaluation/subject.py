"""What is evaluated: a checkpoint or a Hugging Face folder, and a text."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mla_lm.checkpoint import find
from mla_lm.checkpoint import record as records
from mla_lm.checkpoint.corpus import OF_USER, settle_corpus
from mla_lm.checkpoint.file import digest_of
from mla_lm.config import EvalConfig, RunConfig
from mla_lm.config.compose import compose, with_overrides
from mla_lm.config.explain import key_of
from mla_lm.data import PreparedData, prepare
from mla_lm.data.tokenizer import Tokenizer
from mla_lm.errors import UserError
from mla_lm.files import digest
from mla_lm.interop.importing import is_foreign, read_folder
from mla_lm.machine import Resolved, accelerator_type, resolve_precision
from mla_lm.model import Transformer

KEPT = ("data.seq_len", "data.tokenizer", "model.vocab_size")  # of the run


class Subject(NamedTuple):
    """`folder` takes the results, `listed` is that of `prepare`.

    `record` is None where another text than the run's is used, by the overrides `text`.
    """

    path: Path
    folder: Path
    step: int
    sha256: str
    model: Transformer
    run: RunConfig
    tokenizer: Tokenizer
    record: records.Record | None
    device: str
    precision: Resolved
    text: Sequence[str]
    listed: dict[str, Any] | None

    def data(self) -> PreparedData:
        """The corpus, its validation split verified; UserError where it is not the run's own."""
        found = prepare(self.run.data, tokenizer=self.tokenizer, listed=self.listed)
        found.require_intact("val")
        if self.record is not None:
            records.require_corpus(self.path, self.record, found.manifest)
        return found


def load_subject(cfg: EvalConfig, *, data_overrides: Sequence[str] = ()) -> Subject:
    """The model on its device, and the run with `data_overrides` on its data.

    Raises UserError for what cannot be loaded, and for overrides that would change the tokenizer.
    """
    if of_tokenizer := [o for o in data_overrides if key_of(o).startswith("data.tokenizer")]:
        raise UserError(f"{of_tokenizer[0]}: the tokenizer is that of ckpt={cfg.ckpt}")
    path = Path(cfg.ckpt)
    text = [o for o in data_overrides if key_of(o) not in OF_USER]
    listed = None
    if is_foreign(path):
        run, state, tokenizer = read_folder(path, overrides=data_overrides)
        shape = run.model if cfg.context is None else run.model.extended(cfg.context)
        model = Transformer(shape).eval()
        model.load_state_dict(state)
        model.n_tokens = tokenizer.vocab_size
        folder, record, step = path, None, 0
        files = [*sorted(path.glob("*.safetensors")), path / "config.json", path / "tokenizer.json"]
        sha256 = hashlib.sha256("".join(map(digest, files)).encode()).hexdigest()
    else:
        found = find.find(cfg.ckpt, records.WEIGHTS)
        path, record = found.path, found.record
        model, run, tokenizer = found.model(cfg.context)
        folder, step = find.run_folder(path), found.content[records.STEP]
        sha256, data = digest_of(path), run.data
        if text:
            own = run.model_copy(update={"init_from": None})
            data = with_overrides(own, text, keep=KEPT).data
            data = data.model_copy(update={"tokenizer": run.data.tokenizer.of_checkpoint()})
        data, listed = settle_corpus(data, record, compose("train", data_overrides)["data"])
        run, record = run.model_copy(update={"data": data}), None if text else record
    device = accelerator_type(cfg.accelerator, key="accelerator")
    precision = resolve_precision(cfg.precision, device)
    return Subject(
        path,
        folder,
        step,
        sha256,
        model.to(device),
        run,
        tokenizer,
        record,
        device,
        precision,
        text,
        listed,
    )
