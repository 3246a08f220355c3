"""No code that comes with a model is ever run: every call that could says so, and one that needs it is refused."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.support.cli import ROOT
from trials.config import ModelSettings
from trials.errors import ModelError
from trials.model.loading import load_base, load_tokenizer

SOURCES = sorted(path for folder in ("trials", "orchestrator", "scripts") for path in (ROOT / folder).rglob("*.py"))
LOADERS = {"from_pretrained", "from_config"}
WITHOUT_CODE = {"PeftConfig", "PeftModel"}
"""Loads weights into a model that is there already."""


def loading_calls(path: Path) -> list[ast.Call]:
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    return [
        call
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and call.func.attr in LOADERS
        and not (isinstance(call.func.value, ast.Name) and call.func.value.id in WITHOUT_CODE)
    ]


def test_it_is_said_wherever_something_is_loaded() -> None:
    found = {path: calls for path in SOURCES if (calls := loading_calls(path))}
    assert ROOT / "trials/model/loading.py" in found
    for path, calls in found.items():
        for call in calls:
            said = {keyword.arg: keyword.value for keyword in call.keywords}.get("trust_remote_code")
            assert isinstance(said, ast.Constant), f"{path}:{call.lineno}"
            assert said.value is False, f"{path}:{call.lineno}"


@pytest.fixture
def with_code(tmp_path: Path) -> ModelSettings:
    """A model folder whose config names code beside it, which leaves a mark if it's run."""
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')\nclass Config: ...\n")
    auto = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model", "AutoTokenizer": ["code.T", None]}
    for name in ("config.json", "tokenizer_config.json"):
        (tmp_path / name).write_text(json.dumps({"model_type": "of_its_own", "auto_map": auto}))
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    return ModelSettings(name=str(tmp_path))


def test_a_model_that_brings_code_is_refused_without_a_question(with_code: ModelSettings) -> None:
    with pytest.raises(ModelError, match="contains custom code"):
        load_base(with_code)
    with pytest.raises(ModelError, match="can't load the tokenizer"):
        load_tokenizer(with_code)
    assert not (Path(with_code.name) / "was_run").exists()
