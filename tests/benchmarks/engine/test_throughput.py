"""The benchmark of trials: its floors exactly, its rows as trials read them, and a tiny run of it for real."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.engine.entries import padded
from benchmarks.engine.jobs import Job, Window
from benchmarks.engine.processes import together
from benchmarks.engine.roofline import Rates, attention_flops_per_token, bytes_per_micro_step, floors, flops_per_token
from benchmarks.engine.table import rows_of, table
from benchmarks.engine.throughput import all_entries, main
from benchmarks.engine.workload import MISTRAL_7B, TINY, read_rows, row_lengths
from benchmarks.system.end_to_end import Span, recipe, stock_spans, summary
from tests.support.cli import run_command

pytestmark = pytest.mark.slow

RATES = Rates("a GPU", burst_flops=779e12, sustained_flops=650e12, copy_bytes=3e12)


def test_the_floors_are_those_of_the_7b_model() -> None:
    assert MISTRAL_7B.frozen_weights == 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336) == 6_979_321_856
    assert flops_per_token(MISTRAL_7B) == 27_917_287_424
    assert attention_flops_per_token(MISTRAL_7B, [2048, 2048]) == 6 * 32 * 4096 * 2048
    # A token is in the long row three times as often as in the short one: (3 * 300 + 1 * 100) / 4 = 250.
    assert attention_flops_per_token(MISTRAL_7B, [100, 300]) == 6 * 32 * 4096 * 250
    found = floors(RATES, MISTRAL_7B, [260], [2048])
    assert found.arithmetic == pytest.approx(27_904, abs=1)
    assert found.arithmetic_sustained == pytest.approx(23_283, abs=1)
    assert found.with_attention_long == pytest.approx(779e12 / (27_917_287_424 + 1_610_612_736))


def test_the_bandwidth_floor_counts_weights_twice_and_every_layers_input_and_output() -> None:
    per_token = 2 * 2 * 32 * (2 * 8192 + 2 * 5120 + 3 * 18432)
    weights = 2 * 6_979_321_856 * (0.5 + 1 / 64 + 1 / 4096 + 4)
    assert bytes_per_micro_step(MISTRAL_7B, 0) == pytest.approx(weights)
    assert bytes_per_micro_step(MISTRAL_7B, 4096) == pytest.approx(weights + 4096 * per_token)
    assert floors(RATES, MISTRAL_7B, [260], [2048]).bandwidth == pytest.approx(
        3e12 * 4096 / (weights + 4096 * per_token)
    )


def test_rows_are_as_long_as_the_real_ones() -> None:
    lengths = row_lengths("short", MISTRAL_7B)
    assert sum(lengths) / len(lengths) == pytest.approx(260, abs=5)
    assert 96 <= min(lengths) <= max(lengths) <= 640
    assert set(row_lengths("long", MISTRAL_7B)) == {2048}


def test_a_window_measures_what_comes_after_the_warm_up() -> None:
    window = Window(Job("trl", "one", "nowhere", seconds=0.0), warm_up_steps=2)
    assert [window.step_ended(tokens) for tokens in (100, 200, 350)] == [False, False, True]
    assert window.measured is not None
    assert (window.measured.tokens, window.measured.steps) == (150, 1)


def test_members_begin_together_and_end_together(tmp_path: Path) -> None:
    job = Job("trl", "two", str(tmp_path), seconds=0.0, members=2)
    window = Window(job, warm_up_steps=1)
    assert not any(window.step_ended(tokens) for tokens in (10, 20, 30))
    assert window.measured is None  # the other one isn't warm
    (job.gate / "warm-other").touch()
    assert not any(window.step_ended(tokens) for tokens in (40, 50))
    assert window.measured is not None
    assert window.measured.tokens == 10
    (job.gate / "measured-other").touch()
    assert window.step_ended(60)
    assert window.measured.tokens == 10


def test_padding_is_neither_seen_nor_learned() -> None:
    batch = {name: tensor.tolist() for name, tensor in padded([[1, 7, 8, 2], [1, 9, 2]]).items()}
    assert batch["input_ids"] == [[1, 7, 8, 2], [1, 9, 2, 3]]
    assert batch["attention_mask"] == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch["labels"] == [[-100, -100, 8, 2], [-100, 9, 2, -100]]


def test_members_are_added_up_and_one_error_is_the_entrys() -> None:
    one = {"tokens_per_second": 2.0, "tokens": 4, "steps": 1, "peak_allocated_gib": 3.0, "peak_reserved_gib": 5.0}
    assert together([one | {"seconds": 9.0}] * 2) == {key: 2 * value for key, value in one.items()} | {"seconds": 9.0}
    assert together([one, {"error": "no"}]) == {"error": "no"}


def test_an_entry_is_compared_with_others_on_the_same_work() -> None:
    here = floors(RATES, MISTRAL_7B, [260], [2048])
    memory = {"split": "16x1", "peak_allocated_gib": 1.0, "peak_reserved_gib": 2.0}
    speeds = {"guide": 700.0, "trl-tuned": 5000.0, "trl-tuned-2048": 4000.0, "ours-8": 14000.0, "ours-8-2048": 8000.0}
    entries: dict[str, dict[str, Any]] = {
        name: {"tokens_per_second": speed, **memory} for name, speed in speeds.items()
    }
    rows = rows_of({**entries, "unsloth": {"error": "not there"}}, here, here)
    assert rows["ours-8"]["times_guide"] == 20.0
    assert rows["ours-8"]["times_trl_tuned"] == 2.8
    assert rows["ours-8"]["times_unsloth"] is None
    assert rows["ours-8"]["share_of_floor"] == pytest.approx(14000 / here.arithmetic)
    assert rows["ours-8"]["projection_4090"] == pytest.approx(14000)
    assert rows["ours-8-2048"]["times_trl_tuned"] == 2.0
    assert rows["ours-8-2048"]["times_guide"] is None
    assert rows["guide"]["projection_4090"] is None
    lines = table(rows).splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == [*speeds, "unsloth"]
    assert lines[-2].endswith("not there")


def test_gaps_of_a_search_are_between_trials_that_follow_one_another() -> None:
    found = summary([Span(10, 20, 8), Span(50, 60, 9), Span(70, 80, 9)], wall_seconds=100)
    assert (found["trials_at_once"], found["gap_seconds_mean"], found["gap_seconds_longest"]) == (1, 20, 30)
    assert (found["steps_at_once"], found["share_of_wall_in_trials"]) == (0.26, 0.3)
    side_by_side = summary([Span(0, 20, 10), Span(0, 30, 10), Span(21, 40, 10), Span(33, 40, 5)], wall_seconds=50)
    assert (side_by_side["trials_at_once"], side_by_side["gap_seconds_mean"]) == (2, 2)
    assert side_by_side["share_of_wall_in_trials"] == 0.8
    assert summary([], wall_seconds=5)["gap_seconds_mean"] is None


def test_the_stock_pipelines_marks_become_spans(tmp_path: Path) -> None:
    (tmp_path / "1.json").write_text(json.dumps([[10.0, 12.0], [15.0, 16.0]]))
    assert stock_spans(tmp_path) == [Span(10.0, 16.0, 3.0)]


def test_unknown_entries_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--tiny", "--only", "guide,ours-9"])
    assert stop.value.code == 2
    assert "unknown entries ours-9; known are guide, trl-tuned" in capsys.readouterr().err


def test_every_engine_entry_says_what_each_of_its_trials_is(tmp_path: Path) -> None:
    entries = all_entries(tmp_path, 1.0, 23.5, tiny=True)
    assert len([name for name in entries if name.startswith("ours-")]) == 12
    for name, entry in entries.items():
        work = entry.job.engine
        assert (work is not None) == name.startswith("ours-")
        assert work is None or len(work.ranks) == len(work.targets) == work.trials == int(name.split("-")[1])


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work folder of a run in which TRL really trained, with its JSON."""
    work = tmp_path_factory.mktemp("benchmark")
    command = [sys.executable, "-m", "benchmarks.engine.throughput", "--tiny", "--only", "guide,trl-tuned,unsloth"]
    done = run_command([*command, "--seconds", "0.5", "--work", str(work), "--json", str(work / "found.json")])
    assert done.returncode == 0, done.stderr
    assert "4090, a projection" in done.stdout
    assert "guide   " in done.stdout
    return work


def test_a_run_measures_real_tokens(tiny_run: Path) -> None:
    found = json.loads((tiny_run / "found.json").read_text())
    guide, tuned = found["entries"]["guide"], found["entries"]["trl-tuned"]
    for entry in (guide, tuned):
        assert entry["tokens_per_second"] == pytest.approx(entry["tokens"] / entry["seconds"])
        # 16 rows a step, none of them longer than all the file's longest.
        assert 16 * 12 <= entry["tokens"] / entry["steps"] <= 16 * 80
    assert (guide["split"], tuned["split"]) == ("2x8", "16x1")
    assert guide["times_guide"] == 1
    assert tuned["times_guide"] == pytest.approx(tuned["tokens_per_second"] / guide["tokens_per_second"])
    assert tuned["share_of_floor"] == pytest.approx(tuned["tokens_per_second"] / found["floors"]["arithmetic"])
    assert found["entries"]["unsloth"]["error"], "it needs a GPU, and its failure is a line of the table"
    assert found["floors"]["arithmetic"] == found["rates"]["burst_flops"] / (4 * TINY.frozen_weights)


def test_trials_read_the_same_rows(tiny_run: Path) -> None:
    from search_spaces.schema import Recipe
    from trials.data.dataset import load_data
    from trials.model.loading import load_tokenizer

    settings = Recipe.model_validate({"name": "short", **recipe(tiny_run)})
    tokenizer = load_tokenizer(settings.model)
    train = load_data(settings.data, tokenizer).train.for_training
    expected = read_rows(tiny_run / "short.jsonl", 128)
    assert len(tokenizer) == TINY.vocabulary
    assert train["input_ids"][:] == expected
    assert train["labels"][:] == [[-100] * (len(row) // 2) + row[len(row) // 2 :] for row in expected]
    assert [len(row) for row in expected] == row_lengths("short", TINY)[:128]
