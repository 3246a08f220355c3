"""What a search proposes comes back from every form that it takes as it was; of a row its answers are learned."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from orchestrator.sampling.distributions import decode, decode_all, distribution, distributions, encode
from orchestrator.surrogate.encoding import SpaceEncoder
from search_spaces.schema import Choices, Dimension, Range, Recipe, is_integer
from trials.data.tokenization import IGNORED, tokenize
from trials.formats.conversations import ASSISTANT, USER, Example, Message

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def ranges(name: str, low: float, high: float) -> st.SearchStrategy[Range]:
    ends = st.integers(int(low), int(high)) if is_integer(name) else st.floats(low, high, allow_subnormal=False)
    return (
        st.tuples(ends, ends, st.booleans())
        .filter(lambda found: found[0] < found[1])
        .map(lambda found: Range(low=found[0], high=found[1], log=found[2]))
    )


def choices(of: st.SearchStrategy[Any]) -> st.SearchStrategy[Choices]:
    return st.lists(of, min_size=1, max_size=5, unique_by=str).map(lambda found: Choices(choices=tuple(found)))


SPACES = st.fixed_dictionaries(
    {},
    optional={
        "learning_rate": ranges("learning_rate", 1e-7, 0.1) | choices(st.floats(1e-6, 0.1)),
        "lora_rank": ranges("lora_rank", 1, 256) | choices(st.integers(1, 256)),
        "lora_dropout": ranges("lora_dropout", 1e-3, 0.9) | choices(st.floats(0, 0.9)),
        "effective_batch": ranges("effective_batch", 1, 512),
        "target_modules": choices(st.lists(st.sampled_from(MODULES), min_size=1, unique=True)),
    },
)


@given(SPACES, st.integers(0, 2**32 - 1))
def test_a_proposal_is_the_same_in_the_study_in_json_and_as_coordinates(
    space: Mapping[str, Dimension], seed: int
) -> None:
    coordinates, random = SpaceEncoder(distributions(space)), np.random.default_rng(seed)
    draws = coordinates.sample(8, random)
    near = coordinates.perturb(coordinates.decode(draws[0]), 8, random)
    for draw in np.concatenate([draws, near]):
        values = coordinates.decode(draw)
        again = coordinates.to_unit(values)
        assert coordinates.decode(again) == values or same(values, coordinates.decode(again))
        assert coordinates.keys(again[None]) == coordinates.keys(draw[None])
        x = coordinates.encode(values)
        assert x.shape == (coordinates.count,)
        assert ((x >= -1e-9) & (x <= 1 + 1e-9)).all()
        for name, value in values.items():
            optuna = distribution(name, space[name])
            assert optuna._contains(optuna.to_internal_repr(value)), (name, value)
            decoded = decode(json.loads(json.dumps(value)), space[name])
            assert encode(decoded, space[name]) == value


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """But for the last digits of what is a number behind a logarithm."""
    return all(
        np.isclose(value, other[name], rtol=1e-9) if isinstance(value, float) else value == other[name]
        for name, value in one.items()
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(SPACES, st.integers(0, 2**32 - 1))
def test_whatever_is_proposed_is_a_configuration(
    small_recipe: Recipe, space: Mapping[str, Dimension], seed: int
) -> None:
    coordinates = SpaceEncoder(distributions(space))
    values = decode_all(coordinates.decode(coordinates.sample(1, np.random.default_rng(seed))[0]), space)
    found = small_recipe.hyperparameters_with(values).model_dump(mode="json")
    assert {name: found[name] for name in values} == values


TEXTS = st.text(min_size=1, max_size=40) | st.sampled_from(
    [" a ", "\n", "\t\r\n", "a\u200bb", "e\u0301", "👍🏽", "ﬁ", "\x00", "0"]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3))
def test_the_answers_of_a_conversation_are_learned_and_nothing_else(
    tokenizer: PreTrainedTokenizerBase, turns: list[tuple[str, str]]
) -> None:
    specials = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.pad_token)
    assume(not any(str(special) in text for turn in turns for text in turn for special in specials))
    messages = [Message(role, text) for turn in turns for role, text in zip((USER, ASSISTANT), turn, strict=True)]
    (row,) = tokenize([Example("r", tuple(messages))], tokenizer)
    assert len(row.labels) == len(row.input_ids)
    assert all(label in (IGNORED, token) for label, token in zip(row.labels, row.input_ids, strict=True))
    assert row.input_ids.count(tokenizer.bos_token_id) == 1
    assert row.input_ids[0] == tokenizer.bos_token_id
    assert row.input_ids[-1] == row.labels[-1] == tokenizer.eos_token_id
    learned = [label for label in row.labels if label != IGNORED]
    assert learned.count(tokenizer.eos_token_id) <= len(turns)
    told = tokenizer.decode(learned, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    answers = [turn[1] for turn in turns]
    # The template puts spaces around an answer, or takes them away.
    assert without_spaces(told) in (without_spaces("".join(answers)), without_spaces(answers[-1]))


def without_spaces(text: str) -> str:
    return "".join(text.split())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(TEXTS, min_size=2, max_size=4))
def test_a_row_is_tokenised_as_it_is_by_itself(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> None:
    assume(not any(str(special) in text for text in texts for special in tokenizer.all_special_tokens))
    rows = [Example(str(n), (Message(USER, text), Message(ASSISTANT, texts[n - 1]))) for n, text in enumerate(texts)]
    assert tokenize(rows, tokenizer) == [tokenize([row], tokenizer)[0] for row in rows]
