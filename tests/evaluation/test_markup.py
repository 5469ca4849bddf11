"""Text of others in documents of ours: read back as it is, without a meaning of its own."""

import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from mla_lm.errors import inline
from mla_lm.evaluation.markup import fenced, in_csv, in_markdown

MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])
BEGINNINGS = st.sampled_from(["", "1. ", "- ", "+", "---", "# ", "> ", "=", "    ", "[a]: x"])
texts = st.builds("{}{}".format, BEGINNINGS, st.text(".)1ab -+#>=*_[](<>!`|&;~$@:/\\\n\x1b\u202e"))


@given(texts)
def test_markdown_shows_every_text_as_it_is(text: str) -> None:
    shown = " ".join(inline(text).split())
    for document, tag in (("| a |\n| --- |\n| {} |", "td"), ("* {}", "li"), ("# {}", "h1")):
        page = MARKDOWN.render(document.format(in_markdown(text)))
        (found,) = re.findall(f"<{tag}>(.*)</{tag}>", page, re.DOTALL)
        assert html.unescape(found) == shown


@given(st.text("a`~\n"))
def test_code_does_not_end_its_block(text: str) -> None:
    page = MARKDOWN.render(f"{fenced(text)}\n\nbelow")
    assert page == f"<pre><code>{text}\n</code></pre>\n<p>below</p>\n"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", " \t=1", "\n=1", "\r=1"])
def test_a_cell_is_no_formula(text: str) -> None:
    assert in_csv(text) == f"'{text.strip()}"
    assert in_csv(f"a{text}") == " ".join(f"a{text}".split())
