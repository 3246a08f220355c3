"""The engine's one thread that computes: micro-steps of all trials that train, and evaluations between them.

A micro-step takes rows from the trials in turn, up to the tokens that memory has room for. A trial whose optimizer step
is complete takes it at the micro-step's end, and is handed back to its own thread if that was the step it wanted to
reach. Nothing here waits for the GPU but evaluations, and a look at losses and gradient norms one micro-step late.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trials.config import Machine
from trials.engine.adapter import Adapter
from trials.engine.batch import Share, in_batches, make_batch
from trials.engine.decoder import Decoder
from trials.engine.frozen import FrozenDecoder
from trials.engine.profiling import KernelClock, kernel_clock
from trials.engine.room import Guest, Room
from trials.engine.trainee import StepDone, Trainee
from trials.losses import RowLosses
from trials.memory import is_out_of_memory
from trials.outcomes import CutOffError
from trials.tokenization import TokenizedRow

logger = logging.getLogger(__name__)

IsThere = Callable[[int, int], bool]
"""Whether a trial has reached what it trains for, from its optimizer steps and tokens since it began to."""


class DivergedError(Exception):
    """A trial's gradient isn't finite."""


class EngineClosedError(CutOffError):
    """The engine ended before the trial did."""


@dataclass
class _Training:
    """A trial that trains at the moment."""

    trainee: Trainee
    is_there: IsThere
    future: Future[None]
    tokens: int = 0


class Loop:
    """Runs work of trials, which ask for it from threads of their own and wait for the future."""

    def __init__(self, frozen: FrozenDecoder, machine: Machine) -> None:
        self.frozen = frozen
        self._room = Room(frozen, machine)
        self._decoder = Decoder(frozen, self._room.workspace)
        self._limit = self._room.plan.tokens
        self._changed = threading.Condition()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._joining: list[_Training] = []
        self._training: list[_Training] = []
        self._unseen: list[tuple[_Training, StepDone]] = []
        self._is_closed = False
        self._farewell = "the engine has ended"
        self._clock: KernelClock | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def train(self, trainee: Trainee, is_there: IsThere) -> Future[None]:
        """Takes optimizer steps until `is_there` says so, at least one.

        The future raises `DivergedError`, torch's error if memory doesn't suffice for a single row, or
        `EngineClosedError`.
        """
        training = _Training(trainee, is_there, Future())
        with self._changed:
            self._refuse_closed()
            self._joining.append(training)
            self._changed.notify()
        return training.future

    def evaluate(self, adapter: Adapter | None, rows: Sequence[TokenizedRow]) -> Future[RowLosses]:
        """Loss of every row's completion, in the order of `rows`; of the base model where there is no adapter."""
        return self.call(lambda: self._evaluate(adapter, rows))

    def call(self, function: Callable[[], Any]) -> Future[Any]:
        """Runs a function by itself, before the next micro-step."""
        future: Future[Any] = Future()
        with self._changed:
            self._refuse_closed()
            self._calls.append((function, future))
            self._changed.notify()
        return future

    def enter(self, key: int, guest: Guest) -> None:
        """Makes room for a trial. Raises torch's error if memory doesn't suffice."""
        self.call(lambda: self._enter_room(key, guest)).result()

    def leave(self, key: int) -> None:
        """Gives back a trial's room."""
        with suppress(EngineClosedError):
            self.call(lambda: self._leave_room(key)).result()

    @property
    def has_ended(self) -> bool:
        """Whether it was closed, or has broken down."""
        return self._is_closed

    def close(self) -> None:
        """Ends the thread after the micro-step in work; trials that train get `EngineClosedError`."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _refuse_closed(self) -> None:
        if self._is_closed:
            raise EngineClosedError(self._farewell)

    def _run(self) -> None:
        try:
            self._work()
        except Exception as error:
            # No trial's own, such as a GPU that is gone: whoever waits must hear of it.
            logger.exception("the engine has broken down")
            self._farewell = f"the engine has broken down: {type(error).__name__}: {error}"
        with self._changed:
            self._is_closed = True
        waiting = [training.future for training in (*self._training, *self._joining)]
        for future in (*waiting, *(future for _, future in self._calls)):
            if not future.done():
                future.set_exception(EngineClosedError(self._farewell))

    def _work(self) -> None:
        while self._wait_for_work():
            while self._calls:
                _answer(*self._calls.popleft())
                self._use(self._room)
            if self._training:
                self._micro_step()
            if not self._training:
                self._look_at_figures()

    def _enter_room(self, key: int, guest: Guest) -> None:
        if self._clock is None:
            self._clock = kernel_clock()
        self._room.enter(key, guest)
        self._limit = self._room.plan.tokens

    def _leave_room(self, key: int) -> None:
        self._room.leave(key)
        # It may have been this trial's rows or adapter that were too much beside the others.
        self._limit = self._room.plan.tokens
        if self._clock is not None:
            self._clock.trial_left()

    def _use(self, room: Room) -> None:
        """What the room holds may have been cut anew."""
        self._decoder.workspace = room.workspace

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._calls or self._joining or self._training)
            joining, self._joining = self._joining, []
        least = min((training.trainee.served for training in self._training), default=0)
        for training in joining:
            # Nobody who comes later makes the others wait until it has had as much as they.
            training.trainee.served = max(training.trainee.served, least)
            self._begin_step(training)
        return not self._is_closed

    def _begin_step(self, training: _Training) -> None:
        try:
            training.trainee.begin_step()
        except Exception as error:
            self._leave(training, error)
        else:
            if training not in self._training:
                self._training.append(training)

    def _micro_step(self) -> None:
        taken = self._take_rows()
        shares = [share for _, share in taken]
        try:
            batch = make_batch(shares, self.frozen.dtype, self.frozen.device, training=True)
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
        complete = [training for training, _ in taken if training.trainee.step_is_complete]
        self._look_at_figures()
        for training in complete:
            if not training.future.done():
                self._finish_step(training)

    def _take_rows(self) -> list[tuple[_Training, Share]]:
        room = self._limit
        taken: list[tuple[_Training, Share]] = []
        for training in sorted(self._training, key=lambda training: training.trainee.served):
            share = training.trainee.take(room)
            if share is None and not taken:
                share = training.trainee.take(training.trainee.next_row_tokens)
            if share is not None:
                room -= share.tokens
                taken.append((training, share))
        return taken

    def _note(self, taken: Sequence[tuple[_Training, Share]], losses: Tensor) -> None:
        parts = torch.split(losses, [len(share.rows) for _, share in taken])
        for (training, _), part in zip(taken, parts, strict=True):
            training.trainee.add_losses(part)

    def _finish_step(self, training: _Training) -> None:
        try:
            step = training.trainee.take_step()
            training.tokens += step.tokens
            is_there = training.is_there(training.trainee.steps_done, training.tokens)
        except Exception as error:
            self._leave(training, error)
            return
        self._unseen.append((training, step))
        if is_there:
            self._leave(training, None)
        else:
            self._begin_step(training)

    def _look_at_figures(self) -> None:
        """Ends trials whose gradient wasn't finite in the micro-step before the one in work."""
        for training, step in self._unseen:
            if not training.future.done() and not all(map(math.isfinite, step.figures.read())):
                self._leave(training, DivergedError("the gradient is not finite"))
        self._unseen = []

    def _break_off(self, taken: Sequence[tuple[_Training, Share]], error: Exception) -> None:
        """After a failed micro-step: its trials begin their optimizer steps anew, with half the tokens at once.

        What fails with a single row is that trial's own failure, and what isn't for want of memory is everybody's who
        took part.
        """
        rows = sum(len(share.rows) for _, share in taken)
        tokens = sum(share.tokens for _, share in taken)
        can_shrink = is_out_of_memory(error) and rows > 1
        if can_shrink:
            error = error.with_traceback(None)
            self._limit = max(tokens // 2, 1)
            logger.warning("out of memory with %d tokens at once; at most %d from now on", tokens, self._limit)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        for training, _ in taken:
            if can_shrink:
                self._begin_step(training)
            else:
                self._leave(training, error)

    def _leave(self, training: _Training, error: Exception | None) -> None:
        if training in self._training:
            self._training.remove(training)
        if error is None:
            training.future.set_result(None)
        else:
            training.future.set_exception(error)

    def _evaluate(self, adapter: Adapter | None, rows: Sequence[TokenizedRow]) -> RowLosses:
        frozen = self.frozen
        sums = []
        for part in in_batches(rows, self._decoder.workspace.tokens):
            batch = make_batch([Share(adapter, part, 1.0)], frozen.dtype, frozen.device, training=False)
            sums.append(self._decoder.losses(batch))
        found = torch.cat(sums).double().tolist()
        return RowLosses(found, [row.completion_tokens for row in rows])


def _answer(function: Callable[[], Any], future: Future[Any]) -> None:
    try:
        future.set_result(function())
    except BaseException as error:
        future.set_exception(error)
