"""What is wrong with a command line, in one line that names the key; torch is not needed for it.

Reads pydantic's errors, and those of Hydra 1.3 by their texts. Knows the files of `configs/`, but
not how they are composed.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

from pydantic import BaseModel, ValidationError

from mla_lm.config import CONFIGS
from mla_lm.config.words import leaves

LONGEST = 100  # characters that are shown of what was given
NO_NAME = re.compile(r"null|true|false|[\d.]*|\[.*|_.*", re.I)  # none is a choice
WRITTEN = "an override is written KEY=VALUE"
SWEEP = "several values at once are a sweep: add -m"
RULES = (  # of Hydra's texts: what to find, and what to say of the first group
    (r"^Could not append to config. An item is already at '([^']+)'", "is there; leave out the +"),
    (r"^Multiple values for (\S+)\. ", "is chosen already; leave out the +"),
    (r"^Could not delete from config. The value of '([^']+)' is", "has another value"),
    (r"^Could not delete '([^'=]+=[^']*)'", "is not what is chosen"),
    (r"^Could not override '([^'@]+@[^']*)'", "a choice has its own place; leave out the @"),
    (r"^(?:Ambiguous value for argument|Sweep parameters) '(.+?)'(?:$|\n| req)", SWEEP),
    (r"^You must specify '([^']+)'", "must be given"),
    (r"^Error merging override (.*)", "is neither a list for a list nor keys for keys"),
    (r"node `([^`]+)` is not a container", "must be a group of keys"),
)


def in_values(error: ValidationError, kind: type[BaseModel], values: Mapping[str, Any]) -> str:
    """The first mistake in values: an unknown key, then a width that others take, then any."""
    errors = error.errors()
    first = min(errors, key=lambda e: (e["type"] != "extra_forbidden", "sizes" not in e["loc"]))
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
    rules = (_in_words(e["msg"]) for e in errors if _locate(e["loc"], values) == key)
    return f"{key}={shown(first['input'])}: must {', or '.join(rules)}"


def in_composition(
    error: Exception, words: Sequence[str], known: Callable[[], Mapping[str, Any]]
) -> str:
    """What Hydra or OmegaConf refused of overrides; `known` composes what else was chosen."""
    text, cause = str(error), type(error.__cause__).__name__
    if (word := getattr(error, "override", None)) is not None:
        return _unreadable(word)
    if match := re.search(r"UserError raised while resolving interpolation: (.*)", text):
        return match[1]
    if match := re.search(r"(?:find|load) '((?!hydra/)[^']+/[^']+)'", text):
        return unknown_choice(*_group_and_choice(match[1]))
    if cause == "GrammarParseError":
        return _unreadable(text.removeprefix("Error merging override "))
    for pattern, rule in RULES:
        if match := re.search(pattern, text):
            return f"{shown(match[1])}: {rule}"
    if match := re.search(r"Could not (?:override|delete)[^']*'([^']+)'", text):
        return unknown_key(str(getattr(error.__cause__, "full_key", match[1])), known())
    if match := re.search(r"Missing mandatory value: (\S+)", text):
        key = match[1] if "." in match[1] else getattr(error, "full_key", match[1])
        return f"{key}: must be given"
    for word in words:
        group, _, choice = word.lstrip("+").partition("=")
        if not group:
            return f"{shown(word)}: {WRITTEN}"
        if NO_NAME.fullmatch(choice) and os.path.isdir(CONFIGS / group):
            return unknown_choice(group, choice)
    match = re.search(r"Interpolation key '([^']+)' not found", text)
    if match and match[1] in dotted_keys(known()):
        return f"{match[1]}: must be given"
    where = getattr(error, "full_key", None) or " ".join(words)
    reason = error.strerror if isinstance(error, OSError) and error.strerror else text
    return f"{shown(where)}: {shown((reason or type(error).__name__).splitlines()[0])}"


def unknown_key(key: str, values: Mapping[str, Any], *, also: Iterable[str] = ()) -> str:
    """`key` is not among the keys of `values` and `also`: where it belongs, or the nearest one."""
    group, _, name = key.rpartition(".")
    folder = group.replace(".", "/")
    homes = [f"{folder}={choice}" for choice in _choices(folder) if _sets(folder, choice, name)]
    if group and homes:
        kind = dict(leaves(values)).get(f"{group}.kind")
        return f"{key}: no key of {group}.kind={kind}; it belongs to {' or '.join(homes)}"
    others = {*also, *dotted_keys(values)} - {key}
    known = [other for other in others if not other.startswith(f"{key}.")]
    return f"{shown(key)}: unknown key; the nearest known one is {nearest(key, known)}"


def unknown_choice(group: str, choice: str) -> str:
    """`choice` is no file of the folder `group`."""
    return f"{group}={shown(choice)}: unknown choice; choose from {', '.join(_choices(group))}"


def unknown_flag(flag: str, known: Iterable[str]) -> str:
    """`flag` is none of Hydra's; mostly it was meant as a key."""
    if "=" in flag:
        return f"{shown(flag)}: unknown flag; a key is written {shown(flag.lstrip('-'))}"
    return f"{shown(flag)}: unknown flag; the nearest known one is {nearest(flag, known)}"


def nearest(word: str, known: Iterable[str]) -> str:
    """The likest of `known`, whatever the case; one of the same last part before all others."""

    def likeness(other: str) -> tuple[bool, float]:
        ratio = SequenceMatcher(None, other.lower(), word.lower()).ratio()
        return other.split(".")[-1] == re.split(r"[./]", word)[-1], ratio

    return max(sorted(known), key=likeness)


def shown(value: object) -> str:
    """A value as YAML would show it, its beginning where it is long."""
    text = "null" if value is None else str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text)} characters)"


def _unreadable(word: str) -> str:
    if "=" not in word:
        return f"{shown(word) if word.strip() else repr(word)}: {WRITTEN}"
    return f"{shown(word)}: cannot be read as KEY=VALUE; quote what is special, KEY='VALUE'"


def _in_words(rule: str) -> str:
    """Pydantic's rule in the words of YAML, without who should follow it."""
    rule = re.sub(r"^\w+ should ", "", rule)
    return re.sub(
        r"a valid dictionary.*", "a group of keys", rule.replace("a valid tuple", "a list")
    )


def _locate(location: Sequence[int | str], values: Any) -> str:
    """The dotted key of a pydantic location, without the union tags pydantic puts into it."""
    parts = []
    for part in location:
        inside = isinstance(values, list | tuple) if isinstance(part, int) else _has(values, part)
        if isinstance(part, int) and (not inside or part >= len(values)):
            break
        if inside:
            parts.append(str(part))
            values = values[part]
    return ".".join(parts)


def _has(values: Any, key: str) -> bool:
    return isinstance(values, Mapping) and key in values


def _group_and_choice(path: str) -> tuple[str, str]:
    """A file that was looked for, as the deepest group that there is and what it lacks."""
    parts = path.split("/")
    depth = next(
        n for n in range(len(parts) - 1, -1, -1) if os.path.isdir(CONFIGS.joinpath(*parts[:n]))
    )
    return "/".join(parts[:depth]), "/".join(parts[depth:])


def _choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("[!_]*.yaml"))


def _sets(group: str, choice: str, name: str) -> bool:
    """Whether the file of a choice gives `name` a value."""
    text = (CONFIGS / group / f"{choice}.yaml").read_text()
    return re.search(rf"^{re.escape(name)}:", text, re.M) is not None


def dotted_keys(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Every key, those of whole groups too."""
    for key, value in values.items():
        yield _join(prefix, key)
        if isinstance(value, Mapping):
            yield from dotted_keys(value, _join(prefix, key))


def _join(prefix: str, key: str) -> str:
    return f"{prefix}.{key}" if prefix else key
