"""Rows as tokens: one BOS, an EOS after the answer, and loss on answers only, whatever the template does."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from trials.data.chat_template import chat_template
from trials.data.dataset import TrialData
from trials.data.tokenization import TokenizedRow, encode, encode_alike, prompt_ids, render, tokenize
from trials.errors import DataError
from trials.formats.conversations import Example, Message, example

MISTRAL = Path("/work/shared/data/mistral_tokenizer")
EXAMPLE = example("r1", "Premise: Ann is tall.", '{"thought_process": "step 1", "predicted_label": 1}', 1)
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


def tokenized(row: Example, tokenizer: PreTrainedTokenizerBase) -> TokenizedRow:
    return tokenize([row], tokenizer)[0]


def check_row(row: TokenizedRow, of: Example, tokenizer: PreTrainedTokenizerBase) -> None:
    ids, labels = list(row.input_ids), list(row.labels)
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids.count(tokenizer.eos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    start = len(labels) - row.completion_tokens
    assert labels == [-100] * start + ids[start:]
    assert ids[:start] == prompt_ids(of.prompt, tokenizer)
    assert of.prompt_text in tokenizer.decode(ids[:start])
    assert tokenizer.decode(ids[start:-1], skip_special_tokens=False).strip() == of.completion


@pytest.mark.parametrize("adds_specials", [False, True], ids=["plain", "adds BOS and EOS itself"])
def test_every_demo_row(small_data: TrialData, tokenizer: PreTrainedTokenizerBase, adds_specials: bool) -> None:
    used = _adding(tokenizer) if adds_specials else tokenizer
    for row in (*small_data.train.examples[:200], *small_data.eval.examples):
        check_row(tokenized(row, used), row, used)


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("adds_specials", [False, True], ids=["plain", "adds BOS and EOS itself"])
def test_every_template(tokenizer: PreTrainedTokenizerBase, template: str | None, adds_specials: bool) -> None:
    used = _adding(tokenizer) if adds_specials else copy.deepcopy(tokenizer)
    used.chat_template = template
    check_row(tokenized(EXAMPLE, used), EXAMPLE, used)


@pytest.mark.skipif(not MISTRAL.is_dir(), reason="Mistral's tokenizer isn't on this machine")
@pytest.mark.parametrize("add_eos", [False, True])
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_mistral(small_data: TrialData, template: str | None, add_eos: bool) -> None:
    mistral = AutoTokenizer.from_pretrained(MISTRAL, add_bos_token=True, add_eos_token=add_eos)
    mistral.chat_template = template
    for row in (EXAMPLE, *small_data.eval.examples):
        check_row(tokenized(row, mistral), row, mistral)


def test_a_prompt_alone_has_no_eos(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = prompt_ids((Message("user", "Is it so?"),), _adding(tokenizer))
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.eos_token_id not in ids


def test_a_tokenizer_without_bos_gets_none(tokenizer: PreTrainedTokenizerBase) -> None:
    used = copy.deepcopy(tokenizer)
    used.bos_token = None
    row = tokenized(EXAMPLE, used)
    assert tokenizer.bos_token_id not in row.input_ids
    assert row.input_ids.count(tokenizer.eos_token_id) == 1


def test_a_tokenizer_without_eos_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    used = copy.deepcopy(tokenizer)
    used.eos_token = None
    with pytest.raises(DataError, match="no end-of-sequence token"):
        tokenized(EXAMPLE, used)


def test_a_template_that_ends_the_answer_early_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    used = copy.deepcopy(tokenizer)
    used.chat_template = MARKED.replace(
        "{{ m['content'] }}", "{{ m['content'] + eos_token + m['content'] + eos_token }}"
    )
    with pytest.raises(DataError, match=r"row r1: the chat template puts the end-of-sequence token inside the answer"):
        tokenized(EXAMPLE, used)


CHAT = Example(
    "r2",
    (
        Message("user", "Who is tall?"),
        Message("assistant", "Ann is."),
        Message("user", "And who is small?"),
        Message("assistant", "Bob is small."),
    ),
)
WITH_EOS = MARKED.replace("{{ m['content'] }}", "{{ m['content'] }}{% if m['role'] == 'assistant' %}</s>{% endif %}")


def _learned(row: TokenizedRow, tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.decode([token for token in row.labels if token != -100]))


@pytest.mark.parametrize("template", [chat_template("zephyr"), chat_template("mistral"), None, WITH_EOS])
def test_every_answer_of_a_conversation_is_learned_with_its_end(
    tokenizer: PreTrainedTokenizerBase, template: str | None
) -> None:
    used = copy.deepcopy(tokenizer)
    used.chat_template = template
    row = tokenized(CHAT, used)
    assert list(row.input_ids).count(used.bos_token_id) == 1
    assert "".join(_learned(row, used).split()) == "Annis.</s>Bobissmall.</s>"
    first = prompt_ids(CHAT.messages[:1], used)
    assert list(row.input_ids[: len(first)]) == first
    # What is learned of the second answer stands behind exactly the prompt that the model will be asked with.
    second = prompt_ids(CHAT.prompt, used)
    assert list(row.input_ids[: len(second)]) == second
    assert row.labels[len(second) - 1] == -100
    assert row.labels[len(second)] == row.input_ids[len(second)]


@pytest.mark.parametrize("template", [chat_template("zephyr"), chat_template("mistral"), None, WITH_EOS])
def test_an_answer_that_is_only_context_is_seen_and_not_learned(
    tokenizer: PreTrainedTokenizerBase, template: str | None
) -> None:
    used = copy.deepcopy(tokenizer)
    used.chat_template = template
    first, answer, *rest = CHAT.messages
    row = tokenized(Example("r2", (first, Message("assistant", answer.content, is_learned=False), *rest)), used)
    assert row.input_ids == tokenized(CHAT, used).input_ids
    assert "".join(_learned(row, used).split()) == "Bobissmall.</s>"


@pytest.mark.skipif(not MISTRAL.is_dir(), reason="Mistral's tokenizer isn't on this machine")
@pytest.mark.parametrize("template", [chat_template("zephyr"), chat_template("mistral"), None, WITH_EOS])
def test_long_conversations_have_the_tokens_of_short_ones(
    tokenizer: PreTrainedTokenizerBase, template: str | None
) -> None:
    turns = [Message(m.role, f"{m.content} {n}  \n no") for n in range(6) for m in CHAT.messages[:2]]
    for used in (copy.deepcopy(tokenizer), AutoTokenizer.from_pretrained(MISTRAL)):
        used.chat_template = template
        row = tokenized(Example("r1", tuple(turns)), used)
        for index in range(1, len(turns), 2):
            start = prompt_ids(turns[:index], used)
            assert list(row.input_ids[: len(start)]) == start
        whole = render(turns, used, is_open=False)
        texts = [whole, *(render(turns[:index], used, is_open=True) for index in range(1, len(turns), 2))]
        assert encode_alike(texts, used) == encode(texts, used)


def test_only_the_last_answer_is_learned_where_earlier_ones_are_rendered_differently(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    used = copy.deepcopy(tokenizer)
    used.chat_template = TEMPLATES["another prompt once answered"]
    assert _learned(tokenized(CHAT, used), used).strip() == "Bob is small.</s>"


def test_a_template_without_ends_between_answers_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    used = copy.deepcopy(tokenizer)
    used.chat_template = MARKED
    with pytest.raises(DataError, match="row r2: the chat template puts no end-of-sequence token after an answer"):
        tokenized(CHAT, used)


def test_a_template_that_can_t_render_a_row_is_named(tokenizer: PreTrainedTokenizerBase) -> None:
    used = copy.deepcopy(tokenizer)
    used.chat_template = "{{ raise_exception('no system, please') }}"
    with pytest.raises(DataError, match=r"row r2: the tokenizer's chat template can't render it \(no system, please\)"):
        tokenized(CHAT, used)


def test_a_system_message_goes_into_mistral_s_first_question(tokenizer: PreTrainedTokenizerBase) -> None:
    used = copy.deepcopy(tokenizer)
    used.chat_template = chat_template("mistral")
    ids = prompt_ids((Message("system", "Be brief."), Message("user", "Who?")), used)
    assert used.decode(ids[1:]).strip() == "[INST] Be brief.\n\nWho? [/INST]"


def test_a_plain_text_is_learned_whole(tokenizer: PreTrainedTokenizerBase) -> None:
    row = tokenized(Example("r3", (Message("assistant", "Ann is tall."),)), tokenizer)
    assert (row.input_ids[0], row.labels[0]) == (tokenizer.bos_token_id, -100)
    assert row.input_ids[1:] == row.labels[1:]
    assert tokenizer.decode(row.labels[1:]) == "Ann is tall.</s>"


def test_rows_of_a_batch_don_t_depend_on_each_other(tokenizer: PreTrainedTokenizerBase) -> None:
    used = copy.deepcopy(tokenizer)
    used.chat_template = chat_template("zephyr")
    plain = Example("r3", (Message("assistant", "Ann is tall."),))
    rows = [EXAMPLE, CHAT, plain, EXAMPLE]
    assert tokenize(rows, used) == [tokenized(row, used) for row in rows]


@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_padding_hides_no_token_of_a_completion(
    small_data: TrialData, tokenizer: PreTrainedTokenizerBase, pad_is_eos: bool
) -> None:
    pad = tokenizer.eos_token_id if pad_is_eos else tokenizer.pad_token_id
    rows = sorted(small_data.eval.rows, key=lambda row: len(row.input_ids))
    batch = DataCollatorForLanguageModeling(pad_token_id=pad)(
        [{"input_ids": row.input_ids, "labels": row.labels} for row in rows]
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
