"""Adapter of a trial in the engine, as a `trials.training.evaluation_loop.TrainableModel`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trials.config import TrialConfig
from trials.data.tokenization import TokenizedRow
from trials.engine.lora.adapter import Adapter
from trials.engine.runtime.step_loop import StepLoop
from trials.evaluation.answer_scorer import AnswerScorer
from trials.evaluation.eval_loss import shared_losses
from trials.metrics.row_losses import RowLosses
from trials.model.adapter_files import save_adapter
from trials.model.loading import attach_adapter
from trials.records.trial_dir import EvalPoint
from trials.system.distributed import ALONE, ProcessGroup


@dataclass(frozen=True)
class EngineModel:
    """Adapter on the engine's base model; with `adapter` None, the base model alone."""

    loop: StepLoop
    config: TrialConfig
    rows: Sequence[TokenizedRow]
    adapter: Adapter | None
    ranks: ProcessGroup = ALONE

    def losses(self) -> RowLosses:
        """Return the losses of the eval rows with the present weights."""
        return shared_losses(self.ranks, self.rows, lambda rows: self.loop.evaluate(self.adapter, rows))

    def save(self, path: Path) -> None:
        """Save the adapter in the folder `path` in PEFT's format."""
        assert self.adapter is not None
        save_adapter(self.adapter.named_parameters(), self.config, path)

    def scored(self, scorer: AnswerScorer, point: EvalPoint, losses: RowLosses) -> EvalPoint:
        """Score answers of transformers' own model in the loop's thread, so that nothing else uses it meanwhile."""

        def score() -> EvalPoint:
            with self._as_model() as model, self._heard():
                return scorer.scored(point, losses, model)

        scored: EvalPoint = self.loop.wait_for(self.loop.call(score))
        return scored

    @contextmanager
    def _heard(self) -> Iterator[None]:
        """Count every generated token as progress: answers may take minutes."""
        heartbeat = self.loop.heartbeat
        hook = self.loop.frozen.model.get_decoder().register_forward_pre_hook(lambda *_: heartbeat.beat())
        try:
            yield
        finally:
            hook.remove()

    @contextmanager
    def _as_model(self) -> Iterator[Any]:
        base = self.loop.frozen.model
        if self.adapter is None:
            yield base
            return
        model = attach_adapter(base, self.config.hyperparameters, self.config.model.revision)
        try:
            weights = dict(model.named_parameters())
            with torch.no_grad():
                for name, parameter in self.adapter.named_parameters():
                    weights[name].copy_(parameter)
            yield model
        finally:
            model.unload()
