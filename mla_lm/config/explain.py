"""Readable config errors: one line that names the key, its value and the rule.

Checks the overrides before Hydra does, and words pydantic's errors. Knows the files of `configs/`,
not how they are composed; torch is not needed for it.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

from pydantic import BaseModel, ValidationError

from mla_lm.config import CONFIGS
from mla_lm.config.section import leaves
from mla_lm.errors import UserError

LONGEST = 100  # characters shown of a value
KEY_VALUE = "an override is written KEY=VALUE"
PRESET = "model.sizes"  # of a size preset, for the options it interpolates; not in the typed config


def checked(overrides: Sequence[str]) -> list[str]:
    """The overrides as Hydra is given them; UserError for one without a key or an unknown option.

    Keys are given as ones that may be added, so that pydantic says which are unknown.
    """
    found = []
    for override in overrides:
        key, equals, value = override.lstrip("+").partition("=")
        if not key:
            raise UserError(_unreadable(override))
        if override[0] in "~-" or not equals:
            found.append(override)
        elif os.path.isdir(CONFIGS / key):
            choices = _choices(key)
            for choice in value.strip("[]").split(","):
                if choice.strip() not in choices and not (key, choice) == ("experiment", "null"):
                    raise UserError(
                        f"{key}={shown(choice)}: unknown choice; choose from {', '.join(choices)}"
                    )
            found.append(f"{key}={value}")
        else:
            plain = "@" in key or key == PRESET or key.startswith((f"{PRESET}.", "hydra."))
            found.append(f"{key}={value}" if plain else f"++{key}={value}")
    return found


def key_of(override: str) -> str:
    """The dotted key that an override names; of a group, that of its section."""
    return override.lstrip("+~").partition("=")[0].replace("/", ".")


def validation_error(
    error: ValidationError, kind: type[BaseModel], values: Mapping[str, Any]
) -> str:
    """The first mistake in values, an unknown key before all others."""
    errors = error.errors()
    first = min(errors, key=lambda e: e["type"] != "extra_forbidden")
    context = first.get("ctx", {})
    key = _locate(first["loc"], values)
    if first["type"] == "rule":
        return f"{_join(key, context['key'])}={shown(context['value'])}: {context['rule']}"
    if first["type"] == "union_tag_invalid":
        return f"{key}.kind={shown(context['tag'])}: must be one of {context['expected_tags']}"
    if first["type"] == "extra_forbidden":
        return unknown_key(key, values, also=kind.model_fields)
    if first["type"] == "missing":
        return f"{_join(key, str(first['loc'][-1]))}: must be given"
    rules = (_worded(e["msg"]) for e in errors if _locate(e["loc"], values) == key)
    return f"{key}={shown(first['input'])}: must {', or '.join(rules)}"


def composition_error(error: Exception) -> str:
    """What Hydra or OmegaConf refused: the override that cannot be read, or their first line."""
    text = str(error)
    if (override := getattr(error, "override", None)) is not None:
        return _unreadable(override.removeprefix("++"))
    if match := re.search(r"UserError raised while resolving interpolation: (.*)", text):
        return match[1]
    if match := re.match(r"Ambiguous value for argument '(?:\+\+)?(.+?)'", text):
        return f"{shown(match[1])}: several values at once are a sweep: add -m"
    key = getattr(error, "full_key", None)
    if match := re.search(r"Missing mandatory value: (\S+)", text):
        return f"{match[1] if '.' in match[1] else key}: must be given"
    reason = error.strerror if isinstance(error, OSError) and error.strerror else text
    line = shown((reason or type(error).__name__).splitlines()[0]).replace("++", "")
    return f"{key}: {line}" if key else line


def unknown_key(key: str, values: Mapping[str, Any], *, also: Iterable[str] = ()) -> str:
    """`key` is not among the keys of `values` and `also`: where it belongs, or the nearest one."""
    group, _, name = key.rpartition(".")
    folder = group.replace(".", "/")
    homes = [f"{folder}={choice}" for choice in _choices(folder) if _sets(folder, choice, name)]
    if group and homes:
        kind = dict(leaves(values)).get(f"{group}.kind")
        return f"{key}: no key of {group}.kind={kind}; it belongs to {' or '.join(homes)}"
    others = {*also, *_dotted_keys(values)} - {key}
    known = [other for other in others if not other.startswith(f"{key}.")]
    return f"{shown(key)}: unknown key; the nearest known one is {nearest(key, known)}"


def nearest(word: str, known: Iterable[str]) -> str:
    """The most similar of `known`; one with the same last part before all others."""

    def likeness(other: str) -> tuple[bool, float]:
        ratio = SequenceMatcher(None, other.lower(), word.lower()).ratio()
        return other.split(".")[-1] == re.split(r"[./]", word)[-1], ratio

    return max(sorted(known), key=likeness)


def shown(value: object) -> str:
    """A value as YAML would show it, its beginning where it is long."""
    text = "null" if value is None else str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text)} characters)"


def _unreadable(override: str) -> str:
    if "=" not in override:
        return f"{shown(override) if override.strip() else repr(override)}: {KEY_VALUE}"
    return f"{shown(override)}: cannot be read as KEY=VALUE; quote what is special, KEY='VALUE'"


def _worded(rule: str) -> str:
    """Pydantic's rule in the words of YAML, without who should follow it."""
    rule = re.sub(r"^\w+ should ", "", rule).replace("a valid tuple", "a list")
    return re.sub(r"a valid dictionary.*", "a group of keys", rule)


def _locate(location: Sequence[int | str], values: Any) -> str:
    """The dotted key of a pydantic location, without the union tags pydantic puts into it."""
    parts = []
    for part in location:
        is_index = isinstance(part, int)
        known = range(len(values)) if is_index and isinstance(values, list | tuple) else values
        if isinstance(known, Mapping | range) and part in known:
            parts.append(str(part))
            values = values[part]
        elif is_index:
            break
    return ".".join(parts)


def _choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("[!_]*.yaml"))


def _sets(group: str, choice: str, name: str) -> bool:
    """Whether the file of a choice gives `name` a value."""
    text = (CONFIGS / group / f"{choice}.yaml").read_text(encoding="utf-8")
    return re.search(rf"^{re.escape(name)}:", text, re.M) is not None


def _dotted_keys(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Every key, those of whole groups too."""
    for key, value in values.items():
        yield _join(prefix, key)
        if isinstance(value, Mapping):
            yield from _dotted_keys(value, _join(prefix, key))


def _join(prefix: str, key: str) -> str:
    return f"{prefix}.{key}" if prefix else key
