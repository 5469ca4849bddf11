"""What may be shown of texts and configurations: everything but secrets, by name and by value.

By name: its last word decides. `password`, `secret`, `credentials`, `Authorization` and such are
secret, and so is `token`; `key` and `tokens` are behind another word (`api_key`, `hf_tokens`), but
not where that counts them or says what kind of text they are (`n_tokens`, `pad_token`).
By value: what such a name held in a configuration of this process, or holds in its environment, is
hidden wherever it stands, unless it is too short or too plain a word to be told from other text.
"""

import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

HIDDEN = "***"
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
ALWAYS = re.compile(
    ".*(password|passwd|passphrase|passcode|pwd|secret|credential|apikey|jwt)s?|.+tokens?"
    "|o?auth|authorization|bearer|cookies?"
)
BEHIND_A_WORD = ("key", "keys", "token", "tokens", "pass")
BUT = {  # such a word
    *("n", "num", "max", "min", "new", "total", "per", "of", "pad", "eos", "bos", "unk", "sep"),
    *("cls", "mask", "special", "added", "start", "stop", "end", "text", "image", "public"),
    *("primary", "foreign", "sort", "group", "cache", "metric", "forward", "backward"),
}
FOLDERS = ("PWD", "OLDPWD")  # of every shell
NO_VALUE = ("", "null", "none", "true", "false")
SHORT, PLAIN = 6, 16  # characters that tell a value from other text, and a plain word
NAMED = re.compile(  # begun where no name has, so that the time does not grow with its square
    r"(?P<before>[{,]\s*|['\"?&])?(?<![\w-])(?P<name>[\w-]++)['\"]?\s*+(?P<sign>[=:])\s*+"
)
VALUE = re.compile(  # begun by a quote, a bracket, a scheme of HTTP, or anything
    r"'[^']*'?|\"[^\"]*\"?|[\[{(](?:.*[\]})]|.*)|(?:Bearer|Basic|Token)\s+\S+"
    r"|\S*[^\s,;:)}\]]|\S+",
    re.DOTALL,
)
IN_GROUP = re.compile(r"'[^']*'?|\"[^\"]*\"?|[\[{(][^\]})]*[\]})]?|[^,}]+")  # {KEY: VALUE}
ACCOUNT = re.compile(r"(?<![\w+.-])([\w+.-]++://)(?:[^\s/@:]*:\S*|[^\s/@]+)@")  # of an address
_met: set[str] = set()  # values of secret names, of every configuration of this process


@cache
def is_secret(name: str) -> bool:
    """Whether what is called so is nobody else's business."""
    words = [word.lower() for word in WORD.findall(name)]
    last = words[-1] if words else ""
    if len(words) > 1 and last in BEHIND_A_WORD:
        return words[-2] not in BUT
    return last in ("token", "pass") or ALWAYS.fullmatch(last) is not None


def public(tree: Any) -> Any:
    """A configuration without secret keys, overrides without those of such keys, texts `hidden`."""
    if isinstance(tree, Mapping):
        return {k: public(v) for k, v in tree.items() if not _holds_secret(str(k), v)}
    if isinstance(tree, list | tuple):
        return [public(item) for item in tree if not _sets_secret(item)]
    if not isinstance(tree, str):
        return tree
    return f"{tree.partition('=')[0]}={HIDDEN}" if _sets_secret(tree) else hidden(tree)


def hidden(text: str) -> str:
    """A text without passwords in addresses, what stands behind secret names, and their values."""
    text = re.sub(r"\S+", _without_account, _without_named(text))
    for value in sorted(_values(), key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return text


def remember(tree: Any, *, secret: bool = False) -> None:
    """Hide from now on what a configuration holds under secret names."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            remember(value, secret=secret or _holds_secret(str(key), value))
    elif isinstance(tree, list | tuple):
        for item in tree:
            remember(item, secret=secret)
    elif secret and isinstance(tree, str):
        _met.add(tree)


def _holds_secret(name: str, value: Any) -> bool:
    """Numbers under a plural are counts."""
    text = "" if value is None else str(value).lower()
    counts = name.lower().endswith("s") and re.fullmatch(r"[-+\d._e]+", text) is not None
    return text not in NO_VALUE and not counts and is_secret(name)


def _sets_secret(word: Any) -> bool:
    """Whether an override KEY=VALUE, or one of a group {KEY: VALUE}, is of a secret name."""
    key, equals, value = word.partition("=") if isinstance(word, str) else ("", "", "")
    if not equals or re.search(r"\s", key):
        return False
    named = any(_holds_secret(part, value) for part in re.split("[./]", key))
    return named or ("{" in value and _without_named(value) != value)


def _without_account(word: re.Match[str]) -> str:
    address, at, rest = word[0].rpartition("@")
    return ACCOUNT.sub(r"\1", address + at) + rest


def _without_named(text: str) -> str:
    shown, end = [], 0  # of what has been looked at
    for match in NAMED.finditer(text):
        name, before, sign = match["name"], match["before"] or "", match["sign"]
        in_query = before in ("?", "&") and name in ("key", "sig")
        paired = sign == "=" or before or name.lower().endswith("authorization")
        named = paired and (in_query or is_secret(name))
        if match.end() < end or not named or text.startswith(HIDDEN, match.end()):
            continue
        is_key = sign == ":" and before[:1] in ("{", ",")
        value = (IN_GROUP if is_key else VALUE).match(text, match.end())
        if value and (in_query or _holds_secret(name, value[0])):
            shown.append(text[end : match.end()] + HIDDEN)
            end = value.end()
    return "".join(shown) + text[end:]


def _values() -> Iterator[str]:
    """Those that `hidden` looks for, as they are and in one line."""
    names = (name for name in os.environ if is_secret(name) and name not in FOLDERS)
    for value in (*_met, *(os.environ[name] for name in names)):
        plain = value.isalpha() or value.isdigit()
        if len(value) >= (PLAIN if plain else SHORT):
            yield from {value, " ".join(value.split())}
