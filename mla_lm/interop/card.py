"""The model card of an exported folder: shape, scores, data and training command."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from mla_lm.checkpoint.record import Record
from mla_lm.config import RunConfig
from mla_lm.cost import cache_elements_per_token, count_parameters

HEADER = """---
license: {licence}
library_name: transformers
pipeline_tag: text-generation
tags:
  - mla_lm
  - {model_type}
---

# {name}

"""


def model_card(
    cfg: RunConfig,
    record: Record,
    config: Mapping[str, Any],
    metrics: Mapping[str, Any] | None,
    *,
    step: int,
    licence: str,
    name: str,
) -> str:
    """Markdown with the metadata that model hubs read; `metrics` are those of `eval.py`."""
    model, parameters = cfg.model, count_parameters(cfg.model)
    header = HEADER.format(licence=licence, model_type=config["model_type"], name=name)
    about = (
        f"A language model of {parameters.total / 1e6:.1f}M parameters, "
        f"{parameters.active / 1e6:.1f}M of them active, exported by mla_lm {version('mla_lm')}. "
        f"`transformers` runs it as `{config['architectures'][0]}`, without code of its own.\n"
    )
    shape = {
        "attention": model.attention.kind,
        "feed-forward": model.ffn.kind,
        "layers": model.n_layers,
        "width": model.dim,
        "vocabulary": model.vocab_size,
        "context": f"{model.max_seq_len} tokens",
        "KV cache": f"{cache_elements_per_token(model)} elements per token",
        "MTP modules": model.mtp_depth,
        "dtype": config["dtype"],
    }
    sections = {
        "Model": _table(shape),
        "Results": _results(metrics),
        "Data": _data(record.data),
        "Training": _training(record, step=step),
    }
    return header + about + "".join(f"\n## {title}\n\n{text}" for title, text in sections.items())


def _results(metrics: Mapping[str, Any] | None) -> str:
    if metrics is None:
        return "Not evaluated.\n"
    scores = {
        key: f"{value:.4f}"
        for key, value in metrics.items()
        if isinstance(value, float) and key.startswith(("val/", "mtp/"))
    }
    part = f", the first {metrics['limit']} batches" if metrics["limit"] else ""
    rows = f"rows of {metrics['seq_len']} tokens, {metrics['precision']}{part}"
    return f"On the validation split ({rows}), measured with this project's weights:\n\n" + _table(
        scores
    )


def _data(manifest: Mapping[str, Any]) -> str:
    if not manifest:
        return "Unknown: the weights were imported.\n"
    rows = {"corpus": manifest["name"], "bytes per token": manifest["bytes_per_token"]}
    for split in ("train", "val"):
        counts = manifest[split]
        rows[split] = (
            f"{counts['documents']:,} documents, {counts['bytes']:,} bytes, "
            f"{counts['tokens']:,} tokens"
        )
    return _table(rows)


def _training(record: Record, *, step: int) -> str:
    if not record.data:
        return "Not trained here: the weights were imported.\n"
    text = f"{step} optimizer steps.\n\n"
    if record.command:
        text += f"```bash\n{record.command}\n```\n\n"
    return text + _table(record.environment)


def _table(rows: Mapping[str, object]) -> str:
    lines = [f"| {key} | {value} |" for key, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines]) + "\n"
