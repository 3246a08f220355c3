"""The guides' own rows with Mistral's own tokenizer; skipped where these aren't on the machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from search_spaces.loader import load_recipe
from trials.config import ModelSettings
from trials.data.dataset import load_data
from trials.data.split import Split
from trials.data.tokenization import IGNORED
from trials.model.loading import load_tokenizer

DATA = Path("/work/shared/data")
MISTRAL = DATA / "mistral_tokenizer"
pytestmark = pytest.mark.skipif(not MISTRAL.is_dir(), reason="the real data isn't on this machine")


@dataclass(frozen=True)
class Expected:
    """Files that stand for a recipe's data, and what must become of the rows to train on."""

    train: str
    eval: str
    counts: dict[str, int]
    settings: list[str] = field(default_factory=list)


GUIDE = "cot_nli_guide"
ROWS = {
    "nli_cot": Expected(f"{GUIDE}/sample_ft.jsonl[:80]", f"{GUIDE}/sample_ft.jsonl[80:]", {"read": 80, "rows": 80}),
    "nli_cot/minimal_test": Expected(
        f"{GUIDE}/sample_ft.jsonl[:80]", f"{GUIDE}/sample_ft.jsonl[80:]", {"read": 80, "rows": 54, "too_long": 26}
    ),
    "nli_cot/ablation1": Expected(
        f"{GUIDE}/sample_thoughts.json", f"{GUIDE}/sample_reflections.json", {"read": 100, "rows": 67, "left_out": 33}
    ),
    "nli_cot/ablation2": Expected(
        f"{GUIDE}/sample_reflections.json[:25]", f"{GUIDE}/sample_reflections.json[25:]", {"read": 25}
    ),
    "ultrachat": Expected(
        "chat/ultrachat_shape.jsonl[:120]",
        "chat/ultrachat_shape.jsonl[120:]",
        {"read": 120, "rows": 120, "bad": 0, "too_long": 0},
        ["data.train_rows=null", "data.eval_rows=null"],
    ),
    "dolly": Expected("instruct/dolly_shape.jsonl[:300]", "instruct/dolly_shape.jsonl[300:]", {"read": 300, "bad": 0}),
    "law": Expected(
        "law/title_body.jsonl[:1000]", "law/title_body.jsonl[1000:]", {"read": 1000, "rows": 1000}, ["data.test=null"]
    ),
    "smollm2": Expected("esnli/train.jsonl", "esnli/dev.jsonl", {"read": 8394, "rows": 8394}),
}


def _check_rows(split: Split, tokenizer: PreTrainedTokenizerBase, limit: int, turn_ends: bool) -> None:
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    for example, row in zip(split.examples, split.rows, strict=True):
        ids, labels = list(row.input_ids), list(row.labels)
        answers = [message.content for message in example.messages if message.role == "assistant"]
        assert ids[0] == bos
        assert ids.count(bos) == 1
        assert ids[-1] == labels[-1] == eos
        assert ids.count(eos) == (len(example.messages) if turn_ends else len(answers))
        assert labels.count(eos) == len(answers)
        assert len(ids) <= limit
        learned = tokenizer.decode([token for token in labels if token != IGNORED])
        assert _letters(learned) == _letters("</s>".join([*answers, ""]))


def _letters(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_every_guide(name: str) -> None:
    expected = ROWS[name]
    files = [f"data.train={DATA / expected.train}", f"data.eval={DATA / expected.eval}"]
    recipe = load_recipe(name, [*files, *expected.settings], environ={}).recipe
    template = recipe.model.chat_template or "mistral"
    tokenizer = load_tokenizer(ModelSettings(name=str(MISTRAL), chat_template=template))
    data = load_data(recipe.data, tokenizer)
    counts: dict[str, Any] = vars(data.train.counts)
    assert {key: counts[key] for key in expected.counts} == expected.counts
    for split in (data.train, data.eval):
        _check_rows(split, tokenizer, recipe.data.max_length_tokens, turn_ends=template == "zephyr")


def test_the_guide_s_table_of_labels() -> None:
    settings = [f"data.train={DATA / GUIDE}/sample.csv[:80]", f"data.eval={DATA / GUIDE}/sample.csv[80:]"]
    recipe = load_recipe("nli_cot", [*settings, "data.format=nli"], environ={}).recipe
    data = load_data(recipe.data, load_tokenizer(ModelSettings(name=str(MISTRAL), chat_template="mistral")))
    assert (len(data.train), len(data.eval)) == (80, 20)
    assert {example.label for example in data.train.examples} == {0, 1}
