from dataclasses import replace
from datetime import timedelta

from orchestrator.planning.plan_text import DataSizes, data_lines, describe, placement_line
from orchestrator.planning.throughput import ThroughputModel
from orchestrator.state.search import Placement, Search
from search_spaces.loader import load_recipe
from search_spaces.schema import Recipe
from tests.support.fake_search import make_search
from trials.data.dataset import TrialData


def test_sizes_are_counted_on_tokens(small_recipe: Recipe, small_data: TrialData) -> None:
    sizes = DataSizes.of(small_recipe, small_data)
    assert sizes.epoch_tokens == sum(len(row.input_ids) for row in small_data.train.rows)
    assert [sizes.data[name]["rows"] for name in ("train", "eval", "test")] == [4500, 12, 8]
    assert sizes.data["fingerprint"] == small_data.fingerprint
    assert sizes.full_tokens == 3000


def test_the_longest_trial_of_the_space_sets_the_rungs(small_data: TrialData) -> None:
    settings = ["train_tokens=null", "epochs=1", "space.epochs={low: 0.5, high: 3.0}"]
    recipe = load_recipe("demo", settings, environ={}).recipe
    sizes = DataSizes.of(recipe, small_data)
    assert sizes.full_tokens == 3 * sizes.epoch_tokens
    choices = load_recipe("demo", ["space.train_tokens={choices: [50000, 100000, 70000]}"], environ={}).recipe
    assert DataSizes.of(choices, small_data).full_tokens == 100_000


def test_the_plan_says_where_each_setting_came_from(small_recipe: Recipe, small_data: TrialData) -> None:
    plan = describe(make_search(small_recipe), DataSizes.of(small_recipe, small_data))
    assert "search.seed = 0  (--set)" in plan
    assert "hyperparameters.weight_decay = 0.01  (default)" in plan
    assert "the last 10m00s are kept for verification" in plan
    assert "trials are evaluated, and may pause, at 300, 600, 900 tokens" in plan
    assert "memory of one trial, on the CPU: at least" in plan


def test_a_search_that_goes_on_is_planned_with_what_it_has_measured(
    small_recipe: Recipe, small_data: TrialData
) -> None:
    search, throughput = make_search(small_recipe), ThroughputModel()
    throughput.observe(small_recipe.trial_config({}), 900, 90.0)
    late = search.deadline.training_ends - timedelta(seconds=200)
    plan = describe(
        replace(search, shortened=1.0, placement=Placement(1, 1)),
        DataSizes.of(small_recipe, small_data),
        throughput,
        late,
    )
    assert "speed: 10 tokens/s in each of 1 trials at once, evaluations included, measured" in plan
    assert "1 of them at full length" in plan


def test_what_became_of_the_rows_is_said_in_words() -> None:
    none = dict.fromkeys(("bad", "left_out", "not_sampled", "overlapping", "too_long", "shortened"), 0)
    kept = {"rows": 90, "tokens": 9000, "completion_tokens": 1234, "longest": 512}
    said = "90 of 9,000 tokens, 1,234 of them learned, the longest row has 512"
    assert data_lines({"fingerprint": "1f", "eval": {"read": 90, **none, **kept}}) == [f"eval rows: {said}"]
    found = data_lines({"train": {"read": 100, **none, **kept, "bad": 4, "too_long": 6, "shortened": 3}})
    aside = "3 of them shortened; 100 read, without 4 that don't fit the format, 6 too long"
    assert found == [f"train rows: {said}; {aside}"]


def test_columns_that_are_not_used_are_named_once() -> None:
    counts = dict.fromkeys(
        ("read", "rows", "bad", "left_out", "not_sampled", "overlapping", "too_long", "shortened"), 0
    )
    counts.update(tokens=0, completion_tokens=0, longest=0)
    unread = {"train": ["source", "score"], "eval": ["source", "score"], "test": ["url"]}
    found = data_lines({name: {**counts, "unread": names} for name, names in unread.items()})
    assert found[3:] == ["columns not used, in train and eval: source, score", "columns not used, in test: url"]
    many = data_lines({"train": {**counts, "unread": [f"c{number}" for number in range(12)]}})
    assert many[1].endswith(": c0, c1, c2, c3, c4, c5, c6, c7, c8, c9 and 2 more")


def test_the_plan_says_where_trials_run(small_recipe: Recipe, small_data: TrialData) -> None:
    recipe = load_recipe("demo", ["cpu_threads=null", "concurrent_trials=3"], environ={}).recipe
    sizes = DataSizes.of(small_recipe, small_data)
    said = describe(make_search(recipe), sizes)
    shared = "engine: shared (it can run every configuration of this search); trials at once: 3, on 1 base model(s)\n"
    assert shared in said
    apart = load_recipe("demo", ["engine=trl", "concurrent_trials=1"], environ={}).recipe
    said = describe(make_search(apart), sizes)
    assert "engine: TRL (the recipe asks for TRL); trials at once: 1, each in a process of its own\n" in said


def test_the_plan_says_what_trains_one_trial_together(small_recipe: Recipe, small_data: TrialData) -> None:
    sizes, search = DataSizes.of(small_recipe, small_data), make_search(small_recipe)
    assert "GPUs per trial: 0\n" in describe(search, sizes)
    said = describe(replace(search, ranks=2), sizes)
    assert "GPUs per trial: 0; 2 processes on the CPU stand in for them (gloo)\n" in said
    assert "(it can run every configuration of this search); trials at once: 1, each in 2 processes\n" in said
    on_gpus = describe(replace(search, gpus_per_trial=2, ranks=2), sizes)
    assert "GPUs per trial: 2, which train it together (NCCL)\n" in on_gpus


def test_without_the_gpus_that_it_needs_the_plan_still_says_which_engine(search: Search) -> None:
    said = placement_line(replace(search, gpus_per_trial=100_000, ranks=100_000))
    assert said.startswith(
        "engine: shared (it can run every configuration of this search); trials at once: as many as the Ray cluster"
    )
