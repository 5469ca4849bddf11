"""Readable config errors: one line that names the key, its value and the rule.

Checks the overrides before Hydra does, and words pydantic's errors. Knows the files of `configs/`,
not how they are composed; torch is not needed for it.
"""

import os
import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher, get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

from mla_lm.config import CONFIGS
from mla_lm.config.section import leaves
from mla_lm.config.text import readable, shown, typed
from mla_lm.errors import UserError

RULE = "must be written KEY=VALUE"
PRESET = "model.sizes"  # of a size preset, for the options it interpolates; not in the typed config
CLOSE = 0.6  # similarity, from 0 to 1, of what is suggested
GUESSES = {  # what other projects call it, and what it is here: the first that has such a key
    "epochs max_epochs num_epochs n_epochs num_train_epochs": "trainer.max_steps=N",
    "steps n_steps num_steps iters max_iters iterations": "trainer.max_steps={}",
    "grad_accum gradient_accumulation_steps": "trainer.accumulate_grad_batches={}",
    "block_size context_length context max_length sequence_length": "data.seq_len={}",
    "vocab_size": "data.tokenizer.vocab_size={}",
    "n_embd d_model hidden_size embed_dim": "model.dim={}",
    "learning_rate": "optim.lr={}",
    "device gpu": "trainer.accelerator={}|accelerator={}",
    "gpus n_gpus num_gpus world_size nproc": "trainer.devices={}",
    "dtype amp mixed_precision": "precision={}",
    "dataset corpus path data_path text file input train_file": "data=text data.path={}",
    "checkpoint checkpoint_path ckpt_path run run_dir path model": "ckpt={}",
    "ckpt checkpoint_path load load_from": "resume={}",
    "save_every save_steps": "checkpoint.every_n_steps={}",
    "output_dir out_dir output out": "run_dir={}|out={}",
    "task benchmark": "tasks=[{}]",
}


def checked(overrides: Sequence[str], *, application: str | None = None) -> list[str]:
    """The overrides as Hydra is given them; UserError for one without a key or an unknown option.

    Keys are given as ones that may be added, so that pydantic says which are unknown. Without an
    `application`, train or eval, flags and their values are left alone.
    """
    found = []
    for override in overrides:
        key, equals, value = override.lstrip("+").partition("=")
        if not key or (application and not ((equals and override[0] != "-") or override[0] == "~")):
            bare = "ckpt" if application == "eval" else None
            raise UserError(not_key_value(override, overrides, bare=bare))
        if override[0] in "~-" or not equals:
            found.append(override)
        elif os.path.isdir(CONFIGS / key) and application == "eval":
            raise UserError(f"{key}: unknown key{hint(key, ['ckpt'], value=value)}")
        elif os.path.isdir(CONFIGS / key):
            choices = _choices(key)
            for choice in value.strip("[]").split(","):
                if choice.strip() not in choices and (key, choice) != ("experiment", "null"):
                    rule = f"unknown choice; choose from {', '.join(choices)}"
                    raise UserError(f"{key}={shown(choice)}: {rule}{_elsewhere(choice, key)}")
            found.append(f"{key}={value}")
        else:
            plain = "@" in key or key == PRESET or key.startswith((f"{PRESET}.", "hydra."))
            found.append(f"{'' if plain else '++'}{key}={readable(value)}")
    return found


def not_key_value(word: str, words: Sequence[str], *, bare: str | None = None) -> str:
    """A flag or a word without a key among `words`, which is for the key `bare`, and what to type.

    Without `bare` it may be an option of a group, or a file to train on.
    """
    if word.startswith("-") or word == bare:
        meant = of_flag(word, words)
    elif bare and word.strip():
        meant = shlex.quote(f"{bare}={word}")
    elif os.path.exists(word):
        meant = f"data=text {typed('data.path', word)}"
    else:
        meant = " or ".join(_options(word))
    return f"{shown(word) if word.strip() else repr(word)}: {RULE}: {meant or '--help shows keys'}"


def of_flag(flag: str, words: Sequence[str]) -> str:
    """KEY=VALUE of a flag among `words`; empty without a value."""
    key, equals, value = flag.lstrip("-").partition("=")
    following = [*words, "-"][words.index(flag) + 1]
    if not equals and "=" not in following and not following.startswith("-"):
        value = following
    return shlex.quote(f"{key.replace('-', '_')}={value}") if value else ""


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
    word = re.sub("^(fp|float)|loat", "", word)  # float32, bfloat16
    begun = [other for other in allowed if word and other.startswith(word)]
    found = begun or get_close_matches(word, allowed, 1, CLOSE)
    return f"; do you mean {found[0]}" if found else ""


def composition_error(error: Exception) -> str:
    """What Hydra or OmegaConf refused: the override that cannot be read, or their first line."""
    text = str(error)
    if (override := getattr(error, "override", None)) is not None:
        return f"{shown(override.removeprefix('++'))}: {RULE}"
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
    found = dict(leaves(values)).get(key)
    return f"{shown(key)}: unknown key{hint(key, known, value=found)}"


def hint(key: str, known: Collection[str], *, value: object = None) -> str:
    """`; do you mean ...`: what to type for a key that other projects have, or the nearest one.

    With `value` where there is one, as an option where it is one of the group that the key is near.
    A key with the same last part comes before all others. Empty where no last part is similar: a
    far one would mislead.
    """
    name = _last(key)

    def likeness(other: str) -> tuple[bool, bool, float]:
        last = _last(other)
        return last == name, _ratio(last, name) >= CLOSE, _ratio(other, key)

    if value in (True, None) and "model" in known and (options := _options(name)):
        return f"; do you mean {' or '.join(options)}"
    text = "N" if value is None or isinstance(value, Mapping) else shown(value)
    for names, row in GUESSES.items():
        for words in row.split("|"):
            if name.lower() in names.split() and words.partition("=")[0] in known:
                return f"; do you mean {shlex.join(w.format(text) for w in words.split())}"
    nearest = max(sorted(known), key=likeness)
    if not likeness(nearest)[1]:
        return ""
    group = nearest.replace(".", "/")
    if "/" in group and value in _choices(group):
        nearest = group
    has_value = value is not None and not isinstance(value, Mapping)
    return f"; do you mean {typed(nearest, value) if has_value else nearest}"


def _ratio(one: str, other: str) -> float:
    return SequenceMatcher(None, one.lower(), other.lower()).ratio()


def _last(key: str) -> str:
    return re.split(r"[./]", key)[-1]


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


def _elsewhere(choice: str, key: str) -> str:
    """The groups that have this option; where it looks like a file, the corpus of files."""
    found = _options(choice)
    if key == "data" and re.search("[./~*]", choice):
        found.append(f"data=text {typed('data.path', choice)}")
    return f"; or do you mean {' or '.join(found)}" if found else ""


def _options(name: str) -> list[str]:
    """GROUP=NAME for the groups that have an option of that name."""
    folders = (path for path in sorted(CONFIGS.rglob("*")) if path.is_dir())
    groups = (str(path.relative_to(CONFIGS)) for path in folders if path.name != "ablation")
    return [f"{group}={name}" for group in groups if name in _choices(group)]


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
