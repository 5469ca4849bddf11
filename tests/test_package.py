"""What `pip install` puts on a machine works from any folder, configs included."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.processes import ROOT


def test_every_package_is_listed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {".".join(p.parent.relative_to(ROOT).parts) for p in ROOT.glob("mla_lm/**/__init__.py")}
    assert found | {"mla_lm.configs"} == {*settings["packages"]}


def test_floors_and_pinned_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    required = [Requirement(text) for group in (project["dependencies"], *extras) for text in group]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    pinned = {canonicalize_name(name): version for name, version in pins}
    for one in required:
        if one.name != "mla_lm":
            assert [spec.operator for spec in one.specifier] == [">="], one
            assert one.specifier.contains(pinned[canonicalize_name(one.name)]), one


@pytest.mark.slow
def test_installed_package_composes_and_runs_from_any_folder(tmp_path: Path) -> None:
    site = tmp_path / "site"
    options = ["--quiet", "--no-deps", "--target", str(site)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(ROOT)], check=True)
    code = "import mla_lm; print(mla_lm.__file__, mla_lm.load_config(['model=nano']).model.dim)"
    for command in (["-c", code], ["-m", "mla_lm", "info", "model=nano"]):
        result = subprocess.run(
            [sys.executable, "-P", *command],
            cwd=tmp_path,
            env={"PYTHONPATH": str(site), "PATH": ""},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        if command[0] == "-c":
            assert result.stdout.split() == [str(site / "mla_lm" / "__init__.py"), "48"]
