"""Every recipe that ships with the project: what it starts from, and that it runs on rows of its own shape."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator.planning.plan_text import placement_line
from search_spaces.loader import load_recipe, recipe_names
from search_spaces.schema import Recipe
from tests.support.fake_search import make_search
from trials.records.trial_dir import read_trial
from trials.state import TrialState
from trials.train import main

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
V1, V2, V3 = "mistralai/Mistral-7B-v0.1", "mistralai/Mistral-7B-Instruct-v0.2", "mistralai/Mistral-7B-v0.3"

# The guides' figures: base, rank, alpha, dropout, targets, rows a step, rate, length of a row, rows at once.
GUIDES: dict[str, tuple[Any, ...]] = {
    "nli_cot": (V3, 16, 32, 0.05, ATTENTION, 16, 2e-4, 2048, 2),
    "nli_cot/ablation0": (V3, 16, 32, 0.05, ATTENTION, 16, 1e-4, 512, 16),
    "nli_cot/ablation1": (V3, 16, 32, 0.05, ATTENTION, 32, 2e-4, 512, 16),
    "nli_cot/ablation2": (V3, 16, 32, 0.05, ATTENTION, 16, 2e-4, 512, 16),
    "nli_cot/ablation3": (V3, 32, 64, 0.05, ATTENTION, 64, 1e-4, 512, 16),
    "nli_cot/distributed": (V3, 16, 32, 0.05, ATTENTION, 32, 2e-4, 512, 8),
    "nli_cot/initial_test_run": (V3, 16, 32, 0.05, ATTENTION, 16, 2e-4, 2048, 2),
    "nli_cot/minimal_test": (V3, 8, 16, 0.05, ATTENTION, 1, 2e-4, 256, 1),
    "ultrachat": (V1, 64, 16, 0.1, ATTENTION, 128, 2e-5, 2048, 1),
    "dolly": (V1, 8, 16, 0.05, (*LINEAR, "lm_head"), 4, 2e-4, 1024, 4),
    "law": (V2, 32, 64, 0.05, LINEAR, 8, 2.5e-5, 512, 2),
}
# Scheduler, warm-up, weight decay, optimizer, clipping, (epochs, rows of a full trial), rows between evaluations.
SCHEDULES: dict[str, tuple[Any, ...]] = {
    "nli_cot": ("cosine", 0.03, 0.01, "paged_adamw_8bit", 1.0, (1, None), 250 * 16),
    "nli_cot/ablation0": ("cosine", 0.03, 0.01, "paged_adamw_8bit", None, (5, None), 250 * 16),
    "nli_cot/ablation1": ("cosine", 0.05, 0.01, "paged_adamw_8bit", None, (5, None), 250 * 32),
    "nli_cot/ablation2": ("cosine", 0.03, 0.01, "paged_adamw_8bit", None, (5, None), 250 * 16),
    "nli_cot/ablation3": ("cosine", 0.10, 0.01, "paged_adamw_8bit", 1.0, (5, None), 250 * 64),
    "nli_cot/distributed": ("cosine", 0.03, 0.01, "paged_adamw_8bit", None, (3, None), 250 * 32),
    "ultrachat": ("cosine", 0.0, 0.0, "adamw_torch", 1.0, (1, None), None),
    "dolly": ("linear", 0.0, 0.001, "paged_adamw_32bit", 1.0, (None, 50 * 4), 25 * 4),
    "law": ("linear", 0.0, 0.0, "paged_adamw_8bit", 1.0, (None, 70_000 * 8), 1000 * 8),
}


def _recipe(name: str, *settings: str) -> Recipe:
    return load_recipe(name, settings, environ={}).recipe


def test_every_recipe_is_told_of_here() -> None:
    assert set(recipe_names()) == {*GUIDES, "demo", "smollm2"}


@pytest.mark.parametrize("name", GUIDES)
def test_the_starting_point_is_the_guide_s(name: str) -> None:
    recipe = _recipe(name)
    assert recipe.start
    hp = recipe.hyperparameters_with(recipe.start_values(next(iter(recipe.start))))
    assert hp == recipe.hyperparameters
    rows = recipe.machine.micro_batch_rows
    found = (recipe.model.name, hp.lora_rank, hp.lora_alpha, hp.lora_dropout, hp.target_modules, hp.effective_batch)
    assert (*found, hp.learning_rate, recipe.data.max_length_tokens, rows) == GUIDES[name]
    assert recipe.model.quantization == "nf4"


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_schedule_is_the_guide_s(name: str) -> None:
    recipe = _recipe(name)
    hp = recipe.hyperparameters
    found = (hp.scheduler, hp.warmup_fraction, hp.weight_decay, hp.optimizer, hp.max_grad_norm)
    assert (*found, (hp.epochs, hp.rows_seen), recipe.evaluation.every_rows) == SCHEDULES[name]


def test_what_else_the_guides_say() -> None:
    assert [_recipe(f"nli_cot/ablation{n}").data.select for n in (1, 2, 3)] == ["correct", "reflected", "all"]
    assert len({_recipe(f"nli_cot/ablation{n}").data.train for n in (1, 2, 3)}) == 1
    assert _recipe("nli_cot").evaluation.patience == 3
    assert _recipe("nli_cot").search.budget == "9h"
    # A checkpoint every 1,000 steps, all of them resumable.
    law = _recipe("law").machine
    assert (law.checkpoint_every_rows, law.keep_checkpoints, law.fsdp) == (1000 * 8, None, True)
    assert not _recipe("nli_cot/minimal_test").tracking.wandb
    assert _recipe("nli_cot").tracking.wandb
    chat = _recipe("ultrachat").data
    assert (chat.train_rows, chat.eval_rows, chat.subset_seed) == (0.05, 0.1, None)
    assert _recipe("dolly").data.train.endswith("dolly-15k:train[:800]")
    assert _recipe("dolly").data.eval.endswith("dolly-15k:train[800:1000]")


def test_every_space_varies_the_learning_rate_and_the_rank() -> None:
    for name in GUIDES:
        assert {"learning_rate", "lora_rank"} <= set(_recipe(name).space)


@pytest.mark.parametrize("name", sorted({*GUIDES, "demo", "smollm2"}))
def test_the_plan_says_which_engine_runs_it_and_why(name: str, small_recipe: Recipe) -> None:
    search = make_search(_recipe(name, f"model.name={small_recipe.model.name}"))
    reason = "the engine has no adapter on lm_head" if name == "dolly" else None
    ours = "shared (it can run every configuration of this search)"
    assert placement_line(search).startswith(f"engine: {f'TRL ({reason})' if reason else ours}; trials at once: ")


def _pair(number: int) -> dict[str, Any]:
    return {"id": f"r{number}", "premise": f"Ann is number {number}.", "hypothesis": f"Bob is {number}."}


def _thought(number: int) -> dict[str, Any]:
    thought = {**_pair(number), "thought_process": "step 1: no.", "predicted_label": number % 2, "true_label": 1}
    return thought if number % 4 else {**thought, "predicted_label": 1, "improved_thought_process": "step 1: yes."}


def _finished(number: int) -> dict[str, Any]:
    answer = json.dumps({"thought_process": "step 1: yes.", "predicted_label": number % 2})
    pair = _pair(number)
    prompt = f"Premise: {pair['premise']}\nHypothesis: {pair['hypothesis']}\n\nThink."
    return {"id": number, "text": f"<s>[INST] {prompt} [/INST] {answer} </s>"}


def _chat(number: int) -> dict[str, Any]:
    turns = [("user", f"Who is number {number}?"), ("assistant", "Ann is."), ("user", "Why?"), ("assistant", "So.")]
    return {"prompt": "x", "messages": [{"role": role, "content": content} for role, content in turns]}


def _instruction(number: int) -> dict[str, Any]:
    context = "" if number % 2 else "Ann is tall."
    return {"instruction": f"Say {number}.", "context": context, "response": f"It's {number}.", "category": "x"}


def _question(number: int) -> dict[str, Any]:
    return {"title": f"Is {number} legal?", "body": f"I've seen {number}. " * 3, "score": number}


SHAPES = {"ultrachat": _chat, "dolly": _instruction, "law": _question}
THOUGHTS = ("nli_cot/ablation1", "nli_cot/ablation2", "nli_cot/ablation3")


def _data(folder: Path, name: str) -> Sequence[str]:
    """Rows of the recipe's own shape, 48 to train on and 8 to be judged by."""
    shape = _thought if name in THOUGHTS else SHAPES.get(name, _finished)
    for split, numbers in (("train", range(48)), ("eval", range(48, 56))):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(shape(n)) + "\n" for n in numbers))
    return [f"data.{split}={folder / split}.jsonl" for split in ("train", "eval")]


@pytest.mark.parametrize("name", [*GUIDES, "smollm2"])
def test_it_runs(name: str, tmp_path: Path, small_recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    # The model, its rows and its length are the demo's; everything else is as the recipe says.
    settings = [
        f"model.name={small_recipe.model.name}",
        *_data(tmp_path, name),
        "data.train_rows=null",
        "data.eval_rows=null",
        "data.test=null",
        "epochs=null",
        "train_tokens=null",
        f"rows_seen={2 * _recipe(name).hyperparameters.effective_batch}",
        "cpu_threads=1",
    ]
    code = main([name, "--set", *settings, "--out", str(tmp_path / "trial")])
    assert code == 0, capsys.readouterr().err
    record = read_trial(tmp_path / "trial")
    assert record.ending is not None
    assert record.ending.kind is TrialState.FINISHED
    assert record.points[-1].step == 2
    assert record.has_adapter
    adapter = json.loads((record.adapter / "adapter_config.json").read_text())
    assert set(adapter["target_modules"]) == set(record.config.hyperparameters.target_modules)
