"""Micro-batches of the rows of all trials in training, the optimizer steps they complete, and their failures."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import torch
from torch import Tensor

from trials.engine.memory.manager import Learn
from trials.engine.model.captured_passes import Capture, CapturedPasses
from trials.engine.model.decoder import Decoder
from trials.engine.model.packed_batch import BatchSlice, make_batch
from trials.engine.runtime.adapter_trainer import AdapterTrainer, StepDone
from trials.engine.runtime.gpu_errors import is_fatal_gpu_error
from trials.system.oom import is_out_of_memory

logger = logging.getLogger(__name__)

IsThere = Callable[[int, int], bool]
"""Whether a trial has reached its next stop, from its optimizer steps in all and its tokens since `StepLoop.train`."""


class DivergedError(Exception):
    """A trial's loss or gradient isn't finite."""


@dataclass
class ActiveTrial:
    """Trial in training, and the future that its own thread waits for."""

    trainer: AdapterTrainer
    is_there: IsThere
    future: Future[None]
    tokens: int = 0


class MicroBatcher:
    """Runs the micro-batches of the trials that train at the moment. Belongs to the loop's thread."""

    def __init__(self, decoder: Decoder, limit: int, learn: Learn, capture: Capture) -> None:
        """`capture` captures passes of one trial at a time; where it can't, a micro-batch has rows of all trials."""
        self._decoder = decoder
        self._learn = learn
        self._capture = capture
        self.limit = limit
        """Limit of a micro-batch in tokens; a single row may exceed it."""
        self._training: list[ActiveTrial] = []
        self._unseen: list[tuple[ActiveTrial, StepDone]] = []

    def __bool__(self) -> bool:
        """Return whether any trial trains."""
        return bool(self._training)

    def add(self, training: ActiveTrial) -> None:
        """Add a trial, which trains from now on."""
        # A new trial starts with the lowest count of those that train. From zero it would be served first, at the
        # others' expense, until it had caught up with them.
        least = min((other.trainer.tokens_served for other in self._training), default=0)
        training.trainer.tokens_served = max(training.trainer.tokens_served, least)
        self._begin_step(training)

    def abandon(self, error: Exception) -> None:
        """Remove all trials; their futures raise `error`."""
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
        """Run one micro-batch, and take the optimizer steps that it completes."""
        taken = self._take_rows()
        try:
            losses = self._passed(taken)
        except Exception as error:
            failure: Exception | None = error
        else:
            failure = None
        if failure is not None:
            # Outside of the `except` block, so that the error's frames and the tensors in them can be freed.
            self._break_off(taken, failure)
            return
        self._note(taken, losses)
        complete = [training for training, _ in taken if training.trainer.step_is_complete]
        self.check_finite()
        for training in complete:
            if not training.future.done():
                self._finish_step(training)

    def _passed(self, taken: Sequence[tuple[ActiveTrial, BatchSlice]]) -> Tensor:
        """Pass the rows forward and backward; return the summed loss of each."""
        frozen, shares = self._decoder.frozen, [share for _, share in taken]
        if not self._capture.is_possible:
            return self._decoder.train(make_batch(shares, frozen.dtype, frozen.device, training=True))
        trainer = taken[0][0].trainer
        if trainer.passes is None:
            trainer.passes = CapturedPasses(self._capture)
        return trainer.passes.train(self._decoder, shares[0])

    def _take_rows(self) -> list[tuple[ActiveTrial, BatchSlice]]:
        token_budget = self.limit
        taken: list[tuple[ActiveTrial, BatchSlice]] = []
        for training in sorted(self._training, key=lambda training: training.trainer.tokens_served):
            share = training.trainer.next_rows(token_budget)
            if share is None and not taken:
                share = training.trainer.next_rows(training.trainer.next_row_tokens)
            if share is not None:
                token_budget -= share.tokens
                taken.append((training, share))
            if taken and self._capture.is_possible:
                break
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
        """Begin the step again, with a new limit, if it ran out of memory and can be repeated; else fail the trial."""
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
        """End trials whose loss or gradient norm wasn't finite in a step that no earlier call has checked."""
        for training, step in self._unseen:
            if not training.future.done() and not all(map(math.isfinite, step.figures.read())):
                self._leave(training, DivergedError("the gradient is not finite"))
        self._unseen = []

    def _break_off(self, taken: Sequence[tuple[ActiveTrial, BatchSlice]], error: Exception) -> None:
        """Handle a failed micro-batch: if memory ran out, its trials begin their steps again, with a new limit.

        If it was a single row and no plan needs less memory, its trial fails. Any other error fails every trial in the
        micro-batch.
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
        """Remove a trial and set its future. A fatal GPU error is raised instead; `abandon` then ends all trials."""
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
    """Return a sort key by modules: adapters with the same ones are then neighbours, and a group spans fewer tokens."""
    modules = taken[0].trainer.adapter.modules
    return len(modules), modules
