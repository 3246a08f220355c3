"""Answers: greedy is the likeliest, batches don't matter, labels are read strictly."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trials.config import TrialConfig
from trials.data import TrialData
from trials.generation import Sampling, generate, parse_label
from trials.model import load_base
from trials.tokenization import prompt_ids

SHORT = Sampling(max_new_tokens=6)


@pytest.fixture(scope="module")
def base(small_config: TrialConfig) -> PreTrainedModel:
    return load_base(small_config.model)


@pytest.fixture(scope="module")
def prompts(small_data: TrialData) -> list[str]:
    """Of different lengths, the longest neither first nor last."""
    return ["Is it so?", *(example.prompt for example in small_data.eval.examples[:2]), "Why?"]


def test_greedy_is_the_likeliest_token_each_time(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str]
) -> None:
    ids = prompt_ids(prompts[1], tokenizer)
    start = len(ids)
    with torch.no_grad():
        while len(ids) < start + SHORT.max_new_tokens and ids[-1] != tokenizer.eos_token_id:
            ids.append(int(base(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    by_hand = tokenizer.decode(ids[start:], skip_special_tokens=True).strip()
    assert generate(base, tokenizer, [prompts[1]], SHORT) == [by_hand]
    assert by_hand


def test_answers_are_in_order_and_padding_changes_none(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str]
) -> None:
    alone = [generate(base, tokenizer, [prompt], SHORT)[0] for prompt in prompts]
    assert generate(base, tokenizer, prompts, SHORT) == alone
    assert generate(base, tokenizer, prompts, SHORT, batch_rows=3) == alone


def test_sampling_follows_the_seed(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str]
) -> None:
    def sample(seed: int) -> list[str]:
        torch.manual_seed(seed)
        return generate(base, tokenizer, prompts, Sampling(max_new_tokens=12, temperature=2.0, top_k=0, top_p=1.0))

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_as_before(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], training: bool
) -> None:
    base.train(training)
    generate(base, tokenizer, prompts[:1], Sampling(max_new_tokens=1))
    assert base.training == training


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ('{"thought_process": "x", "predicted_label": 1}', 1),
        ('Sure: {"predicted_label": 0} .', 0),
        ('{"predicted_label": 2}', None),
        ('{"predicted_label": true}', None),
        ('{"predicted_label": "1"}', None),
        ('{"predicted_label": 1.0}', None),
        ('{"thought_process": "x"}', None),
        ('{"predicted_label": 1', None),
        ('"predicted_label": 1}', None),
        ("} {", None),
        ("1", None),
        ("", None),
    ],
)
def test_only_a_json_object_with_an_allowed_label_has_one(answer: str, label: int | None) -> None:
    assert parse_label(answer) == label
