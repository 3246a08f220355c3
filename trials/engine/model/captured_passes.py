"""Training passes that are captured as CUDA graphs, so that small models don't wait for the host's kernel launches.

A pass of a small model is a thousand and more kernels of a few microseconds each, and the host needs longer to launch
one than the GPU to run it. A captured pass is launched as a whole. It has fixed memory and fixed shapes, so a batch is
padded to one of a few sizes and copied to where the pass reads it. One adapter is in a pass, because every company of
several would need graphs of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from trials.engine.lora.groups import Dropout
from trials.engine.model.activations import ActivationBuffers
from trials.engine.model.decoder import Decoder
from trials.engine.model.packed_batch import BatchSize, BatchSlice, PackedBatch, make_batch, padded_batch, padded_size

logger = logging.getLogger(__name__)

Pass = Callable[[], Tensor]
"""Passes the batch that is in its memory; returns the losses of its rows, overwritten by the next pass."""


class Capture(Protocol):
    """Captures what a pass that has run before does on the GPU, without doing it; returns what does the same."""

    is_possible: bool
    """Whether nothing has failed to be captured yet. After a failure the engine goes on without."""

    def __call__(self, run: Pass) -> Pass:
        """Return what does on the GPU what `run` does. Raises `RuntimeError` if that can't be captured."""


class NoCapture:
    """Captures nothing: for a CPU, and for models whose kernels keep a GPU busy."""

    is_possible: bool = False

    def __call__(self, run: Pass) -> Pass:
        """See `Capture`."""
        return run


class GraphCapture:
    """Captures passes as CUDA graphs that share one memory pool. Only one of them may run at a time."""

    def __init__(self) -> None:
        self.is_possible = True
        self._pool = torch.cuda.graph_pool_handle()
        self._stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        something = torch.zeros(1, device="cuda")
        # Never replayed: torch frees a pool for good with the last graph of it.
        self._first = self._graph(lambda: something + 1)

    def __call__(self, run: Pass) -> Pass:
        """See `Capture`. Other threads may use the GPU meanwhile."""
        graph, losses = self._graph(run)

        def replay() -> Tensor:
            graph.replay()
            return losses

        return replay

    def _graph(self, run: Pass) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            graph.capture_begin(self._pool, capture_error_mode="thread_local")
            try:
                losses = run()
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(self._stream)
        return graph, losses


class CapturedPasses:
    """Training passes of one adapter: the first of each size as it is, captured from the second on."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._passes: dict[BatchSize, _FixedPass] = {}
        self._buffers: ActivationBuffers | None = None

    def train(self, decoder: Decoder, share: BatchSlice) -> Tensor:
        """Return and do what `Decoder.train` does for a batch of this slice alone."""
        frozen = decoder.frozen
        if decoder.buffers is not self._buffers:
            self._passes, self._buffers = {}, decoder.buffers
        size = padded_size(share, decoder.buffers.tokens) if self._capture.is_possible else None
        if size is None:
            return decoder.train(make_batch([share], frozen.dtype, frozen.device, training=True))
        batch = padded_batch(share, size, frozen.dtype, frozen.device)
        known = self._passes.get(size)
        if known is None:
            known = _FixedPass(decoder, batch)
            losses = known.run()
            self._passes[size] = known
        else:
            known.refill(batch)
            losses = self._replayed(known)
        return losses[: len(share.rows)].clone()

    def _replayed(self, known: _FixedPass) -> Tensor:
        if known.replay is None:
            try:
                known.replay = self._capture(known.run)
            except RuntimeError as error:
                logger.warning("passes can't be captured as CUDA graphs, and are slower from now on: %s", error)
                self._capture.is_possible, self._passes = False, {}
                return known.run()
        return known.replay()


class _FixedPass:
    """Training pass over batches of one size and one adapter, in memory that stays where it is."""

    def __init__(self, decoder: Decoder, batch: PackedBatch) -> None:
        self._decoder = decoder
        self._batch = batch
        self._attention = decoder.kernels.attention(batch.lengths, batch.row_count)
        self._products = decoder.kernels.lasting_products()
        self.replay: Pass | None = None

    def refill(self, batch: PackedBatch) -> None:
        """Take over another batch of the same size."""
        for mine, other in zip(_tensors(self._batch), _tensors(batch), strict=True):
            mine.copy_(other)
        self._attention.renew(batch.lengths)

    def run(self) -> Tensor:
        """See `Pass`."""
        return self._decoder.train(self._batch, self._attention, self._products)


def _tensors(batch: PackedBatch) -> list[Tensor]:
    drop: Dropout | None = batch.dropout
    of_dropout = [] if drop is None else [drop.token_keys, drop.thresholds, drop.scales]
    return [batch.input_ids, batch.positions, batch.learned, batch.targets, batch.weights, batch.row_of, *of_dropout]
