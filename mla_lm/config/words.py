"""A configuration as the words of a command line that make it."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mla_lm.config import TokenizerConfig

DATA = ("data=", "data.", "data/")  # how overrides of that group begin
LOGGER = ("logger=", "logger.", "logger/", "logger@")
NAMES = "(api_?key|auth|token|secret|password|credentials?)"
SECRET = re.compile(rf"(^|[._]){NAMES}$", re.IGNORECASE)
IN_BRACES = re.compile(rf"(\b|_){NAMES}['\"]?\s*:", re.IGNORECASE)  # {api_key: ...}
ACCOUNT = re.compile(r"(\w+://)[^/@\s]+@")  # of an address
OF_TOKENIZER = ("data/tokenizer", "data.tokenizer")  # how overrides of it begin


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


def tokenizer_words(tokenizer: TokenizerConfig) -> list[str]:
    """Overrides for the tokenizer of a checkpoint, which is then taken from there."""
    if tokenizer.kind == "bytes":
        return ["data/tokenizer=bytes"]
    return pretrained_words(end_of_text=tokenizer.end_of_text, vocab_size=tokenizer.vocab_size)


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


def public(tree: Any) -> Any:
    """A configuration without keys that name secrets, and without passwords in addresses."""
    if isinstance(tree, dict):
        return {k: public(v) for k, v in tree.items() if not SECRET.search(str(k))}
    if isinstance(tree, list):
        return [public(item) for item in tree]
    return ACCOUNT.sub(r"\1", tree) if isinstance(tree, str) else tree


def public_words(words: Sequence[str]) -> list[str]:
    """Overrides without those of `public`'s secrets."""
    open_words = [word for word in words if not SECRET.search(word.partition("=")[0])]
    return [public(word) for word in open_words if not IN_BRACES.search(word)]
