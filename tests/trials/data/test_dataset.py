"""The frozen rows of a search: nothing cut, nothing in two splits."""

from __future__ import annotations

import copy
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from search_spaces.schema import Recipe
from tests.support.cli import ROOT
from trials.config import DataSettings
from trials.data import cache
from trials.data.dataset import TrialData, load_data, load_split
from trials.errors import DataError
from trials.evaluation.result import rows_hash


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
            Path(files[name]).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return DataSettings(**files, **more)


def test_the_demo_splits_share_no_prompt_and_keep_all_rows(small_data: TrialData, small_recipe: Recipe) -> None:
    splits = [small_data.train, small_data.eval, small_data.test]
    prompts = [{example.prompt for example in split.examples} for split in splits if split]
    assert not prompts[0] & prompts[1]
    assert not prompts[0] & prompts[2]
    assert not prompts[1] & prompts[2]
    assert [split.counts.too_long for split in splits if split] == [0, 0, 0]
    assert (len(prompts[1]), len(prompts[2])) == (small_recipe.data.eval_rows, small_recipe.data.test_rows)


def test_text_and_tokens_stay_side_by_side(small_data: TrialData) -> None:
    for split in (small_data.train, small_data.eval):
        assert [example.id for example in split.examples] == [row.id for row in split.rows]
        assert split.tokens == sum(len(row.input_ids) for row in split.rows)
        assert split.longest == max(len(row.input_ids) for row in split.rows)
        assert split.counts.completion_tokens == sum(row.completion_tokens for row in split.rows)
        assert len(split) == len(split.rows) == len(split.examples) == split.counts.rows


def test_rows_that_are_too_long_are_counted_and_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    settings = _settings(tmp_path, train=range(1, 11), held_out=range(11, 14), max_length_tokens=110)
    with pytest.raises(DataError, match=r"train\.jsonl: 2 of 10 rows are longer .*=110 \(the longest has \d{3}\)"):
        load_data(settings, tokenizer)


def test_rows_that_are_too_long_can_be_dropped_but_never_cut(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    settings = _settings(tmp_path, train=range(1, 11), held_out=range(11, 14), max_length_tokens=110, too_long="drop")
    with caplog.at_level(logging.WARNING, logger="trials.data.dataset"):
        data = load_data(settings, tokenizer)
    assert data.train.counts.too_long == 2
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


def test_overlapping_rows_can_be_left_out_of_what_is_held_out(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    settings = _settings(tmp_path, train=range(1, 10), held_out=range(7, 13), test=range(9, 20), overlap="drop")
    with caplog.at_level(logging.WARNING, logger="trials.data.dataset"):
        data = load_data(settings, tokenizer)
    assert data.test is not None
    assert len(data.train) == 9
    assert [row.id for row in data.eval.rows] == ["r10", "r11", "r12"]
    assert [row.id for row in data.test.rows] == [f"r{n}" for n in range(13, 20)]
    assert (data.eval.counts.overlapping, data.test.counts.overlapping) == (3, 4)
    assert "3 of 6 rows of" in caplog.text


@pytest.mark.parametrize(
    ("rows", "seed", "expected"),
    [
        (None, None, range(20)),
        (5, None, range(5)),
        (0.25, None, range(5)),
        (0.001, None, range(1)),
        (50, 3, range(20)),
    ],
)
def test_a_subset_by_count_or_fraction_from_the_top(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, rows: float | None, seed: int | None, expected: range
) -> None:
    settings = _settings(tmp_path, train=range(20), held_out=range(20, 23), train_rows=rows, subset_seed=seed)
    train = load_data(settings, tokenizer).train
    assert [row.id for row in train.rows] == [f"r{n}" for n in expected]
    assert train.counts.not_sampled == 20 - len(expected)


def test_a_seeded_subset_is_random_and_the_same_every_time(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    def ids(seed: int) -> list[str]:
        settings = _settings(tmp_path, train=range(40), held_out=range(40, 43), train_rows=0.5, subset_seed=seed)
        return [row.id for row in load_data(settings, tokenizer).train.rows]

    assert ids(1) == ids(1)
    assert ids(1) != ids(2)
    assert len(set(ids(1))) == 20
    assert ids(1) != [f"r{n}" for n in range(20)]


@pytest.mark.parametrize("moved_by", ["HF_HOME", "HF_DATASETS_CACHE", "XDG_CACHE_HOME"])
def test_tokenised_rows_are_where_the_library_keeps_its_own(tmp_path: Path, moved_by: str) -> None:
    script = "from trials.data.cache import cache_folder; from datasets import config; print(cache_folder())\n"
    script += "assert cache_folder().parent == config.HF_DATASETS_CACHE"
    environ = {name: value for name, value in os.environ.items() if name not in ("HF_HOME", "HF_DATASETS_CACHE")}
    environ[moved_by] = str(tmp_path)
    found = subprocess.check_output([sys.executable, "-c", script], cwd=ROOT, env=environ, text=True)
    assert found.startswith(str(tmp_path))


def test_rows_are_tokenised_once_and_again_when_anything_changed(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    settings = _settings(tmp_path, train=range(1, 6), held_out=range(6, 9))
    first = load_data(settings, tokenizer)
    folder = cache.cache_folder() / first.fingerprint
    written = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert load_data(settings, tokenizer).fingerprint == first.fingerprint
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == written

    moved = tmp_path / "elsewhere.jsonl"
    Path(settings.train).rename(moved)
    assert load_data(settings.model_copy(update={"train": str(moved)}), tokenizer).fingerprint == first.fingerprint
    changed = settings.model_copy(update={"train": str(moved), "max_length_tokens": 500})
    assert load_data(changed, tokenizer).fingerprint != first.fingerprint
    with moved.open("a") as file:
        file.write(json.dumps(_row(5)) + "\n")
    again = load_data(settings.model_copy(update={"train": str(moved)}), tokenizer)
    assert again.fingerprint != first.fingerprint
    assert len(again.train) == 6


def test_a_build_that_fails_leaves_nothing_behind(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    settings = _settings(tmp_path, train=range(31, 36), held_out=range(36, 39), max_length_tokens=50)
    before = set(cache.cache_folder().iterdir()) if cache.cache_folder().is_dir() else set()
    with pytest.raises(DataError, match="are longer than"):
        load_data(settings, tokenizer)
    assert set(cache.cache_folder().iterdir()) == before


def test_one_file_alone(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    settings = _settings(tmp_path, train=range(1, 6), held_out=range(6, 16), eval_rows=4)
    assert [row.id for row in load_split(settings, tokenizer).rows] == ["r6", "r7", "r8", "r9"]


def test_conversations_need_a_chat_template(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    file = tmp_path / "chats.jsonl"
    turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    file.write_text(json.dumps({"messages": turns}) + "\n")
    settings = DataSettings(format="messages", train=str(file), eval=str(file))
    with pytest.raises(DataError, match=r"no chat template, and conversations need one\. Set model\.chat_template to"):
        load_split(settings, bare)


def test_rows_are_mapped_from_disk_not_held(small_data: TrialData) -> None:
    dataset = small_data.train.dataset
    assert dataset.cache_files
    assert Path(dataset.cache_files[0]["filename"]).stat().st_size > 4 * small_data.train.tokens


def test_a_selection_is_of_what_is_learned_not_of_what_judges(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    def thought(number: int) -> dict[str, Any]:
        mended = {"improved_thought_process": "step 1: after all."} if number % 3 == 0 else {}
        return {**_row(number), "predicted_label": 1, "true_label": 1, **mended}

    for name, numbers in (("train", range(9)), ("eval", range(10, 16))):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(thought(n)) + "\n" for n in numbers))
    files = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "eval")}
    data = {select: load_data(DataSettings(**files, select=select), tokenizer) for select in ("correct", "reflected")}
    assert [row.id for row in data["reflected"].train.rows] == ["r0", "r3", "r6"]
    assert len(data["correct"].train) == 6
    assert data["correct"].eval.dataset["input_ids"][:] == data["reflected"].eval.dataset["input_ids"][:]
    assert data["correct"].train.counts.left_out == 3


def _chats(folder: Path, name: str, *rows: list[dict[str, Any]]) -> str:
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return str(file)


def _chat(number: int, *before: dict[str, Any], **mark: Any) -> list[dict[str, Any]]:
    turns = [{"role": "user", "content": f"Ann is number {number}?"}, {"role": "assistant", "content": "yes"}]
    return [*before, turns[0], {**turns[1], **mark}, *turns]


SYSTEM = {"role": "system", "content": "Be brief."}


def _chat_settings(folder: Path, *rows: list[dict[str, Any]], **more: Any) -> DataSettings:
    train, held_out = _chats(folder, "train", *rows), _chats(folder, "eval", _chat(98), _chat(99))
    return DataSettings(format="messages", train=train, eval=held_out, **more)


def test_a_turn_marked_as_context_is_no_target_and_stays_marked(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    plain = load_data(_chat_settings(tmp_path, _chat(1), _chat(2)), tokenizer).train
    marked = load_data(_chat_settings(tmp_path, _chat(1, weight=0), _chat(2)), tokenizer).train
    assert marked.tokens == plain.tokens
    assert marked.counts.completion_tokens < plain.counts.completion_tokens
    assert [message.is_learned for message in marked.examples[0].messages] == [True, False, True, True]
    assert rows_hash(marked.examples) != rows_hash(plain.examples)
    assert rows_hash(marked.examples[1:]) == rows_hash(plain.examples[1:])


def test_rows_that_the_template_refuses_are_named_or_dropped(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [_chat(1, SYSTEM), _chat(2), _chat(3, SYSTEM)]
    with pytest.raises(
        DataError, match=r"line 1, line 3: the tokenizer's chat template can't render it \(the roles are"
    ):
        load_data(_chat_settings(tmp_path, *rows), tokenizer)
    with caplog.at_level(logging.WARNING, logger="trials.data.validation"):
        data = load_data(_chat_settings(tmp_path, *rows, bad_rows="drop"), tokenizer)
    assert "line 1, line 3: the tokenizer's chat template can't render it" in caplog.text
    assert ([row.id for row in data.train.rows], data.train.counts.bad) == (["line-2"], 2)


def test_a_row_whose_words_the_template_refuses_is_dropped_too(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    used = copy.deepcopy(tokenizer)
    refusal = "{% if 'number 2' in messages[0]['content'] %}{{ raise_exception('no 2') }}{% endif %}"
    used.chat_template = refusal + str(tokenizer.chat_template)
    rows = [_chat(1), _chat(2), _chat(3)]
    with pytest.raises(DataError, match=r"row line-2: .* can't render it \(no 2\)\. Mend the row, or set another"):
        load_data(_chat_settings(tmp_path, *rows), used)
    with caplog.at_level(logging.WARNING, logger="trials.data.fitting"):
        data = load_data(_chat_settings(tmp_path, *rows, bad_rows="drop"), used)
    assert ([row.id for row in data.train.rows], data.train.counts.bad) == (["line-1", "line-3"], 1)
    assert "row line-2" in caplog.text


def test_half_a_character_is_a_bad_row_in_every_kind_of_file(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    good = {"prompt": "Ann is tall?", "completion": "yes"}
    halved = {**good, "prompt": "Bob is \ud83d"}
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(halved)}\n{json.dumps(good)}\n")
    (tmp_path / "rows.json").write_text(json.dumps([good, halved, good]))
    cells = "".join(f"{row['prompt']},{row['completion']}\n" for row in (good, halved, good))
    (tmp_path / "rows.csv").write_bytes(f"prompt,completion\n{cells}".encode("utf-8", "surrogatepass"))
    for name, place in (("rows.jsonl", "line 2"), ("rows.json", "row 2"), ("rows.csv", r"row 2 \(line 3\)")):
        settings = DataSettings(format="prompt_completion", train=str(tmp_path / name), eval=str(tmp_path / name))
        with pytest.raises(DataError, match=rf"{place}: field 'prompt' holds half a character \(the lone surrogate"):
            load_split(settings, tokenizer)
        assert load_split(settings.model_copy(update={"bad_rows": "drop"}), tokenizer).counts.bad == 1


def test_columns_that_nobody_reads_are_known(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [{**_row(n), "source": "web", "url": None} for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = DataSettings(train=str(tmp_path / "rows.jsonl"), eval=str(tmp_path / "rows.jsonl"))
    assert list(load_split(settings, tokenizer).counts.unread) == ["source", "url"]


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
def test_a_file_made_anew_under_the_same_time_is_read_anew(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, suffix: str
) -> None:
    file = tmp_path / f"rows{suffix}"
    found = []
    for words in (["old", "old"], ["new", "new", "new"]):
        dataset = Dataset.from_list([{"prompt": f"{word} {n}?", "completion": word} for n, word in enumerate(words)])
        {".csv": dataset.to_csv, ".parquet": dataset.to_parquet}.get(suffix, dataset.to_json)(file)
        os.utime(file, (1_767_225_600, 1_767_225_600))
        settings = DataSettings(format="prompt_completion", train=str(file), eval=str(file))
        found.append([example.completion for example in load_split(settings, tokenizer).examples])
    assert found == [["old"] * 2, ["new"] * 3]
