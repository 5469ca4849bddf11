"""What the whole suite (`RECORD=1 make test-all`) has shown, in `reliability.json`, and a table."""

import json
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path

FILE = Path(__file__).with_name("reliability.json")


def record(what: str, passed: int, of: int) -> None:
    """Note a figure with its date and commit; a test calls it before it asserts."""
    if "RECORD" not in os.environ:
        return
    git = ["git", "-C", str(FILE.parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    figures = json.loads(FILE.read_text())
    figures[what] = [f"{passed} of {of}", f"{datetime.now(UTC):%Y-%m-%d}, {commit}"]
    rows = (f"  {json.dumps(key)}: {json.dumps(row)}" for key, row in figures.items())
    FILE.write_text("{\n" + ",\n".join(rows) + "\n}\n")


def table() -> str:
    """The figures in Markdown, as the page shows them."""
    figures = json.loads(FILE.read_text())
    rows = [f"| {what} | {figure} | {when} |" for what, (figure, when) in figures.items()]
    return "\n".join(["| what | figure | measured |", "|---|---|---|", *rows])
