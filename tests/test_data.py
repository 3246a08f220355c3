"""The frozen rows of a search: nothing cut, nothing in two splits."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from search_spaces.schema import Recipe
from trials.config import DataSettings
from trials.data import TrialData, load_data
from trials.errors import DataError


def _row(number: int, words: int = 3) -> dict[str, Any]:
    return {
        "id": f"r{number}",
        "premise": f"Ann is number {number}.",
        "hypothesis": "Ann is.",
        "thought_process": "yes " * words,
        "label": 1,
    }


def _settings(folder: Path, *, train: range, held_out: range, test: range | None = None, **more: Any) -> DataSettings:
    named = {"train": train, "eval": held_out, "test": test}
    files = {}
    for name, numbers in named.items():
        if numbers is not None:
            files[name] = str(folder / f"{name}.jsonl")
            rows = [_row(n, words=3 if n % 5 else 60) for n in numbers]  # every fifth is long
            Path(files[name]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataSettings(**files, **more)


def test_the_demo_splits_share_no_prompt_and_keep_all_rows(small_data: TrialData, small_recipe: Recipe) -> None:
    splits = [small_data.train, small_data.eval, small_data.test]
    prompts = [{example.prompt for example in split.examples} for split in splits if split]
    assert not prompts[0] & prompts[1]
    assert not prompts[0] & prompts[2]
    assert not prompts[1] & prompts[2]
    assert [split.dropped for split in splits if split] == [0, 0, 0]
    assert (len(prompts[1]), len(prompts[2])) == (small_recipe.data.eval_rows, small_recipe.data.test_rows)


def test_text_and_tokens_stay_side_by_side(small_data: TrialData) -> None:
    for split in (small_data.train, small_data.eval):
        assert [example.id for example in split.examples] == [row.id for row in split.rows]
        assert split.tokens == sum(len(row.input_ids) for row in split.rows)
        assert split.longest == max(len(row.input_ids) for row in split.rows)


def test_rows_that_are_too_long_are_counted_and_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    settings = _settings(tmp_path, train=range(1, 11), held_out=range(11, 14), max_length_tokens=110)
    with pytest.raises(DataError, match=r"train\.jsonl: 2 of 10 rows are longer .*=110 \(the longest has \d{3}\)"):
        load_data(settings, tokenizer)


def test_rows_that_are_too_long_can_be_dropped_but_never_cut(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    settings = _settings(tmp_path, train=range(1, 11), held_out=range(11, 14), max_length_tokens=110, too_long="drop")
    with caplog.at_level(logging.WARNING, logger="trials.data"):
        data = load_data(settings, tokenizer)
    assert data.train.dropped == 2
    assert [row.id for row in data.train.rows] == [f"r{n}" for n in range(1, 11) if n % 5]
    assert all(row.input_ids[-1] == tokenizer.eos_token_id for row in data.train.rows)
    assert "2 of 10 rows are longer" in caplog.text


def test_a_split_of_which_nothing_is_left_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    settings = _settings(tmp_path, train=range(1, 4), held_out=range(4, 7), max_length_tokens=10, too_long="drop")
    with pytest.raises(DataError, match="3 of 3 rows are longer"):
        load_data(settings, tokenizer)


@pytest.mark.parametrize(
    ("held_out", "test", "message"),
    [
        (range(11, 12), None, r"eval\.jsonl: only one row can be used, and comparing two models needs at least two"),
        (range(11, 13), range(13, 14), r"test\.jsonl: only one row can be used"),
        (range(8, 12), None, r"2 of 4 rows of .*eval\.jsonl are also rows of .*train\.jsonl \(first: r8, r9\)"),
        (range(10, 14), range(9, 10), r"1 of 1 rows of .*test\.jsonl are also rows of .*train\.jsonl \(first: r9\)"),
        (range(10, 14), range(13, 16), r"1 of 3 rows of .*test\.jsonl are also rows of .*eval\.jsonl \(first: r13\)"),
    ],
)
def test_a_row_in_two_splits_and_a_single_row_are_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, held_out: range, test: range | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_data(_settings(tmp_path, train=range(1, 10), held_out=held_out, test=test), tokenizer)


def test_no_test_file_is_no_test_split(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    assert load_data(_settings(tmp_path, train=range(1, 4), held_out=range(4, 7)), tokenizer).test is None
