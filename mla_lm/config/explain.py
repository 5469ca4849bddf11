"""Readable config errors: one line that names the key, its value and the rule.

Checks the overrides before Hydra does, and words pydantic's errors. Knows the files of `configs/`,
not how they are composed; torch is not needed for it.
"""

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher, get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

from mla_lm.config import CONFIGS
from mla_lm.config.secret import public
from mla_lm.config.section import leaves
from mla_lm.errors import UserError

LONGEST = 100  # characters shown of a value
KEY_VALUE = "an override is written KEY=VALUE"
PRESET = "model.sizes"  # of a size preset, for the options it interpolates; not in the typed config
CLOSE = 0.6  # similarity, from 0 to 1, of what is suggested
GUESSES = {  # what other projects call a key, where the names are not similar
    **dict.fromkeys(("epochs", "max_epochs", "num_train_epochs"), "trainer.max_steps"),
    **dict.fromkeys(("block_size", "context_length", "context"), "data.seq_len"),
    **dict.fromkeys(("n_embd", "d_model", "hidden_size"), "model.dim"),
    **dict.fromkeys(("output_dir", "out_dir", "out"), "run_dir"),
    "learning_rate": "optim.lr",
    "device": "trainer.accelerator",
    "dtype": "precision",
}


def checked(overrides: Sequence[str], *, bare: str | None = None) -> list[str]:
    """The overrides as Hydra is given them; UserError for one without a key or an unknown option.

    Keys are given as ones that may be added, so that pydantic says which are unknown. A word
    without `=` is taken for a value of the key `bare`, in what the error suggests.
    """
    found = []
    for override in overrides:
        key, equals, value = override.lstrip("+").partition("=")
        if not key:
            raise UserError(_unreadable(override))
        if bare and not equals and override[0] not in "~-":
            raise UserError(f"{_unreadable(override)}; do you mean {bare}={override}")
        if override[0] in "~-" or not equals:
            found.append(override)
        elif os.path.isdir(CONFIGS / key):
            choices = _choices(key)
            for choice in value.strip("[]").split(","):
                if choice.strip() not in choices and (key, choice) != ("experiment", "null"):
                    rule = f"unknown choice; choose from {', '.join(choices)}"
                    raise UserError(f"{key}={shown(choice)}: {rule}{_elsewhere(choice)}")
            found.append(f"{key}={value}")
        else:
            plain = "@" in key or key == PRESET or key.startswith((f"{PRESET}.", "hydra."))
            found.append(f"{key}={value}" if plain else f"++{key}={value}")
    return found


def unknown_flag(flag: str, arguments: Sequence[str]) -> str:
    """A flag of other command lines, and how its key and value are written here."""
    key, equals, value = flag.lstrip("-").partition("=")
    following = arguments[arguments.index(flag) + 1 :]
    if not equals and following and "=" not in following[0] and following[0][:1] not in ("", "-"):
        value = following[0]
    typed = f": {key.replace('-', '_')}={shown(value)}" if value else ""
    return f"{shown(flag)}: unknown flag; a key is written KEY=VALUE{typed}"


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
    here = [e for e in errors if _locate(e["loc"], values) == key]
    rules = ", or ".join(_worded(e["msg"]) for e in here)
    return f"{key}={shown(first['input'])}: must {rules}{_option(key, first['input'], here)}"


def _option(key: str, value: object, errors: Sequence[Any]) -> str:
    """What `value` is short for: an allowed one, or an option of the group that `key` is."""
    group, word = key.replace(".", "/"), str(value)
    if word in _choices(group):
        return f"; do you mean {group}={word}"
    expected = " ".join(str(e.get("ctx", {}).get("expected")) for e in errors)
    allowed = re.findall("'([^']+)'", expected)
    begun = [other for other in allowed if word and other.startswith(word)]
    found = begun or get_close_matches(word, allowed, 1, CLOSE)
    return f"; do you mean {found[0]}" if found else ""


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
    value = dict(leaves(values)).get(key)
    return f"{shown(key)}: unknown key{hint(key, known, value=value)}"


def hint(key: str, known: Collection[str], *, value: object = None) -> str:
    """`; the nearest known one is ...`: a key or, where `value` is an option of a group, that.

    One with the same last part comes before all others. Empty where no last part is similar: a far
    one would mislead.
    """
    name = _last(key)

    def likeness(other: str) -> tuple[bool, bool, float]:
        last = _last(other)
        return last == name, _ratio(last, name) >= CLOSE, _ratio(other, key)

    nearest = GUESSES.get(name, "")
    if nearest not in known:
        nearest = max(sorted(known), key=likeness)
        if not likeness(nearest)[1]:
            return ""
    group = nearest.replace(".", "/")
    is_option = "/" in group and value in _choices(group)
    return f"; the nearest known one is {f'{group}={value}' if is_option else nearest}"


def _ratio(one: str, other: str) -> float:
    return SequenceMatcher(None, one.lower(), other.lower()).ratio()


def _last(key: str) -> str:
    return re.split(r"[./]", key)[-1]


def shown(value: object) -> str:
    """A value as YAML would show it, without secrets, its beginning where it is long."""
    text = "null" if value is None else str(public(value if isinstance(value, str) else str(value)))
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


def _elsewhere(choice: str) -> str:
    """The groups that have this option."""
    folders = (path for path in sorted(CONFIGS.rglob("*")) if path.is_dir())
    groups = (str(path.relative_to(CONFIGS)) for path in folders if path.name != "ablation")
    found = [f"{group}={choice}" for group in groups if choice in _choices(group)]
    return f"; or do you mean {' or '.join(found)}" if found else ""


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
