"""A checkpoint as a folder that `transformers`, vLLM and `lm_eval` load without code of ours."""

import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tokenizers
import torch

from mla_lm.checkpoint.file import digest_of
from mla_lm.checkpoint.find import find, run_folder
from mla_lm.checkpoint.record import STEP, WEIGHTS, Record
from mla_lm.config import ModelConfig
from mla_lm.config.compose import read_as
from mla_lm.cost import cache_elements_per_token, count_parameters
from mla_lm.data.tokenizer import Tokenizer
from mla_lm.errors import UserError, one_line, visible
from mla_lm.evaluation.markup import fenced, in_markdown
from mla_lm.evaluation.results import Results
from mla_lm.files import new_folder, write_object
from mla_lm.interop.config_to_hf import config_dict
from mla_lm.interop.weights import to_hugging_face, write_shards

CARD = """---
license: {licence}
library_name: transformers
pipeline_tag: text-generation
tags:
  - mla_lm
  - {config[model_type]}
---

# {name}

Exported by mla_lm {version}; `transformers` runs it as `{config[architectures][0]}`.

## Model

{model}
## Results

{results}
## Data

{data}
## Training

{training}"""


def export(
    checkpoint: Path, out: Path, *, dtype: torch.dtype, max_shard_bytes: int, licence: str
) -> str:
    """Write `out`, whole or not at all; return the name of the class that runs it.

    Raises UserError for a model that no class of `transformers` computes exactly, or if `out` is
    not empty or cannot be written.
    """
    found = find(checkpoint, WEIGHTS)
    record, state, step = found.record, found.weights(), found.content[STEP]
    cfg = record.run_config()
    try:
        origin = _origin(record, step)
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # a record made by hand
        raise UserError(f"{checkpoint}: its data cannot be described ({one_line(error)})") from None
    tokenizer = record.own_tokenizer()
    ends = dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.end_of_text)
    config = config_dict(cfg.model) | ends | {"dtype": str(dtype).removeprefix("torch.")}
    with new_folder(out) as folder:
        tensors = to_hugging_face(state, cfg.model)
        write_shards(tensors, folder, dtype=dtype, max_bytes=max_shard_bytes)
        write_object(folder / "config.json", config)
        generation: dict[str, Any] = ends | {"pad_token_id": tokenizer.end_of_text}
        if padding := [*range(tokenizer.vocab_size, cfg.model.vocab_size)]:
            generation["suppress_tokens"] = padding
        write_object(folder / "generation_config.json", generation)
        _write_tokenizer(folder, tokenizer, max_length=cfg.model.max_seq_len)
        sections = {"model": _model(cfg.model, config["dtype"]), "results": _results(checkpoint)}
        head = {"licence": licence, "name": in_markdown(out.resolve().name), "config": config}
        card = CARD.format(**head, **sections, **origin, version=version("mla_lm"))
        (folder / "README.md").write_text(card, encoding="utf-8")
    return str(config["architectures"][0])


def _write_tokenizer(folder: Path, tokenizer: Tokenizer, *, max_length: int) -> None:
    """The run's tokenizer, beginning every text with the separator of documents as in training."""
    bpe = tokenizers.Tokenizer.from_str(tokenizer.json)
    token = bpe.id_to_token(tokenizer.end_of_text)
    bpe.post_processor = tokenizers.processors.TemplateProcessing(
        single=["begin", "$A"],  # not the token itself, which would be read as a template
        pair=["begin", "$A", "begin:1", "$B:1"],
        special_tokens=[{"id": "begin", "ids": [tokenizer.end_of_text], "tokens": [token]}],
    )
    (folder / "tokenizer.json").write_text(bpe.to_str(), encoding="utf-8")
    content = dict.fromkeys(("bos_token", "eos_token", "pad_token"), token) | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",  # a batch of prompts is continued at its right end
        "split_special_tokens": True,  # what looks like one in a text is text, as in training
    }
    write_object(folder / "tokenizer_config.json", content)


def _model(model: ModelConfig, dtype: str) -> str:
    parameters = count_parameters(model)
    shape = {
        "parameters": f"{parameters.total / 1e6:.1f}M, {parameters.active / 1e6:.1f}M active",
        "attention, FFN": f"{model.attention.kind}, {model.ffn.kind}",
        "layers, width": f"{model.n_layers}, {model.dim}",
        "vocabulary, context": f"{model.vocab_size}, {model.max_seq_len} tokens",
        "KV cache": f"{cache_elements_per_token(model)} elements per token",
        "MTP modules": model.mtp_depth,
        "dtype": dtype,
    }
    return _table(shape)


def _origin(record: Record, step: int) -> dict[str, str]:
    """The sections about data and training."""
    if "name" not in record.data:
        return dict.fromkeys(("data", "training"), "Unknown: the weights were imported.\n")
    counts = "{documents:,} documents, {bytes:,} bytes, {tokens:,} tokens".format_map
    data = {
        "corpus": record.data["name"],
        "bytes per token": record.data["bytes_per_token"],
        **{split: counts(record.data[split]) for split in ("train", "val")},
    }
    command = f"{fenced(visible(record.command), 'bash')}\n\n" if record.command else ""
    training = f"{step} optimizer steps.\n\n{command}{_table(record.environment)}"
    return {"data": _table(data), "training": training}


def _results(checkpoint: Path) -> str:
    """What `eval.py` measured on this checkpoint, if it did."""
    path = run_folder(checkpoint) / "metrics.json"
    try:
        found = read_as(Results, path) if path.exists() else None
    except UserError as error:
        print(f"skipped {error}", file=sys.stderr)
        found = None
    of_these = found is not None and found.sha256 == digest_of(checkpoint) and not found.data
    numbers = found.numbers() if found and of_these else {}
    if not found or "val/loss" not in numbers:
        return "Not evaluated.\n"
    part = f", the first {found.limit} batches" if found.limit else ""
    rows = f"rows of {found.seq_len} tokens, {in_markdown(found.precision)}{part}"
    of_text = ("val/", "mtp/")
    scores = {name: f"{value:.4f}" for name, value in numbers.items() if name.startswith(of_text)}
    return f"On the validation split ({rows}), with this project's weights:\n\n{_table(scores)}"


def _table(rows: Mapping[str, object]) -> str:
    lines = [f"| {in_markdown(key)} | {in_markdown(value)} |" for key, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines]) + "\n"
