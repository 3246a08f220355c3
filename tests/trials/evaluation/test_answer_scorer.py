"""When answers are scored, what that leaves on disk, and that it changes nothing else."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from search_spaces.loader import load_recipe
from tests.conftest import SMALL
from trials.config import EvaluationSettings, TrialConfig
from trials.data.dataset import TrialData, load_data
from trials.errors import RecipeError
from trials.evaluation.answer_scorer import AnswerScorer
from trials.evaluation.evaluator import answers, load_model
from trials.formats.conversations import Example
from trials.metrics.row_losses import RowLosses
from trials.metrics.task_scores import Measure, task_score
from trials.model.loading import attach_adapter, load_base
from trials.records.trial_dir import Ending, EvalPoint, Origin, TrialDir, TrialRecord, read_trial
from trials.state import TrialState
from trials.system.timer import TrialTimer
from trials.system.torch_setup import use_threads
from trials.training.training_run import Decision, TrainingRun
from trials.trl.backend import TrlBackend

ROWS = 3
DROPOUT = 0.3


@pytest.fixture(scope="module")
def text_config(small_config: TrialConfig, tmp_path_factory: pytest.TempPathFactory) -> TrialConfig:
    """Short questions and answers in words, whose scores lie between 0 and 1; with dropout, to see it undisturbed."""
    folder = tmp_path_factory.mktemp("rows")
    for name, rows in {"train": range(60), "eval": range(60, 66)}.items():
        lines = [{"prompt": f"What comes after {i}?", "completion": f"after {i} comes {i + 1}"} for i in rows]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    paths = {name: str(folder / f"{name}.jsonl") for name in ("train", "eval")}
    data = small_config.data.model_copy(update={**paths, "test": None, "format": "prompt_completion"})
    learning = {"train_tokens": 1500, "lora_dropout": DROPOUT}
    update = {
        "data": data,
        "hyperparameters": small_config.hyperparameters.model_copy(update=learning),
        "base_eval_loss": 99.0,
        "score_at_tokens": (100, 500),
        "evaluation": EvaluationSettings(evaluations=3, score_rows=ROWS),
    }
    return small_config.model_copy(update=update)


@pytest.fixture(scope="module")
def text_data(text_config: TrialConfig, tokenizer: PreTrainedTokenizerBase) -> TrialData:
    return load_data(text_config.data, tokenizer)


@dataclass(frozen=True)
class Trained:
    record: TrialRecord
    heard: list[EvalPoint]

    @property
    def losses(self) -> list[float]:
        return [point.eval_loss for point in self.record.points]


Train = Callable[..., Trained]


@pytest.fixture(scope="module")
def train(
    text_config: TrialConfig,
    text_data: TrialData,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path_factory: pytest.TempPathFactory,
) -> Train:
    """Runs the trial, its evaluation settings changed."""
    use_threads(text_config.machine)

    def of(*, data: TrialData = text_data, stop_at: float = math.inf, **evaluation: Any) -> Trained:
        settings = text_config.evaluation.model_copy(update=evaluation)
        config = text_config.model_copy(update={"evaluation": settings})
        folder = TrialDir(tmp_path_factory.mktemp("trial") / "0001")
        folder.begin(config, Origin.SINGLE, "text")
        heard: list[EvalPoint] = []

        def on_eval(point: EvalPoint) -> Decision:
            heard.append(point)
            return Decision.CONTINUE

        TrlBackend().run(TrainingRun(config, data, tokenizer, folder, on_eval, stop_at))
        return Trained(read_trial(folder.path), heard)

    return of


@pytest.fixture(scope="module")
def scored(train: Train) -> Trained:
    return train()


def test_it_is_scored_where_it_reaches_the_tokens_and_at_its_end(scored: Trained) -> None:
    points = scored.record.points
    assert [point.score is not None for point in points] == [True, False, True]
    assert [point.score_seconds is not None for point in points] == [True, False, True]
    assert scored.heard == list(points)
    assert scored.record.score == points[-1].score
    (events,) = scored.record.folder.glob("tensorboard/events.*")
    assert b"eval/score" in events.read_bytes()


def test_scores_are_on_disk_row_by_row_beside_the_losses_of_the_same_weights(scored: Trained) -> None:
    points = [point for point in scored.record.points if point.score is not None]
    scorings = scored.record.scorings
    assert [(s.step, s.tokens_seen, s.scores.mean, s.losses.mean) for s in scorings] == [
        (point.step, point.tokens_seen, point.score, point.eval_loss) for point in points
    ]
    assert {(s.scores.measure, len(s.scores.values), len(s.losses.loss_sums)) for s in scorings} == {
        (Measure.ROUGE_L, ROWS, 6)
    }
    assert any(0 < value < 1 for scoring in scorings for value in scoring.scores.values)


def test_scoring_changes_nothing_in_the_training(scored: Trained, train: Train) -> None:
    unscored = train(score_rows=None)
    assert unscored.losses == scored.losses  # to the last bit, dropout included
    assert all(point.score is None for point in unscored.record.points)
    assert not (unscored.record.folder / "score_rows.jsonl").exists()
    weights = "adapter/adapter_model.safetensors"
    assert (unscored.record.folder / weights).read_bytes() == (scored.record.folder / weights).read_bytes()


def test_the_score_is_that_of_the_adapter_on_disk(scored: Trained, text_data: TrialData) -> None:
    best = min(scored.record.points, key=lambda point: point.eval_loss)
    assert best.score is not None
    examples = text_data.eval.examples[:ROWS]
    given = answers(load_model(str(scored.record.adapter)), examples)
    assert task_score("prompt_completion", given, examples).mean == best.score


def test_time_for_a_score_is_the_trials_but_not_its_trainings(scored: Trained) -> None:
    last = scored.record.points[-1]
    assert last.tokens_per_second is not None
    training = last.tokens_seen / last.tokens_per_second
    assert training + sum(point.score_seconds or 0.0 for point in scored.record.points) < last.seconds


def test_a_trial_out_of_patience_is_scored_where_that_ends_it(train: Train) -> None:
    trained = train(patience=1, min_improvement=50.0)
    assert trained.record.ending is not None
    assert trained.record.ending.kind is TrialState.EARLY_STOPPED
    assert [point.score is not None for point in trained.record.points] == [True, True]


def test_when_time_is_over_nothing_is_scored(train: Train) -> None:
    trained = train(stop_at=time.time() - 1)
    assert [point.score for point in trained.record.points] == [None]
    assert trained.record.has_adapter


class _TooLarge(Sequence[Example]):
    """Examples that can't be held in memory."""

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: Any) -> Any:
        return torch.empty(2**55)


def test_a_score_that_memory_does_not_suffice_for_does_not_end_the_trial(
    train: Train, text_data: TrialData, scored: Trained, caplog: pytest.LogCaptureFixture
) -> None:
    whole = text_data.eval
    rows = SimpleNamespace(rows=whole.rows, longest=whole.longest, longest_rows=whole.longest_rows)
    rows.examples = _TooLarge()
    no_room = replace(text_data, eval=rows)
    trained = train(data=no_room)
    assert trained.record.ending == Ending(TrialState.FINISHED, scored.record.ending.reason)
    assert trained.losses == scored.losses
    assert all(point.score is None for point in trained.record.points)
    assert "memory ran out while answering" in caplog.text


def test_the_base_is_scored_once(
    small_config: TrialConfig, small_data: TrialData, tokenizer: Any, tmp_path: Path
) -> None:
    config = small_config.model_copy(update={"evaluation": EvaluationSettings(score_rows=2)})
    folder = TrialDir(tmp_path / "0000")
    folder.begin(config, Origin.BASE, "base")
    TrlBackend().evaluate_base(TrainingRun(config, small_data, tokenizer, folder, lambda _: Decision.CONTINUE))
    (point,), (scoring,) = read_trial(folder.path).points, read_trial(folder.path).scorings
    assert (scoring.scores.measure, len(scoring.scores.values)) == (Measure.LABEL, 2)
    assert (scoring.step, scoring.scores.mean, scoring.losses.mean) == (0, point.score, point.eval_loss)


def _gradients(model: Any, ids: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(1)
    model(input_ids=ids, labels=ids).loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.requires_grad]


def test_scoring_leaves_the_model_and_the_random_state_as_they_were(
    text_config: TrialConfig, text_data: TrialData, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = attach_adapter(load_base(text_config.model), text_config.hyperparameters)
    model.train()
    model.config.use_cache = False
    ids = torch.tensor([text_data.eval.rows[0].input_ids])

    def state() -> tuple[Any, ...]:
        base = model.get_base_model()
        modes = [module.training for module in model.modules()]
        return modes, model.config.to_dict(), base.generation_config.to_dict(), torch.get_rng_state().tolist()

    gradients, before = _gradients(model, ids), state()
    scorer = AnswerScorer(text_config, text_data.eval, tokenizer, TrialDir(tmp_path), TrialTimer())
    assert scorer.scored(EvalPoint(1, 1, 1.0, 1.0, 1.0), RowLosses([1.0], [1]), model).score is not None
    assert state() == before
    after = _gradients(model, ids)
    assert len(after) == len(gradients) > 0
    assert all(torch.equal(a, b) for a, b in zip(after, gradients, strict=True))


@pytest.mark.parametrize(
    ("rows", "tokens", "expected"),
    [
        (None, (100, 300), [False, False, False, False]),
        (2, (), [False, False, False, True]),
        (2, (100, 300), [False, True, True, True]),
        (2, (40, 60, 120), [True, True, False, True]),  # one score for two that are due at once
    ],
)
def test_what_is_due(text_config: TrialConfig, rows: int | None, tokens: tuple[int, ...], expected: list[bool]) -> None:
    settings = text_config.evaluation.model_copy(update={"score_rows": rows})
    config = text_config.model_copy(update={"evaluation": settings, "score_at_tokens": tokens})
    scorer = AnswerScorer(config, None, None, None, None)  # type: ignore[arg-type]
    seen = [(0, 90), (90, 150), (150, 400), (400, 900)]
    assert [scorer.is_due(tokens, before, is_last=tokens == 900) for before, tokens in seen] == expected


def test_plain_text_can_not_be_scored() -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe("demo", [*SMALL, "data.format=text", "evaluation.score_rows=4"], environ={})
    assert str(error.value) == (
        "recipe 'demo':\n  evaluation.score_rows=4 is not allowed for data.format 'text': nothing is asked there that "
        "could be answered; set it to null"
    )


@pytest.mark.parametrize("rows", [0, 1, -3])
def test_an_interval_needs_two_rows(rows: int) -> None:
    with pytest.raises(RecipeError, match=r"evaluation\.score_rows=.* is not allowed: .* greater than or equal to 2"):
        load_recipe("demo", [f"evaluation.score_rows={rows}"], environ={})
