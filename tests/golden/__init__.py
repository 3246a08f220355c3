"""Run folders that earlier versions made, which every later version must be able to read; `make.py` makes them."""

from __future__ import annotations

import shutil
from pathlib import Path

from orchestrator.state.run_dir import RunDir
from tests.support.cli import ROOT

HERE = Path(__file__).parent
NAMES = sorted(path.name for path in HERE.iterdir() if (path / "search.json").exists())
PLACE = "GOLDEN_ROOT"
"""Stands in config files for the folder of this repository, where a search writes whole paths."""


def copy_golden(name: str, to: Path) -> RunDir:
    """Copy a golden run folder, with the paths of this machine and the tokenizer that isn't kept twice."""
    shutil.copytree(HERE / name, to)
    for file in (to / "search.json", *to.glob("trials/*/config.json")):
        file.write_text(file.read_text().replace(PLACE, str(ROOT)))
    shutil.copyfile(ROOT / "search_spaces" / "demo" / "base" / "tokenizer.json", to / "export" / "tokenizer.json")
    return RunDir(to)
