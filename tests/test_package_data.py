"""That an installed package has the templates and other files that its code reads."""

from __future__ import annotations

import tomllib

import pytest

from tests.support.cli import ROOT

SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
PACKAGES = ("orchestrator", "search_spaces", "trials")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_file_that_is_no_module_is_named_as_package_data(package: str) -> None:
    files = {path for path in (ROOT / package).rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    named = {
        path
        for owner, patterns in SETTINGS["package-data"].items()
        for pattern in patterns
        for path in (ROOT / owner.replace(".", "/")).glob(pattern)
    }
    assert files - named == set()
