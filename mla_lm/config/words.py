"""A configuration as the words of a command line that make it."""

import json
from collections.abc import Iterator, Mapping
from typing import Any


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values, in order."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def model_words(model: Mapping[str, Any]) -> list[str]:
    """Overrides that compose this `model` section, whatever the preset; all of it is said."""
    kinds = [f"model/{part}={model[part]['kind']}" for part in ("attention", "ffn", "rope")]
    return kinds + [f"{key}={json.dumps(value)}" for key, value in leaves(model, "model.")]


def pretrained_words(*, end_of_text: str, vocab_size: int) -> list[str]:
    """Overrides for a tokenizer that comes with a checkpoint, and is taken from there."""
    return [
        "data/tokenizer=pretrained",
        "data.tokenizer.path=tokenizer.json",
        quoted("data.tokenizer.end_of_text", end_of_text),
        f"data.tokenizer.vocab_size={vocab_size}",
    ]


def quoted(key: str, value: object) -> str:
    """An override whose value Hydra takes as it is."""
    return "{}='{}'".format(key, str(value).replace("'", "\\'"))
