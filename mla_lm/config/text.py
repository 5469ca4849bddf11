"""Values as text: shown in a message, read by Hydra's grammar, typed in a shell."""

import os
import re
import shlex
import shutil
import sys

from mla_lm.config.secret import public

LONGEST = 100  # characters shown of a value
UNREADABLE = object()


def shown(value: object) -> str:
    """A value as YAML would show it, without secrets, its beginning where it is long."""
    text = "null" if value is None else str(public(value if isinstance(value, str) else str(value)))
    text = text.lower() if isinstance(value, bool) else text
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text)} characters)"


def typed(key: str, value: object) -> str:
    """`key=value` as it is typed in a shell; a text keeps its meaning."""
    text = shown(value).replace(", ", ",")
    if isinstance(value, str):
        as_it_is = literal(value) == value == _parsed(readable(value))
        text = value if as_it_is else _quoted(literal(value))
    return shlex.quote(f"{key}={text}")


def train_py() -> list[str]:
    """How this Python runs this `train.py`: by its path where `python` is another one."""
    python, script = shutil.which("python") or "", sys.argv[0]
    same = os.path.dirname(python) == os.path.dirname(sys.executable)
    is_named = os.path.basename(script) == "train.py"
    return ["python" if same else sys.executable, script if is_named else "train.py"]


def literal(text: str) -> str:
    """A text in which OmegaConf finds nothing to interpolate."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def readable(value: str) -> str:
    """A value as Hydra reads it: what its grammar refuses, also in a list, is text."""
    if _parsed(value) is not UNREADABLE:
        return value
    if value[0] == "[" and value[-1] == "]" and not {*"'\""} & {*value}:
        return f"[{','.join(map(readable, value[1:-1].split(',')))}]"
    return _quoted(value)


def _quoted(text: str) -> str:
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(text, Quote.single).with_quotes()


def _parsed(value: str) -> object:
    """What Hydra's grammar makes of a value."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(f"_={value}").value()
    except HydraException:
        return UNREADABLE
