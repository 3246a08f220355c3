"""Estimate of the GPU memory that a configuration takes, from the base model's config alone.

No weights are loaded, and no GPU is queried. For the engine these are the formulas that it plans with
(`trials.model.memory_plan`, `trials.engine.memory.manager`), measured in docs/engine.md. For TRL's trainer they are an
estimate: by default whole layers recomputed, one row at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

from trials.config import TrialConfig
from trials.model.activation_policy import ActivationPolicy
from trials.model.architecture import ARCHITECTURES, ModelShape
from trials.model.memory_plan import KEPT_DENSE_BYTES, MOST_OF_GPU, ModelSizes, adapter_bytes, workspace_bytes

_NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight: half a byte, one for the scale of 64, and four for 256 such scales (arXiv 2305.14314)."""
_TRL_MICRO_STEP = 2.0
"""Memory of a micro-batch in transformers' layers over that in the engine's.

transformers' layers write nothing in place, and keep inputs in float32.
"""


@dataclass(frozen=True)
class MemoryEstimate:
    """GPU memory of one trial alone, in bytes."""

    base_bytes: int
    """The frozen base model; in the engine also dense copies of its weights, if they are small."""
    adapter_bytes: int
    """Weights, gradient, optimizer state, copies for matrix products, and the average if one is kept."""
    micro_step_bytes: int
    """Working memory of one micro-batch: activations, one layer's dense weights, logits, libraries' workspaces."""

    @property
    def total_bytes(self) -> int:
        """Bytes of the whole trial."""
        return self.base_bytes + self.adapter_bytes + self.micro_step_bytes

    @property
    def gib(self) -> float:
        """GiB of the whole trial."""
        return self.total_bytes / 2**30


def estimate_memory(
    config: TrialConfig,
    base: ModelShape,
    longest_row: int,
    *,
    itemsize: int = 2,
    in_engine: bool = True,
    is_recomputed: bool = True,
) -> MemoryEstimate | None:
    """Estimate the least GPU memory of a trial; None if the base model's layers aren't Llama's or Mistral's.

    `longest_row` is in tokens, of training and evaluation. `itemsize` is the bytes of a number in a matrix product: 2
    on a GPU. `in_engine`: the engine trains the trial (`trials.engine.support.unsupported_reason` is None, and
    `machine.engine` is not trl). `is_recomputed`: layers save only their inputs, and recompute all else. TRL may begin
    without recomputation and with more rows, and then takes more.
    """
    if base.model_type not in ARCHITECTURES:
        return None
    sizes = sizes_of(base, itemsize, is_quantized=config.model.quantization == "nf4")
    keep = ActivationPolicy.RECOMPUTE_ALL if is_recomputed else ActivationPolicy.SAVE_ALL
    need = workspace_bytes(sizes, (keep,) * sizes.layers, longest_row)
    factor = 1.0 if in_engine else _TRL_MICRO_STEP
    frozen_bytes = base_bytes(base, sizes) + (_kept_dense_bytes(sizes) if in_engine else 0)
    return MemoryEstimate(frozen_bytes, _adapter_bytes(config, sizes, base), int(need * factor))


def sizes_of(base: ModelShape, itemsize: int, *, is_quantized: bool) -> ModelSizes:
    """Return the sizes of a base model that planning needs; `itemsize` as in `estimate_memory`."""
    return ModelSizes(
        layers=base.num_hidden_layers,
        hidden=base.hidden_size,
        intermediate=base.intermediate_size,
        queries=base.num_attention_heads * base.head_size,
        keys=base.num_key_value_heads * base.head_size,
        itemsize=itemsize,
        is_quantized=is_quantized,
    )


def base_bytes(base: ModelShape, sizes: ModelSizes) -> int:
    """Return the base model's bytes in memory: quantised layers in 4 bits, embeddings and head never quantised."""
    per_weight = _NF4_BYTES if sizes.is_quantized else sizes.itemsize
    vocabulary = base.vocab_size * base.hidden_size * (1 if base.tie_word_embeddings else 2)
    return int(sizes.layers * sizes.layer_weights * per_weight) + vocabulary * sizes.itemsize


def _kept_dense_bytes(sizes: ModelSizes) -> int:
    dense = sizes.layers * sizes.layer_weights * sizes.itemsize
    return dense if sizes.is_quantized and dense <= KEPT_DENSE_BYTES else 0


def allowed_gib(gpu_gib: float) -> float:
    """Return the GiB that a trial may reserve on a GPU, if the recipe doesn't set `machine.gpu_memory_gib`."""
    return gpu_gib * MOST_OF_GPU


def linear_shapes(sizes: ModelSizes, vocabulary: int) -> dict[str, tuple[int, int, int]]:
    """Return inputs, outputs and number of the linear layers of each name."""
    hidden, mlp, layers = sizes.hidden, sizes.intermediate, sizes.layers
    return {
        "q_proj": (hidden, sizes.queries, layers),
        "k_proj": (hidden, sizes.keys, layers),
        "v_proj": (hidden, sizes.keys, layers),
        "o_proj": (sizes.queries, hidden, layers),
        "gate_proj": (hidden, mlp, layers),
        "up_proj": (hidden, mlp, layers),
        "down_proj": (mlp, hidden, layers),
        "lm_head": (hidden, vocabulary, 1),
    }


def _adapter_bytes(config: TrialConfig, sizes: ModelSizes, base: ModelShape) -> int:
    hp = config.hyperparameters
    shapes = linear_shapes(sizes, base.vocab_size)
    chosen = [shapes[name] for name in set(hp.target_modules) if name in shapes]
    parameters = sum((wide + tall) * hp.lora_rank * count for wide, tall, count in chosen)
    return adapter_bytes(parameters, hp, sizes.itemsize)
