"""A folder with the text that the runs of a module train on."""

from pathlib import Path

import pytest

from tests.scale.runs import write_text


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scale")
    write_text(folder / "text.txt")
    return folder
