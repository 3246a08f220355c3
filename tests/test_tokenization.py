"""Rows as tokens: one BOS, one EOS, and loss on the completion only, whatever the tokenizer and its template do."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from trials.data import TrialData
from trials.errors import DataError
from trials.formats import Example
from trials.tokenization import TokenizedRow, prompt_ids, tokenize

MISTRAL = Path("/work/shared/data/mistral_tokenizer")
EXAMPLE = Example("r1", "Premise: Ann is tall.", '{"thought_process": "step 1", "predicted_label": 1}', 1)
MARKED = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
# What templates in the wild do around the answer.
TEMPLATES = {
    "none": None,
    "no special tokens": MARKED,
    "BOS only": "{{ bos_token }}" + MARKED,
    "BOS twice": "{{ bos_token }}{{ bos_token }}" + MARKED,
    "EOS and a line break": MARKED + "{% if messages[-1]['role'] == 'assistant' %}{{ eos_token + '\n' }}{% endif %}",
    "EOS twice": MARKED + "{% if messages[-1]['role'] == 'assistant' %}{{ eos_token + eos_token }}{% endif %}",
    "another prompt once answered": MARKED + "{% if add_generation_prompt %}<think></think>{% endif %}",
}


def _adding(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer, switched to add BOS and EOS by itself."""
    adding = copy.deepcopy(tokenizer)
    specials = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (tokenizer.bos_token, tokenizer.eos_token)]
    template = f"{tokenizer.bos_token} $A {tokenizer.eos_token}"
    adding.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=specials)
    assert adding("a")["input_ids"][0] == tokenizer.bos_token_id
    assert adding("a")["input_ids"][-1] == tokenizer.eos_token_id
    return adding


def check_row(row: TokenizedRow, example: Example, tokenizer: PreTrainedTokenizerBase) -> None:
    assert row.input_ids.count(tokenizer.bos_token_id) == 1
    assert row.input_ids.count(tokenizer.eos_token_id) == 1
    assert row.input_ids[0] == tokenizer.bos_token_id
    assert row.input_ids[-1] == tokenizer.eos_token_id
    assert list(row.input_ids[: row.prompt_length]) == prompt_ids(example.prompt, tokenizer)
    prompt = tokenizer.decode(row.input_ids[: row.prompt_length])
    answer = tokenizer.decode(row.input_ids[row.prompt_length : -1], skip_special_tokens=False)
    assert example.prompt in prompt
    assert answer.strip() == example.completion
    assert row.labels == [-100] * row.prompt_length + list(row.input_ids[row.prompt_length :])
    assert row.completion_tokens == len(row.labels) - row.labels.count(-100)


@pytest.mark.parametrize("adds_specials", [False, True], ids=["plain", "adds BOS and EOS itself"])
def test_every_demo_row(small_data: TrialData, tokenizer: PreTrainedTokenizerBase, adds_specials: bool) -> None:
    used = _adding(tokenizer) if adds_specials else tokenizer
    for example in (*small_data.train.examples[:200], *small_data.eval.examples):
        check_row(tokenize(example, used), example, used)


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("adds_specials", [False, True], ids=["plain", "adds BOS and EOS itself"])
def test_every_template(tokenizer: PreTrainedTokenizerBase, template: str | None, adds_specials: bool) -> None:
    used = _adding(tokenizer) if adds_specials else copy.deepcopy(tokenizer)
    used.chat_template = template
    check_row(tokenize(EXAMPLE, used), EXAMPLE, used)


@pytest.mark.skipif(not MISTRAL.is_dir(), reason="Mistral's tokenizer isn't on this machine")
@pytest.mark.parametrize("add_eos", [False, True])
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_mistral(small_data: TrialData, template: str | None, add_eos: bool) -> None:
    mistral = AutoTokenizer.from_pretrained(MISTRAL, add_bos_token=True, add_eos_token=add_eos)
    mistral.chat_template = template
    for example in (EXAMPLE, *small_data.eval.examples):
        check_row(tokenize(example, mistral), example, mistral)


def test_a_prompt_alone_has_no_eos(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = prompt_ids("Is it so?", _adding(tokenizer))
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.eos_token_id not in ids


def test_a_tokenizer_without_bos_gets_none(tokenizer: PreTrainedTokenizerBase) -> None:
    used = copy.deepcopy(tokenizer)
    used.bos_token = None
    row = tokenize(EXAMPLE, used)
    assert tokenizer.bos_token_id not in row.input_ids
    assert row.input_ids.count(tokenizer.eos_token_id) == 1


def test_a_tokenizer_without_eos_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    used = copy.deepcopy(tokenizer)
    used.eos_token = None
    with pytest.raises(DataError, match="no end-of-sequence token"):
        tokenize(EXAMPLE, used)


def test_a_template_that_ends_the_answer_early_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    used = copy.deepcopy(tokenizer)
    used.chat_template = MARKED.replace(
        "{{ m['content'] }}", "{{ m['content'] + eos_token + m['content'] + eos_token }}"
    )
    with pytest.raises(DataError, match=r"row r1: the chat template puts '</s>' inside the answer"):
        tokenize(EXAMPLE, used)


@pytest.mark.parametrize("field", ["prompt", "completion"])
@pytest.mark.parametrize("special", ["<s>", "</s>"])
def test_text_that_holds_bos_or_eos_is_refused(tokenizer: PreTrainedTokenizerBase, field: str, special: str) -> None:
    texts = {"prompt": "Is it so?", "completion": "It is."}
    texts[field] = f"It {special} is."
    with pytest.raises(DataError, match=f"row r7: its {field} contains '{special}'"):
        tokenize(Example("r7", **texts), tokenizer)


@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_padding_hides_no_token_of_a_completion(
    small_data: TrialData, tokenizer: PreTrainedTokenizerBase, pad_is_eos: bool
) -> None:
    pad = tokenizer.eos_token_id if pad_is_eos else tokenizer.pad_token_id
    rows = sorted(small_data.eval.rows, key=lambda row: len(row.input_ids))
    batch = DataCollatorForLanguageModeling(pad_token_id=pad)(
        [{"input_ids": list(row.input_ids), "labels": row.labels} for row in rows]
    )
    assert len(rows[0].input_ids) < len(rows[-1].input_ids)
    for row, ids, labels, mask in zip(
        rows, batch["input_ids"].tolist(), batch["labels"].tolist(), batch["attention_mask"].tolist(), strict=True
    ):
        length = len(row.input_ids)
        assert ids[:length] == list(row.input_ids)
        assert labels[:length] == row.labels
        assert labels[length - 1] == tokenizer.eos_token_id
        assert _all(labels[length:], -100)
        assert mask == [1] * length + [0] * (len(ids) - length)


def _all(values: Sequence[int], value: int) -> bool:
    return all(v == value for v in values)
