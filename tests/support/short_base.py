"""The demo's base model with two of its six layers: for tests that train many trials and need no depth."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from functools import cache
from pathlib import Path

from safetensors.torch import load_file, save_file

from tests.support.cli import ROOT

LAYERS = 2
_DEMO = ROOT / "search_spaces" / "demo" / "base"


@cache
def short_base() -> Path:
    """Its folder, which processes of one test session share."""
    folder = Path(os.environ["SHORT_BASE"])
    if not folder.exists():
        made = folder.with_suffix(f".{os.getpid()}")
        shutil.copytree(_DEMO, made)
        _shorten(made)
        with suppress(OSError):  # another process was faster
            made.rename(folder)
    return folder


def _shorten(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": LAYERS}))
    gone = tuple(f"model.layers.{number}." for number in range(LAYERS, config["num_hidden_layers"]))
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith(gone)}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
