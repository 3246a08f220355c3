"""Dry run of a trial's worst micro-batch before it trains; weights and gradients are restored afterwards.

The dry run takes as many of the longest rows as a micro-batch may have. It does a forward pass, a backward pass, an
optimizer step and an evaluation. If memory runs out, micro-batches become smaller or more is recomputed
(`trials.engine.memory.manager`), until they fit. A trial is infeasible if a single row doesn't fit with everything
recomputed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from trials.data.tokenization import TokenizedRow
from trials.engine.lora.adapter import Adapter
from trials.engine.memory.manager import Learn, MemoryManager
from trials.engine.model.decoder import Decoder
from trials.engine.model.packed_batch import BatchSlice, fitting, make_batch
from trials.engine.optim.flat import FlatOptimizer
from trials.records.memory_report import Attempt, MemoryReport
from trials.system.oom import is_out_of_memory

logger = logging.getLogger(__name__)


@dataclass
class DryRun:
    """Dry run of one trial, whose adapter has no optimizer yet. Runs in the loop's thread."""

    key: int
    adapter: Adapter
    make_optimizer: Callable[[], FlatOptimizer]
    longest_rows: Callable[[int], tuple[Sequence[TokenizedRow], Sequence[TokenizedRow]]]
    """Returns the longest training and eval rows, of so many tokens each; called only if a try is needed."""
    tried: list[Attempt] = field(default_factory=list)

    def run(self, manager: MemoryManager, decoder: Decoder, learn: Learn) -> MemoryReport:
        """Return the trial's memory report, after a try unless a verified fit covers the trial.

        Raises torch's error if not even one row fits.
        """
        proof = manager.verified_fit(self.key)
        if proof is None:
            self._try(manager, decoder, learn)
            proof = manager.record_fit(self.key, _peak_bytes(self.adapter))
        return replace(manager.memory_report(self.key), peak_bytes=proof.peak_bytes, tried=tuple(self.tried))

    def _try(self, manager: MemoryManager, decoder: Decoder, learn: Learn) -> None:
        known = manager.oom_history.ooms
        try:
            while not self._fits(manager, decoder, learn):
                pass
        except Exception:
            manager.oom_history.forget_after(known)
            raise

    def _fits(self, manager: MemoryManager, decoder: Decoder, learn: Learn) -> bool:
        train, evaluated = (rows[: fitting(rows, manager.max_tokens)] for rows in self.longest_rows(manager.max_tokens))
        tokens, is_recomputed = sum(len(row.input_ids) for row in train), manager.plan.recomputed > 0
        error: Exception | None = None
        try:
            self._pass(train, evaluated, decoder)
        except Exception as raised:
            if not is_out_of_memory(raised):
                raise
            error = raised.with_traceback(None)
        self.tried.append(Attempt(len(train), tokens, is_recomputed, error is None))
        if error is None:
            return True
        most = learn(tokens, max(len(train), len(evaluated)))
        if most is None:
            raise error
        logger.warning("out of memory trying %d tokens at once; at most %d from now on", tokens, most)
        return False

    @torch.no_grad()
    def _pass(self, train: Sequence[TokenizedRow], evaluated: Sequence[TokenizedRow], decoder: Decoder) -> None:
        frozen, adapter = decoder.frozen, self.adapter
        if adapter.flat.is_cuda:
            torch.cuda.reset_peak_memory_stats()
        before = adapter.flat.to("cpu", copy=True)
        try:
            decoder.train(make_batch([BatchSlice(adapter, train, 1.0)], frozen.dtype, frozen.device, training=True))
            self.make_optimizer().step()
            decoder.losses(
                make_batch([BatchSlice(adapter, evaluated, 1.0)], frozen.dtype, frozen.device, training=False)
            )
        finally:
            adapter.flat.copy_(before)
            adapter.gradient.zero_()


def _peak_bytes(adapter: Adapter) -> int | None:
    return torch.cuda.max_memory_allocated() if adapter.flat.is_cuda else None
