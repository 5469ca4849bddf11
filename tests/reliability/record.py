"""What the whole suite (`make test-all`) has shown, in `reliability.json`, and as a table."""

import json
from pathlib import Path

FILE = Path(__file__).with_name("reliability.json")


def record(what: str, passed: int, of: int) -> None:
    """Note a figure; a test calls it with what it has counted, before it asserts."""
    figures = json.loads(FILE.read_text()) if FILE.exists() else {}
    figures[what] = {"passed": passed, "of": of}
    FILE.write_text(json.dumps(figures, indent=2) + "\n")


def table() -> str:
    """The figures in Markdown, as the README shows them."""
    figures = json.loads(FILE.read_text())
    rows = [f"| {what} | {f['passed']} of {f['of']} |" for what, f in figures.items()]
    return "\n".join(["| what | figure |", "|---|---|", *rows])
