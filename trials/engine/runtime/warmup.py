"""Compilation of the GPU kernels before any trial needs them, once per machine: Triton keeps them in its cache."""

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
"""One LoRA rank for each size that `trials.engine.lora.triton_lora.group_table` pads ranks to."""
_TARGETS = ("v_proj", "down_proj")
"""Modules to adapt; those of other groups use the same kernels."""
_ROW = TokenizedRow("warm-up", [0] * 70, [IGNORED] * 35 + [0] * 35)


def compile_kernels(loop: StepLoop) -> None:
    """Pass a few tokens through adapters of every kind that kernels are compiled for, and free everything again.

    If memory runs out, the rest is left out. Smaller trials may still fit; their kernels are compiled when they start.
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
