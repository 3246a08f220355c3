"""Compiles the GPU's kernels before any trial waits for them, once per machine: Triton keeps them in its cache."""

from __future__ import annotations

from functools import partial

from trials.config import Hyperparameters
from trials.data.tokenization import IGNORED, TokenizedRow
from trials.engine.lora.adapter import Adapter, parameter_count
from trials.engine.memory.oom_history import TrialFootprint
from trials.engine.model.decoder import Decoder
from trials.engine.model.packed_batch import BatchSlice, make_batch
from trials.engine.runtime.step_loop import StepLoop
from trials.model.memory_plan import adapter_bytes
from trials.system.oom import is_out_of_memory

_RANKS = (16, 32, 64)
"""One for each size that `triton_lowrank` pads ranks to."""
_TARGETS = ("v_proj", "down_proj")
"""Modules of other groups use the same kernels."""
_ROW = TokenizedRow("warm-up", [0] * 70, [IGNORED] * 35 + [0] * 35)


def compile_kernels(loop: StepLoop) -> None:
    """Passes a few tokens through adapters of every kind that kernels are compiled for; leaves nothing behind.

    Where memory doesn't suffice for the largest, trials may still be small enough: theirs are compiled when they come.
    """
    for rank in _RANKS:
        hp = Hyperparameters(lora_rank=rank, target_modules=_TARGETS, lora_dropout=0.1, epochs=1.0)
        size = adapter_bytes(parameter_count(loop.frozen.targets, hp), hp, loop.frozen.dtype.itemsize)
        try:
            loop.run_isolated(TrialFootprint(size, len(_ROW.input_ids), len(_ROW.input_ids)), partial(_pass, hp))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return


def _pass(hp: Hyperparameters, decoder: Decoder) -> None:
    frozen = decoder.frozen
    adapter = Adapter(frozen.targets, hp, 0, frozen.final_norm)
    share = BatchSlice(adapter, [_ROW], 1.0)
    for dropout in (hp.lora_dropout, 0.0):
        adapter.dropout = dropout
        decoder.train(make_batch([share], frozen.dtype, frozen.device, training=True))
        decoder.losses(make_batch([share], frozen.dtype, frozen.device, training=False))
