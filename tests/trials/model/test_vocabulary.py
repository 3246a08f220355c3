"""Tokens that were added to a tokenizer, and that its model doesn't know."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from orchestrator import search
from search_spaces.schema import Recipe
from trials import evaluate, generate, train
from trials.config import ModelSettings
from trials.model.loading import load_tokenizer, vocabulary

TOKEN = "<|tool|>"


@pytest.fixture
def model(small_recipe: Recipe, tmp_path: Path) -> Path:
    """The demo's base model, with a token more in its tokenizer."""
    folder = Path(shutil.copytree(small_recipe.model.name, tmp_path / "model"))
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    tokenizer.add_special_tokens({"additional_special_tokens": [TOKEN]})
    tokenizer.save_pretrained(str(folder))
    assert tokenizer.convert_tokens_to_ids(TOKEN) == 1536
    return folder


def _rows(path: Path, *texts: str) -> str:
    path.write_text(
        "".join(json.dumps({"prompt": text, "completion": "yes"}) + "\n" for text in texts), encoding="utf-8"
    )
    return str(path)


def _settings(model: Path, train_rows: str, eval_rows: str) -> list[str]:
    data = ["data.format=prompt_completion", "data.test=null", f"data.train={train_rows}", f"data.eval={eval_rows}"]
    return ["demo", "--set", f"model.name={model}", *data, "eval_rows=null", "train_tokens=100"]


@pytest.mark.parametrize("where", ["train", "eval"])
@pytest.mark.parametrize("command", ["train", "search", "plan"])
def test_rows_with_such_a_token_are_refused(
    model: Path, where: str, command: str, in_tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = f"{where}.jsonl"
    files = {
        name: _rows(in_tmp_path / f"{name}.jsonl", f"a {name}", f"b {TOKEN}" if name == where else f"c {name}")
        for name in ("train", "eval")
    }
    arguments = _settings(model, files["train"], files["eval"])
    run = train.main if command == "train" else search.main
    assert run([*arguments, *(["--plan"] if command == "plan" else []), "--out", "out"]) == 2
    said = capsys.readouterr().err
    assert f"error: {where} rows hold the token '{TOKEN}' (id 1536), the first of them row line-2, and " in said, bad
    assert "knows 1,536 tokens (0 to 1535)" in said
    assert not (in_tmp_path / "out").exists()


def test_a_tokenizer_may_have_such_tokens_where_no_row_does(
    model: Path, in_tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [_rows(in_tmp_path / f"{name}.jsonl", f"a {name}", f"b {name}") for name in ("train", "eval")]
    assert search.main([*_settings(model, *files), "--plan"]) == 0
    assert "train rows: 2" in capsys.readouterr().out


def test_what_is_judged_and_what_is_asked(model: Path, in_tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = _rows(in_tmp_path / "rows.jsonl", "a", f"b {TOKEN}")
    assert evaluate.main([str(model), "--data", rows, "--format", "prompt_completion"]) == 2
    assert (
        f"error: the rows hold the token '{TOKEN}' (id 1536), the first of them row line-2" in capsys.readouterr().err
    )
    assert generate.main([str(model), "--prompt", f"What is {TOKEN}?"]) == 2
    assert f"error: the prompt holds the token '{TOKEN}' (id 1536), and " in capsys.readouterr().err


def test_a_padding_token_that_the_model_does_not_know_is_not_used(small_recipe: Recipe, tmp_path: Path) -> None:
    """The commonest of them: `[PAD]` added to a tokenizer that had none."""
    folder = Path(shutil.copytree(small_recipe.model.name, tmp_path / "model"))
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(str(folder))
    assert tokenizer.pad_token_id == 1536
    loaded = load_tokenizer(ModelSettings(name=str(folder)))
    assert loaded.pad_token_id == loaded.eos_token_id


def test_the_vocabulary_of_a_model_whose_config_cannot_be_read_is_not_known(tmp_path: Path) -> None:
    assert vocabulary(ModelSettings(name=str(tmp_path))) is None
