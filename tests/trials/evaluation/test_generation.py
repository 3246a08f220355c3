"""Answers: greedy is the likeliest, batches don't matter, and a row ends with its JSON object."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trials.config import TrialConfig
from trials.data.dataset import TrialData
from trials.data.tokenization import prompt_ids
from trials.evaluation.evaluator import LoadedModel, load_model
from trials.evaluation.generation import Conversation, ObjectIsWhole, Sampling, answer, generate
from trials.formats.answers import first_object, parse_label
from trials.formats.conversations import ASSISTANT, USER, Message
from trials.model.loading import load_base
from trials.records.trial_dir import TrialRecord

SHORT = Sampling(max_new_tokens=6)


@pytest.fixture(scope="module")
def base(small_config: TrialConfig) -> PreTrainedModel:
    return load_base(small_config.model)


@pytest.fixture(scope="module")
def asked(small_data: TrialData) -> list[Conversation]:
    """Of different lengths, the longest neither first nor last; one of several turns."""
    rows = [example.prompt for example in small_data.eval.examples[:2]]
    turns = (*rows[0], Message(ASSISTANT, "So it is."), Message(USER, "Why?"))
    return [(Message(USER, "Is it so?"),), rows[0], turns, rows[1], (Message(USER, "Why?"),)]


def test_greedy_is_the_likeliest_token_each_time(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: list[Conversation]
) -> None:
    ids = prompt_ids(asked[1], tokenizer)
    start = len(ids)
    with torch.no_grad():
        while len(ids) < start + SHORT.max_new_tokens and ids[-1] != tokenizer.eos_token_id:
            ids.append(int(base(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    by_hand = tokenizer.decode(ids[start:], skip_special_tokens=True).strip()
    assert generate(base, tokenizer, [asked[1]], SHORT) == [by_hand]
    assert by_hand


def test_answers_are_in_order_and_padding_changes_none(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: list[Conversation]
) -> None:
    alone = [generate(base, tokenizer, [conversation], SHORT)[0] for conversation in asked]
    assert len(set(alone)) > 1
    assert generate(base, tokenizer, asked, SHORT) == alone
    assert generate(base, tokenizer, asked, SHORT, batch_rows=3) == alone


def test_what_was_said_before_counts(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: list[Conversation]
) -> None:
    whole, last_alone = generate(base, tokenizer, [asked[2], asked[2][-1:]], Sampling(max_new_tokens=12))
    assert whole != last_alone


def test_sampling_follows_the_seed(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: list[Conversation]
) -> None:
    def sample(seed: int) -> list[str]:
        torch.manual_seed(seed)
        return generate(base, tokenizer, asked, Sampling(max_new_tokens=12, temperature=2.0, top_k=0, top_p=1.0))

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_as_before(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: list[Conversation], training: bool
) -> None:
    base.train(training)
    generate(base, tokenizer, asked[:1], Sampling(max_new_tokens=1))
    assert base.training == training


def test_a_printed_answer_is_the_answer(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: list[Conversation],
    capsys: pytest.CaptureFixture[str],
) -> None:
    ids = prompt_ids(asked[1], tokenizer)
    said = answer(base, tokenizer, ids, SHORT, printed=True)
    printed = capsys.readouterr().out
    assert printed == f"{said}\n"
    assert said == answer(base, tokenizer, ids, SHORT)
    assert capsys.readouterr().out == ""


def _criterion(tokenizer: PreTrainedTokenizerBase, prompt_length: int) -> ObjectIsWhole:
    stop = ObjectIsWhole(tokenizer, torch.device("cpu"))
    stop.prompt_length = prompt_length
    return stop


def test_a_row_is_done_with_its_first_whole_object_and_not_before(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = tokenizer('{"an object": "in the prompt"} ', add_special_tokens=False)["input_ids"]
    text = 'So: {"thought_process": "a } b", "more": {"x": {}}, "predicted_label": 1}'
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    stop = _criterion(tokenizer, len(prompt))
    done = [bool(stop(torch.tensor([prompt + ids[: i + 1]]), None)[0]) for i in range(len(ids))]
    assert done == [False] * (len(ids) - 1) + [True]


def test_rows_of_a_batch_are_done_each_for_itself(tokenizer: PreTrainedTokenizerBase) -> None:
    whole, other, begun = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in ('{"a": 1}', "no object }", '{"a": {"b": 1}')
    )
    length = max(map(len, (whole, other, begun)))
    rows = [[tokenizer.pad_token_id] * (length - len(row)) + row for row in (whole, other, begun)]
    assert _criterion(tokenizer, 0)(torch.tensor(rows), None).tolist() == [True, False, False]


@pytest.fixture(scope="module")
def rambling(small_trial: TrialRecord) -> LoadedModel:
    """A trained adapter that never learned to stop: its EOS is no likelier than anything."""
    judged = load_model(str(small_trial.folder / "adapter"))
    judged.model.get_output_embeddings().weight.data[judged.tokenizer.eos_token_id] = 0
    return judged


def test_stopping_changes_no_label_and_leaves_nothing_after_the_object(
    rambling: LoadedModel, small_data: TrialData
) -> None:
    asked = [example.prompt for example in small_data.eval.examples]
    whole, stopped = (
        generate(
            rambling.model, rambling.tokenizer, asked, Sampling(max_new_tokens=90), batch_rows=5, until_object=until
        )
        for until in (False, True)
    )
    labels = [parse_label(text) for text in whole]
    assert [parse_label(text) for text in stopped] == labels
    assert {0, 1} & set(labels)
    for text, longer in zip(stopped, whole, strict=True):
        assert longer.startswith(text)
        ended = first_object(text) is not None
        assert ended == (len(longer) > len(text))
        assert not ended or first_object(text.rpartition("}")[0]) is None


def test_every_token_that_ends_a_turn_ends_an_answer(
    rambling: LoadedModel, small_data: TrialData, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [small_data.eval.examples[0].prompt]
    before = generate(rambling.model, rambling.tokenizer, asked, SHORT)[0]
    third = rambling.tokenizer(before, add_special_tokens=False)["input_ids"][3]
    monkeypatch.setattr(rambling.model.generation_config, "eos_token_id", [rambling.tokenizer.eos_token_id, third])
    assert len(generate(rambling.model, rambling.tokenizer, asked, SHORT)[0]) < len(before)
