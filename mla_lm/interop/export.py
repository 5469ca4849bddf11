"""A checkpoint as a folder that `transformers`, vLLM and `lm_eval` load without code of ours."""

import json
from pathlib import Path
from typing import Any

import tokenizers
import torch

from mla_lm.checkpoint.record import read_weights, run_folder
from mla_lm.data.tokenizer import Tokenizer
from mla_lm.errors import UserError, one_line
from mla_lm.files import new_folder
from mla_lm.interop.card import model_card
from mla_lm.interop.hf_config import config_dict
from mla_lm.interop.weights import to_hugging_face, write_shards
from mla_lm.model import Transformer


def export(
    checkpoint: Path, out: Path, *, dtype: torch.dtype, max_shard_bytes: int, licence: str
) -> str:
    """Write `out`, whole or not at all; return the name of the class that runs it.

    Raises UserError for a model that no class of `transformers` computes exactly, or if `out` is
    not empty or cannot be written.
    """
    record, state, step = read_weights(checkpoint)
    cfg = record.run_config()
    try:
        with torch.device("meta"):
            Transformer(cfg.model).load_state_dict(state, assign=True)  # names and shapes
    except RuntimeError as error:
        raise UserError(f"{checkpoint}: {one_line(error)}") from None
    tokenizer = record.own_tokenizer()
    ends = dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.end_of_text)
    config = config_dict(cfg.model) | ends | {"dtype": str(dtype).removeprefix("torch.")}
    with new_folder(out) as folder:
        tensors = to_hugging_face(state, cfg.model)
        write_shards(tensors, folder, dtype=dtype, max_bytes=max_shard_bytes)
        _write_json(folder / "config.json", config)
        generation = ends | {"pad_token_id": tokenizer.end_of_text}
        _write_json(folder / "generation_config.json", generation)
        _write_tokenizer(folder, tokenizer, max_length=cfg.model.max_seq_len)
        card = model_card(
            cfg,
            record,
            config,
            _metrics(checkpoint),
            step=step,
            licence=licence,
            name=out.resolve().name,
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
    return str(config["architectures"][0])


def _write_tokenizer(folder: Path, tokenizer: Tokenizer, *, max_length: int) -> None:
    """The run's tokenizer, beginning every text with the separator of documents as in training."""
    bpe = tokenizers.Tokenizer.from_str(tokenizer.json)
    token = bpe.id_to_token(tokenizer.end_of_text)
    bpe.post_processor = tokenizers.processors.TemplateProcessing(
        single=[token, "$A"],
        pair=[token, "$A", f"{token}:1", "$B:1"],
        special_tokens=[(token, tokenizer.end_of_text)],
    )
    (folder / "tokenizer.json").write_text(bpe.to_str(), encoding="utf-8")
    content = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{kind}_token": token for kind in ("bos", "eos", "pad")},
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
    }
    _write_json(folder / "tokenizer_config.json", content)


def _metrics(checkpoint: Path) -> dict[str, Any] | None:
    """What `eval.py` measured on this checkpoint, if it did."""
    try:
        metrics = json.loads((run_folder(checkpoint) / "metrics.json").read_text())
    except (OSError, ValueError):
        return None
    own = metrics.get("ckpt") == checkpoint.name and not metrics.get("data")
    return metrics if own and "val/loss" in metrics else None


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
