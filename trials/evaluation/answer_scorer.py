"""Scores of a trial's answers to the first eval rows; they never influence the trial."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from trials.config import TrialConfig
from trials.data.split import Split
from trials.evaluation.evaluator import LoadedModel, answers
from trials.formats.conversations import LABELLED
from trials.metrics.row_losses import RowLosses
from trials.metrics.task_scores import RowScores, task_score
from trials.records.score_log import ScoreRecord, append_score
from trials.records.trial_dir import EvalPoint, TrialDir
from trials.system.distributed import ALONE, ProcessGroup
from trials.system.oom import is_out_of_memory
from trials.system.timer import TrialTimer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


class AnswerScorer:
    """Scorer of one trial's model that writes to the trial's folder; inactive if the recipe asks for no score."""

    def __init__(
        self,
        config: TrialConfig,
        split: Split,
        tokenizer: PreTrainedTokenizerBase,
        folder: TrialDir,
        timer: TrialTimer,
        ranks: ProcessGroup = ALONE,
    ) -> None:
        self._config = config
        self._split = split
        self._tokenizer = tokenizer
        self._folder = folder
        self._timer = timer
        self._ranks = ranks

    def is_due(self, tokens_seen: int, tokens_before: int, *, is_last: bool) -> bool:
        """Return whether an evaluation is to be scored: the last one, and each that first reaches a set token count.

        `tokens_before` is the number of tokens seen at the evaluation before it. The counts are `score_at_tokens` of
        `trials.config.TrialConfig`.
        """
        is_first = any(tokens_before < tokens <= tokens_seen for tokens in self._config.score_at_tokens)
        return self._config.evaluation.score_rows is not None and (is_last or is_first)

    def scored(self, point: EvalPoint, losses: RowLosses, model: Any) -> EvalPoint:
        """Return the evaluation with its score, after writing the score to disk row by row.

        If memory runs out, the evaluation is returned unchanged: a score mustn't end a trial.
        """
        began = self._timer.seconds
        scores = self._score(model)
        if scores is None:
            return point
        if self._folder.is_written:
            append_score(self._folder.path, ScoreRecord(point.step, point.tokens_seen, losses, scores))
        seconds = self._timer.seconds
        return replace(point, score=scores.mean, score_seconds=seconds - began, seconds=seconds)

    def _score(self, model: Any) -> RowScores | None:
        try:
            return self._score_answers(model)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            logger.warning("no score: memory ran out while answering; set a smaller evaluation.batch_rows")
        # Emptied only here, because before this line the error's frames still hold tensors.
        torch.cuda.empty_cache()
        return None

    def _score_answers(self, model: Any) -> RowScores:
        data_format = self._config.data.format
        examples = self._split.examples[: self._config.evaluation.score_rows]
        judged = LoadedModel(model, self._tokenizer, is_adapter=hasattr(model, "peft_config"))
        given = self._ranks.map_sharded(
            examples,
            lambda part: answers(
                judged,
                part,
                until_object=data_format in LABELLED,
                batch_rows=self._config.evaluation.batch_rows,
            ),
        )
        return task_score(data_format, given, examples)
