"""Chat templates for base models that have none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from search_spaces.schema import Recipe
from trials.config import ModelSettings
from trials.data.chat_template import TEMPLATES, chat_template
from trials.data.tokenization import prompt_ids
from trials.errors import ModelError
from trials.formats.conversations import Message
from trials.model.loading import load_tokenizer

TURNS = (Message("user", "Who?"), Message("assistant", "Ann."), Message("user", "Why?"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mistral", "<s>[INST] Who? [/INST] Ann.</s>[INST] Why? [/INST]"),
        ("zephyr", "<s><|user|>\nWho?</s>\n<|assistant|>\nAnn.</s>\n<|user|>\nWhy?</s>\n<|assistant|>\n"),
    ],
)
def test_what_a_template_writes(small_recipe: Recipe, name: str, text: str) -> None:
    tokenizer = load_tokenizer(small_recipe.model.model_copy(update={"chat_template": name}))
    turns = [{"role": turn.role, "content": turn.content} for turn in TURNS]
    assert tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == text
    assert prompt_ids(TURNS, tokenizer) == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_one_s_own_template(tmp_path: Path, small_recipe: Recipe) -> None:
    (tmp_path / "own.jinja").write_text("{{ messages[0]['content'] }}")
    model = small_recipe.model.model_copy(update={"chat_template": str(tmp_path / "own.jinja")})
    assert load_tokenizer(model).chat_template == "{{ messages[0]['content'] }}"


def test_an_unknown_template_is_refused_with_those_that_are_known() -> None:
    assert {"mistral", "zephyr"} <= set(TEMPLATES)
    with pytest.raises(
        ModelError, match=r"no chat template 'zefyr'\. Allowed for model\.chat_template: mistral, zephyr,"
    ):
        chat_template("zefyr")


def test_the_template_is_saved_with_the_tokenizer(tmp_path: Path, small_recipe: Recipe) -> None:
    tokenizer = load_tokenizer(small_recipe.model.model_copy(update={"chat_template": "zephyr"}))
    tokenizer.save_pretrained(str(tmp_path))
    again = load_tokenizer(small_recipe.model.model_copy(update={"name": str(tmp_path)}))
    assert again.chat_template == chat_template("zephyr")


@pytest.fixture
def several(tmp_path: Path, small_recipe: Recipe) -> Path:
    """The demo's base model whose tokenizer has chat templates by name, none of them `default`."""
    folder = Path(shutil.copytree(small_recipe.model.name, tmp_path / "model"))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    path = folder / "tokenizer_config.json"
    named = [{"name": name, "template": f"{name}: {{{{ messages }}}}"} for name in ("rag", "tool_use")]
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": named}))
    return folder


def test_templates_by_name_without_a_default_are_named(several: Path) -> None:
    with pytest.raises(ModelError, match=r"has the chat templates rag and tool_use, .* as model\.chat_template"):
        load_tokenizer(ModelSettings(name=str(several)))


@pytest.mark.parametrize("name", ["rag", "tool_use", "zephyr"])
def test_one_of_them_can_be_chosen_by_its_name(several: Path, name: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(ModelSettings(name=str(several), chat_template=name))
    expected = chat_template("zephyr") if name == "zephyr" else f"{name}: {{{{ messages }}}}"
    assert tokenizer.chat_template == expected
    tokenizer.save_pretrained(str(tmp_path / "saved"))
    assert load_tokenizer(ModelSettings(name=str(tmp_path / "saved"))).chat_template == expected


def test_the_default_among_several_is_used(several: Path) -> None:
    path = several / "tokenizer_config.json"
    content = json.loads(path.read_text())
    content["chat_template"].append({"name": "default", "template": "{{ messages }}"})
    path.write_text(json.dumps(content))
    assert load_tokenizer(ModelSettings(name=str(several))).chat_template == "{{ messages }}"
