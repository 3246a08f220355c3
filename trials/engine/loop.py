"""The engine's one thread that computes: micro-steps of all trials that train, and evaluations between them.

A micro-step takes rows from the trials in turn, up to the tokens that memory has room for. A trial whose optimizer step
is complete takes it at the micro-step's end, and is handed back to its own thread if that was the step it wanted to
reach. Nothing here waits for the GPU but a look at losses and gradient norms, one micro-step late.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import torch

from trials.config import Machine
from trials.engine.adapter import Adapter
from trials.engine.batch import Share, in_batches, make_batch
from trials.engine.decoder import Decoder
from trials.engine.frozen import FrozenDecoder
from trials.engine.later import Later
from trials.engine.micro_steps import IsThere, MicroSteps, Training
from trials.engine.profiling import KernelClock, kernel_clock
from trials.engine.room import Guest, Room
from trials.engine.trainee import Trainee
from trials.losses import RowLosses
from trials.outcomes import CutOffError
from trials.tokenization import TokenizedRow

logger = logging.getLogger(__name__)


_NOBODY = -1
"""A guest's key; trials' are addresses."""


class EngineClosedError(CutOffError):
    """The engine ended before the trial did."""


class Loop:
    """Runs work of trials, which ask for it from threads of their own and wait for the future."""

    def __init__(self, frozen: FrozenDecoder, machine: Machine) -> None:
        self.frozen = frozen
        self._room = Room(frozen, machine)
        self._decoder = Decoder(frozen, self._room.workspace)
        self._micro_steps = MicroSteps(self._decoder, self._room.plan.tokens)
        self._changed = threading.Condition()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._joining: list[Training] = []
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
        training = Training(trainee, is_there, Future())
        with self._changed:
            self._refuse_closed()
            self._joining.append(training)
            self._changed.notify()
        return training.future

    def evaluate(self, adapter: Adapter | None, rows: Sequence[TokenizedRow]) -> RowLosses:
        """Loss of every row's completion, in the order of `rows`; of the base model where there is no adapter.

        Only the caller waits for the figures: the thread that computes goes on with what others want.
        """
        later: Later = self.call(lambda: self._evaluate(adapter, rows)).result()
        return RowLosses(later.read(), [row.completion_tokens for row in rows])

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

    def rehearse(self, guest: Guest, work: Callable[[Decoder], None]) -> None:
        """Runs something by itself, with room for a guest who is none of the trials."""

        def run() -> None:
            self._room.enter(_NOBODY, guest)
            try:
                self._use(self._room)
                work(self._decoder)
            finally:
                self._room.leave(_NOBODY)

        self.call(run).result()

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
        farewell = EngineClosedError(self._farewell)
        self._micro_steps.abandon(farewell)
        for future in (*(training.future for training in self._joining), *(future for _, future in self._calls)):
            if not future.done():
                future.set_exception(farewell)

    def _work(self) -> None:
        while self._wait_for_work():
            while self._calls:
                _answer(*self._calls.popleft())
                self._use(self._room)
            if self._micro_steps:
                self._micro_steps.take()
            if not self._micro_steps:
                self._micro_steps.look_at_figures()

    def _enter_room(self, key: int, guest: Guest) -> None:
        if self._clock is None:
            self._clock = kernel_clock()
        self._room.enter(key, guest)
        self._micro_steps.limit = self._room.plan.tokens

    def _leave_room(self, key: int) -> None:
        self._room.leave(key)
        # It may have been this trial's rows or adapter that were too much beside the others.
        self._micro_steps.limit = self._room.plan.tokens
        if self._clock is not None:
            self._clock.trial_left()

    def _use(self, room: Room) -> None:
        """What the room holds may have been cut anew."""
        self._decoder.workspace = room.workspace

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._calls or self._joining or self._micro_steps)
            joining, self._joining = self._joining, []
        for training in joining:
            self._micro_steps.join(training)
        return not self._is_closed

    def _evaluate(self, adapter: Adapter | None, rows: Sequence[TokenizedRow]) -> Later:
        frozen = self.frozen
        sums = []
        for part in in_batches(rows, self._decoder.workspace.tokens):
            batch = make_batch([Share(adapter, part, 1.0)], frozen.dtype, frozen.device, training=False)
            sums.append(self._decoder.losses(batch))
        return Later(torch.cat(sums))


def _answer(function: Callable[[], Any], future: Future[Any]) -> None:
    try:
        future.set_result(function())
    except BaseException as error:
        future.set_exception(error)
