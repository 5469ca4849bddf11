"""Text of others in documents: plain in Markdown, never a formula in a table for spreadsheets."""

import re

from mla_lm.errors import inline

MARKUP = re.compile(
    r"[\\`*<>\[\]|&~$#@]|(?<![^\W_])_|_(?![^\W_])"  # not within words: `kv_lora_rank` is plain
    r"|:(?=//)|(?<=www)\.|^[-+=](?=[-=\s]|$)"
)
NUMBERED = re.compile(r"^(\d+)([.)])(?=\s|$)")
FORMULA = ("=", "+", "-", "@")


def in_markdown(value: object) -> str:
    """On one line, without a meaning for Markdown: names, cells of tables, sentences."""
    text = " ".join(inline(str(value)).split())
    return NUMBERED.sub(r"\1\\\2", MARKUP.sub(r"\\\g<0>", text))


def fenced(text: str, language: str = "") -> str:
    """A block of code, whatever backticks the text has."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def in_csv(text: str) -> str:
    """A cell that a spreadsheet does not compute."""
    text = " ".join(inline(text).split())
    return f"'{text}" if text.startswith(FORMULA) else text
