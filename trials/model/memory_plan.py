"""Plan of a micro-batch: how many tokens it holds, and which activations each layer saves.

Pure arithmetic on known sizes. Saving everything takes 4 FLOPs a weight and token: two forward, and two for the
gradient of the input, because the weights are frozen. Recomputing a layer adds 2. 4-bit weights are read once for every
pass over them, however many tokens pass: the fewer tokens, the higher the cost of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from trials.config import Hyperparameters
from trials.model.activation_policy import ActivationPolicy

MOST_TOKENS = 5120
"""Tokens of a micro-batch beyond which its fixed costs are small on any card (docs/engine.md)."""

CAPTURED_WEIGHTS = 2 * 10**9
"""Weights in the layers of a model up to which training passes are captured as CUDA graphs.

The host needs longer to launch the kernels of a usual step of such a model than the GPU to run them.
"""
CAPTURED_TOKENS = 16384
"""What `MOST_TOKENS` is for such a model, whose evaluations have fewer launches then."""

MOST_OF_GPU = 0.94
"""Largest share of a GPU's memory to reserve: 22.5 GiB of a 24 GB card. Driver and desktop need some too."""
KEPT_DENSE_BYTES = 2**30
"""Largest size of a base model's layers as dense matrices at which all of them are kept dense."""

_STEP = 256
_LOGITS_BYTES = 8 * 2**25
"""Bytes of a slice of logits and their gradient; see `trials.engine.model.cross_entropy`."""
_SLACK_BYTES = 300 * 2**20
"""Bytes for the allocator's rounding and libraries' workspaces."""


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of a base model that the plan depends on."""

    layers: int
    hidden: int
    intermediate: int
    queries: int
    keys: int
    """Features of keys, and of values."""
    itemsize: int
    """Bytes of a number in a matrix product."""
    is_quantized: bool

    @property
    def layer_weights(self) -> int:
        """Weights of one layer's linear modules."""
        return self.hidden * (2 * self.queries + 2 * self.keys + 3 * self.intermediate)

    @property
    def is_captured(self) -> bool:
        """Whether the engine captures training passes on a GPU; see `CAPTURED_WEIGHTS`."""
        return self.layers * self.layer_weights <= CAPTURED_WEIGHTS

    @property
    def mlp_inner_weights(self) -> int:
        """Weights of gate_proj and up_proj."""
        return 2 * self.hidden * self.intermediate

    @property
    def largest_weight(self) -> int:
        """Weights of the largest group of modules whose weights are needed at the same time."""
        return max(self.hidden * (self.queries + 2 * self.keys), self.hidden * self.intermediate)

    def kept(self, keep: ActivationPolicy) -> int:
        """Return how many numbers a layer saves for each token."""
        attention = 2 * self.queries + 2 * self.keys + self.hidden
        return (
            self.hidden
            + {
                ActivationPolicy.SAVE_ALL: attention + 2 * self.intermediate,
                ActivationPolicy.RECOMPUTE_MLP: attention,
                ActivationPolicy.RECOMPUTE_ALL: 0,
            }[keep]
        )

    @property
    def passing(self) -> int:
        """Numbers per token that exist only briefly, at their peak: inside the MLP's gradient."""
        return 2 * self.intermediate + 5 * self.hidden


@dataclass(frozen=True)
class MicroBatchPlan:
    """Size of a micro-batch and the activations that layers save."""

    tokens: int
    keep: tuple[ActivationPolicy, ...]
    """Policy of each layer."""
    dense_layers: int = 0
    """Number of layers whose quantised weights are also kept dense, in otherwise unused memory."""

    @property
    def recomputed(self) -> int:
        """Number of layers that recompute some activations."""
        return sum(each is not ActivationPolicy.SAVE_ALL for each in self.keep)


@dataclass(frozen=True)
class DeviceRates:
    """Speed of the machine."""

    flops: float
    """FLOPs per second in matrix products."""
    bytes: float
    """Bytes per second to and from memory."""


def plan(
    sizes: ModelSizes,
    rates: DeviceRates,
    other_bytes: int,
    allowed_bytes: int,
    longest_row: int,
    most_tokens: int = MOST_TOKENS,
) -> MicroBatchPlan | None:
    """Return the fastest plan that fits into `allowed_bytes`; None if not even one of the longest rows fits.

    `other_bytes` are those of the base model and the adapters with their optimizers.
    """
    most = max(longest_row, most_tokens)
    found = []
    for keep in _choices(sizes.layers):
        tokens = _tokens_that_fit(sizes, keep, allowed_bytes - other_bytes)
        rounded = tokens // _STEP * _STEP
        tokens = min(most, rounded if rounded >= longest_row else tokens)
        if tokens >= longest_row:
            found.append(_with_dense_layers(sizes, MicroBatchPlan(tokens, keep), allowed_bytes - other_bytes))
    return min(found, key=lambda one: seconds_per_token(sizes, rates, one), default=None)


def _with_dense_layers(sizes: ModelSizes, split: MicroBatchPlan, free_bytes: int) -> MicroBatchPlan:
    left = free_bytes - workspace_bytes(sizes, split.keep, split.tokens)
    dense = min(sizes.layers, left // _layer_bytes(sizes)) if sizes.is_quantized else 0
    return replace(split, dense_layers=dense)


def _layer_bytes(sizes: ModelSizes) -> int:
    return sizes.layer_weights * sizes.itemsize


def memory_bytes(sizes: ModelSizes, split: MicroBatchPlan, other_bytes: int) -> int:
    """Return the predicted memory of everything; `other_bytes` as in `plan`."""
    return other_bytes + workspace_bytes(sizes, split.keep, split.tokens) + split.dense_layers * _layer_bytes(sizes)


def adapter_bytes(parameters: int, hyperparameters: Hyperparameters, itemsize: int) -> int:
    """Return an adapter's bytes on a GPU.

    They are float32 weights and gradient, optimizer state, copies for products, and the average if one is kept.
    """
    state = 2 if "8bit" in hyperparameters.optimizer else 8
    average = 4 if hyperparameters.adapter_average else 0
    return parameters * (4 + 4 + state + 2 * itemsize + average)


def workspace_bytes(sizes: ModelSizes, keep: Sequence[ActivationPolicy], tokens: int) -> int:
    """Return the bytes of a micro-batch of so many tokens, beside base model and adapters."""
    fixed = sizes.largest_weight * sizes.itemsize + _LOGITS_BYTES + _SLACK_BYTES
    return fixed + tokens * _token_bytes(sizes, keep)


def captured_bytes(sizes: ModelSizes) -> int:
    """Return the bytes that captured passes hold: what exists only briefly in a pass has a second place there."""
    return _LOGITS_BYTES + CAPTURED_TOKENS * sizes.passing * sizes.itemsize


def seconds_per_token(sizes: ModelSizes, rates: DeviceRates, split: MicroBatchPlan) -> float:
    """Return the seconds per token at the machine's rates, without other losses; only for comparing plans."""
    again = {
        ActivationPolicy.SAVE_ALL: 0,
        ActivationPolicy.RECOMPUTE_MLP: sizes.mlp_inner_weights,
        ActivationPolicy.RECOMPUTE_ALL: sizes.layer_weights,
    }
    forward = sizes.layers * sizes.layer_weights
    recomputed = sum(again[each] for each in split.keep)
    flops = 4 * forward + 2 * recomputed
    # A matrix product reads every weight as a dense number. A 4-bit weight is unpacked first, from half a byte.
    quantized = 1 - split.dense_layers / sizes.layers if sizes.is_quantized else 0.0
    bytes_read = (2 * forward + recomputed) * (sizes.itemsize + (0.5 + sizes.itemsize) * quantized)
    return flops / rates.flops + bytes_read / rates.bytes / split.tokens


def _choices(layers: int) -> Iterator[tuple[ActivationPolicy, ...]]:
    """Yield the layers' policies from saving everything to saving inputs only, in quarters of the layers."""
    for more, less in (
        (ActivationPolicy.SAVE_ALL, ActivationPolicy.RECOMPUTE_MLP),
        (ActivationPolicy.RECOMPUTE_MLP, ActivationPolicy.RECOMPUTE_ALL),
    ):
        for quarters in (4, 3, 2, 1, 0):
            count = layers * quarters // 4
            yield (less,) * (layers - count) + (more,) * count


def _tokens_that_fit(sizes: ModelSizes, keep: Sequence[ActivationPolicy], free_bytes: int) -> int:
    return max(0, (free_bytes - workspace_bytes(sizes, keep, 0)) // _token_bytes(sizes, keep))


def _token_bytes(sizes: ModelSizes, keep: Sequence[ActivationPolicy]) -> int:
    numbers = sum(sizes.kept(each) for each in keep) + sizes.kept(ActivationPolicy.SAVE_ALL) + sizes.passing
    return numbers * sizes.itemsize
