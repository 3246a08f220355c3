"""Step loop: the engine's computing thread, which runs micro-batches of all trials and evaluations between them.

A micro-batch takes rows from the trials in turn, up to the limit in tokens. A trial whose optimizer step is complete
takes it at the end of the micro-batch. If it has reached its next stop, its own thread goes on. The loop waits for the
GPU only to read losses and gradient norms, one micro-batch late.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from trials.config import Machine
from trials.data.tokenization import TokenizedRow
from trials.engine.kernels.async_scalars import AsyncScalars
from trials.engine.lora.adapter import Adapter
from trials.engine.memory.dry_run import DryRun
from trials.engine.memory.manager import MemoryManager
from trials.engine.memory.oom_history import TrialFootprint
from trials.engine.model.decoder import Decoder
from trials.engine.model.frozen_base import FrozenDecoder
from trials.engine.model.packed_batch import BatchSlice, fitting, make_batch
from trials.engine.runtime.adapter_trainer import AdapterTrainer
from trials.engine.runtime.gpu_errors import is_fatal_gpu_error
from trials.engine.runtime.micro_batches import ActiveTrial, IsThere, MicroBatcher
from trials.engine.runtime.profiling import KernelClock, kernel_clock
from trials.metrics.row_losses import RowLosses
from trials.records.memory_report import MemoryReport
from trials.system.oom import is_out_of_memory
from trials.training.heartbeat import Heartbeat
from trials.training.outcome import TrialInterrupted

logger = logging.getLogger(__name__)


Made = TypeVar("Made")
_NOBODY = -1
"""Key of memory that belongs to no trial; trials' keys are values of `id`, which are positive."""


class EngineClosedError(TrialInterrupted):
    """The engine ended before the trial."""


class StepLoop:
    """Runs the work of trials, which submit it from their own threads and wait for the future."""

    def __init__(self, frozen: FrozenDecoder, machine: Machine) -> None:
        self.frozen = frozen
        self.heartbeat = Heartbeat()
        """Heartbeats of the loop's thread, and of the threads that submit work."""
        self._manager = MemoryManager(frozen, machine)
        self._decoder = Decoder(frozen, self._manager.buffers)
        self._micro_batcher = MicroBatcher(self._decoder, self._manager.max_tokens, self._learn, self._manager.capture)
        self._changed = threading.Condition()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._joining: deque[ActiveTrial] = deque()
        self._is_closed = False
        self._farewell = "the engine has ended"
        self._clock: KernelClock | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def train(self, trainer: AdapterTrainer, is_there: IsThere) -> Future[None]:
        """Take optimizer steps until `is_there` returns True, at least one.

        The future raises `DivergedError`, torch's error if memory doesn't suffice for a single row, or
        `EngineClosedError`.
        """
        training = ActiveTrial(trainer, is_there, Future())
        with self._changed:
            self._refuse_closed()
            self._joining.append(training)
            self._changed.notify()
        return training.future

    def evaluate(self, adapter: Adapter | None, rows: Sequence[TokenizedRow]) -> RowLosses:
        """Return the loss of every row's completion, in the order of `rows`; `adapter` None: of the base model.

        Only the caller waits for the losses to arrive from the GPU; the loop's thread goes on with other work.
        """
        later: AsyncScalars = self.wait_for(self.call(lambda: self._evaluate(adapter, rows)))
        with self.fatal_gpu_errors():
            losses = later.read()
        return RowLosses(losses, [row.completion_tokens for row in rows])

    @contextmanager
    def fatal_gpu_errors(self) -> Iterator[None]:
        """End the engine if the block raises a fatal GPU error, as such an error in the loop's thread does.

        The block raises `EngineClosedError` then.
        """
        try:
            yield
        except RuntimeError as error:
            if is_fatal_gpu_error(error):
                self.wait_for(self.call(partial(_raise, error)))
            raise

    def call(self, function: Callable[[], Any]) -> Future[Any]:
        """Run a function in the loop's thread before the next micro-batch; return its future."""
        future: Future[Any] = Future()
        with self._changed:
            self._refuse_closed()
            self._calls.append((function, future))
            self._changed.notify()
        return future

    def wait_for(self, future: Future[Any]) -> Any:
        """Return the future's result; the calling thread counts as resting until it arrives."""
        with self.heartbeat.resting():
            return future.result()

    def admit(self, key: int, footprint: TrialFootprint) -> None:
        """Admit a trial to memory. Raises torch's error if memory doesn't suffice."""
        self.wait_for(self.call(lambda: self._admit(key, footprint)))

    def release(self, key: int) -> None:
        """Release a trial's memory; does nothing once the engine has ended."""
        with suppress(EngineClosedError):
            self.wait_for(self.call(lambda: self._release(key)))

    def run_isolated(self, footprint: TrialFootprint, work: Callable[[Decoder], None]) -> None:
        """Run `work` in the loop's thread, with memory for `footprint` that belongs to no trial; wait for its end."""

        def run() -> None:
            self._manager.admit(_NOBODY, footprint)
            try:
                self._use(self._manager)
                work(self._decoder)
            finally:
                self._manager.release(_NOBODY)

        self.call(run).result()

    def allocate(self, make: Callable[[], Made]) -> Made:
        """Return what `make` allocates for a trial, such as its adapter; if memory runs out, micro-batches shrink.

        Raises torch's error if they can't. To be called from the trial's thread.
        """
        known = self._manager.oom_history.ooms
        while True:
            try:
                return make()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                failure = error.with_traceback(None)
            # Outside of the `except` block, because the error's frames keep tensors in memory.
            most = self.wait_for(self.call(lambda: self._learn(self._manager.max_tokens, self._manager.max_tokens)))
            if most is None:
                self.wait_for(self.call(lambda: self._manager.oom_history.forget_after(known)))
                raise failure
            logger.warning("out of memory before a trial trains; at most %d tokens at once from now on", most)

    def dry_run(self, dry_run: DryRun) -> MemoryReport:
        """Try the worst micro-batch of an admitted trial, unless a verified fit covers it; return the memory report.

        Raises torch's error if memory doesn't suffice for a single row.
        """
        run = partial(dry_run.run, self._manager, self._decoder, self._learn)
        found: MemoryReport = self.wait_for(self.call(run))
        return found

    def memory_report(self, key: int) -> MemoryReport:
        """Return the memory report as it is by now, without attempts; the peak is that of the whole process."""
        found: MemoryReport = self.wait_for(self.call(lambda: self._manager.memory_report(key)))
        return found

    @property
    def has_ended(self) -> bool:
        """Whether the engine was closed or has failed."""
        return self._is_closed

    def close(self) -> None:
        """End the thread after the current micro-batch; trials that train get `EngineClosedError`."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _refuse_closed(self) -> None:
        if self._is_closed:
            raise EngineClosedError(self._farewell)

    def _run(self) -> None:
        try:
            if self.frozen.device.type == "cuda":
                torch.cuda.set_device(self.frozen.device)  # a new thread begins with the first GPU
            self._work()
        except Exception as error:
            # An error of no single trial, such as a lost GPU: every waiting thread must get it.
            logger.exception("the engine has broken down")
            self._farewell = f"the engine has broken down: {type(error).__name__}: {error}"
        with self._changed:
            self._is_closed = True
        farewell = EngineClosedError(self._farewell)
        self._micro_batcher.abandon(farewell)
        for future in (*(training.future for training in self._joining), *(future for _, future in self._calls)):
            if not future.done():
                future.set_exception(farewell)
        self.heartbeat.stop()

    def _work(self) -> None:
        while self._wait_for_work():
            while self._calls:
                # A call stays in the queue until it has its result, so that it gets an error if the engine fails.
                _answer(*self._calls[0])
                self._calls.popleft()
                self._use(self._manager)
                self.heartbeat.beat()
            if self._micro_batcher:
                self._micro_batcher.run_micro_batch()
            if not self._micro_batcher:
                self._micro_batcher.check_finite()

    def _admit(self, key: int, footprint: TrialFootprint) -> None:
        if self._clock is None:
            self._clock = kernel_clock()
        self._manager.admit(key, footprint)
        self._micro_batcher.limit = self._manager.max_tokens

    def _release(self, key: int) -> None:
        self._manager.release(key)
        # The limit may rise: this trial's rows or adapter may have been what didn't fit beside the others.
        self._micro_batcher.limit = self._manager.max_tokens
        if self._clock is not None:
            self._clock.trial_left()

    def _use(self, manager: MemoryManager) -> None:
        """Give the decoder the manager's buffers, which may have been replaced."""
        self._decoder.buffers = manager.buffers

    def _wait_for_work(self) -> bool:
        with self._changed:
            with self.heartbeat.resting():
                self._changed.wait_for(lambda: self._is_closed or self._calls or self._joining or self._micro_batcher)
            self.heartbeat.beat()
        while self._joining:
            self._micro_batcher.add(self._joining[0])
            self._joining.popleft()
        return not self._is_closed

    def _learn(self, tokens: int, rows: int) -> int | None:
        """Record that memory ran out with so many tokens and rows at once; return the limit in tokens from now on.

        None: it was a single row, and no plan needs less memory.
        """
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if rows == 1 and self._manager.is_least:
            return None
        self._manager.on_oom(tokens)
        self._use(self._manager)
        self._micro_batcher.limit = self._manager.max_tokens
        return self._manager.max_tokens

    def _evaluate(self, adapter: Adapter | None, rows: Sequence[TokenizedRow]) -> AsyncScalars:
        sums: list[Tensor] = []
        start = 0
        while start < len(rows):
            end = fitting(rows, self._manager.max_tokens, start)
            found = self._losses(adapter, rows[start:end])
            if found is not None:
                sums.append(found)
                start = end
            self.heartbeat.beat()
        return AsyncScalars(torch.cat(sums))

    def _losses(self, adapter: Adapter | None, rows: Sequence[TokenizedRow]) -> Tensor | None:
        """Return the rows' losses; None if memory ran out and the caller has to try again, with the new limit.

        Raises torch's error for a single row if no plan needs less memory.
        """
        frozen, share = self.frozen, BatchSlice(adapter, rows, 1.0)
        try:
            return self._decoder.losses(make_batch([share], frozen.dtype, frozen.device, training=False))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failure = error.with_traceback(None)
        # Outside of the `except` block, because the error's frames keep tensors in memory.
        most = self._learn(share.tokens, len(rows))
        if most is None:
            raise failure
        logger.warning("out of memory evaluating %d tokens at once; at most %d from now on", share.tokens, most)
        return None


def _answer(function: Callable[[], Any], future: Future[Any]) -> None:
    try:
        future.set_result(function())
    except BaseException as error:
        if is_fatal_gpu_error(error):
            raise
        future.set_exception(error)


def _raise(error: Exception) -> None:
    raise error
