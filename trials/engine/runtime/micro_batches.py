"""Micro-steps: rows of all trials that train, in turn; optimizer steps at their ends; and who leaves by whose fault."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import torch
from torch import Tensor

from trials.engine.memory.manager import Learn
from trials.engine.model.decoder import Decoder
from trials.engine.model.packed_batch import BatchSlice, make_batch
from trials.engine.runtime.adapter_trainer import AdapterTrainer, StepDone
from trials.engine.runtime.gpu_errors import is_fatal_gpu_error
from trials.system.oom import is_out_of_memory

logger = logging.getLogger(__name__)

IsThere = Callable[[int, int], bool]
"""Whether a trial has reached what it trains for, from its optimizer steps and tokens since it began to."""


class DivergedError(Exception):
    """A trial's gradient isn't finite."""


@dataclass
class ActiveTrial:
    """A trial that trains, and who waits for it."""

    trainer: AdapterTrainer
    is_there: IsThere
    future: Future[None]
    tokens: int = 0


class MicroBatcher:
    """The trials that train at the moment. Belongs to the loop's thread."""

    def __init__(self, decoder: Decoder, limit: int, learn: Learn) -> None:
        self._decoder = decoder
        self._learn = learn
        self.limit = limit
        """Tokens of a micro-step at most, but for a single row."""
        self._training: list[ActiveTrial] = []
        self._unseen: list[tuple[ActiveTrial, StepDone]] = []

    def __bool__(self) -> bool:
        """Whether anybody trains."""
        return bool(self._training)

    def add(self, training: ActiveTrial) -> None:
        """A trial trains from now on."""
        # Nobody who comes later makes the others wait until it has had as much as they.
        least = min((other.trainer.tokens_served for other in self._training), default=0)
        training.trainer.tokens_served = max(training.trainer.tokens_served, least)
        self._begin_step(training)

    def abandon(self, error: Exception) -> None:
        """Nobody trains any more."""
        for training in list(self._training):
            self._leave(training, error)

    def _begin_step(self, training: ActiveTrial) -> None:
        try:
            training.trainer.begin_step()
        except Exception as error:
            self._leave(training, error)
        else:
            if training not in self._training:
                self._training.append(training)

    def run_micro_batch(self) -> None:
        """One micro-step, and the optimizer steps that it completes."""
        taken = self._take_rows()
        shares = [share for _, share in taken]
        try:
            batch = make_batch(shares, self._decoder.frozen.dtype, self._decoder.frozen.device, training=True)
            losses = self._decoder.train(batch)
        except Exception as error:
            failure: Exception | None = error
        else:
            failure = None
        if failure is not None:
            # Only here, where the error's frames and the tensors in them can go.
            self._break_off(taken, failure)
            return
        self._note(taken, losses)
        complete = [training for training, _ in taken if training.trainer.step_is_complete]
        self.check_finite()
        for training in complete:
            if not training.future.done():
                self._finish_step(training)

    def _take_rows(self) -> list[tuple[ActiveTrial, BatchSlice]]:
        manager = self.limit
        taken: list[tuple[ActiveTrial, BatchSlice]] = []
        for training in sorted(self._training, key=lambda training: training.trainer.tokens_served):
            share = training.trainer.next_rows(manager)
            if share is None and not taken:
                share = training.trainer.next_rows(training.trainer.next_row_tokens)
            if share is not None:
                manager -= share.tokens
                taken.append((training, share))
        return sorted(taken, key=_beside_its_like)

    def _note(self, taken: Sequence[tuple[ActiveTrial, BatchSlice]], losses: Tensor) -> None:
        parts = torch.split(losses, [len(share.rows) for _, share in taken])
        for (training, _), part in zip(taken, parts, strict=True):
            training.trainer.add_losses(part)

    def _finish_step(self, training: ActiveTrial) -> None:
        failure: Exception | None = None
        try:
            step = training.trainer.take_step()
            training.tokens += step.tokens
            is_there = training.is_there(training.trainer.steps_done, training.tokens)
        except Exception as error:
            failure = error
        if failure is not None:
            self._fail_step(training, failure)
            return
        self._unseen.append((training, step))
        if is_there:
            self._leave(training, None)
        else:
            self._begin_step(training)

    def _fail_step(self, training: ActiveTrial, error: Exception) -> None:
        """Begins the step anew if there wasn't memory for the optimizer's state; smaller micro-steps leave more."""
        trainer = training.trainer
        most = None
        if is_out_of_memory(error) and trainer.may_step_again:
            error = error.with_traceback(None)
            trainer.oom_tokens.append(self.limit)
            most = self._learn(self.limit, self.limit)
        if most is None:
            self._leave(training, error)
            return
        self.limit = most
        logger.warning("out of memory in an optimizer step; at most %d tokens at once from now on", self.limit)
        self._begin_step(training)

    def check_finite(self) -> None:
        """Ends trials whose gradient wasn't finite in the micro-step before the one in work."""
        for training, step in self._unseen:
            if not training.future.done() and not all(map(math.isfinite, step.figures.read())):
                self._leave(training, DivergedError("the gradient is not finite"))
        self._unseen = []

    def _break_off(self, taken: Sequence[tuple[ActiveTrial, BatchSlice]], error: Exception) -> None:
        """After a failed micro-step: its trials begin their optimizer steps anew, with less at once.

        What fails with a single row, where nothing needs less, is that trial's own failure, and what isn't for want of
        memory is everybody's who took part.
        """
        rows = sum(len(share.rows) for _, share in taken)
        tokens = sum(share.tokens for _, share in taken)
        most = None
        if is_out_of_memory(error):
            error = error.with_traceback(None)
            most = self._learn(tokens, rows)
        elif torch.cuda.is_available():
            torch.cuda.empty_cache()
        if most is not None:
            self.limit = most
            logger.warning("out of memory with %d tokens at once; at most %d from now on", tokens, self.limit)
        for training, _ in taken:
            if most is not None:
                training.trainer.oom_tokens.append(tokens)
                self._begin_step(training)
            else:
                self._leave(training, error)

    def _leave(self, training: ActiveTrial, error: Exception | None) -> None:
        """Raises what is no trial's own; the training is abandoned then with all others."""
        if error is not None and is_fatal_gpu_error(error):
            if training not in self._training:
                self._training.append(training)
            raise error
        if training in self._training:
            self._training.remove(training)
        if error is None:
            training.future.set_result(None)
        else:
            training.future.set_exception(error)


def _beside_its_like(taken: tuple[ActiveTrial, BatchSlice]) -> tuple[int, tuple[str, ...]]:
    """Orders shares so that adapters of one module lie together: between them nothing has to be computed for it."""
    modules = taken[0].trainer.adapter.modules
    return len(modules), modules
