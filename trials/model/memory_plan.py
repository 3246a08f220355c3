"""How a micro-step is cut out: how many tokens it holds, and how much of each layer is kept for the gradient.

Pure arithmetic on sizes that are known beforehand. Keeping everything needs 4 FLOPs a weight and token (two forward,
two for the gradient of the input: the weights are frozen); computing a layer again adds 2. Weights are read from 4 bits
once for every pass over them, however many tokens pass: the fewer tokens, the more that costs each of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from trials.config import Hyperparameters
from trials.model.activation_policy import ActivationPolicy

MOST_TOKENS = 5120
"""Beyond this a micro-step's fixed costs are small on any card (docs/engine.md)."""

MOST_OF_GPU = 0.94
"""Share of a GPU's memory that is reserved at most: 22.5 GiB of a 24 GB card. A driver and a desktop want some too."""
KEPT_DENSE_BYTES = 2**30
"""Of a base model's layers, as matrix products take them: where they're no larger they are all kept so."""

_STEP = 256
_LOGITS_BYTES = 8 * 2**25
"""Of a slice of logits and their gradient; see `losses`."""
_SLACK_BYTES = 300 * 2**20
"""What the allocator rounds up, and libraries' workspaces."""


@dataclass(frozen=True)
class ModelSizes:
    """What the arithmetic needs to know of a base model."""

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
        """Of one layer's linear modules."""
        return self.hidden * (2 * self.queries + 2 * self.keys + 3 * self.intermediate)

    @property
    def mlp_inner_weights(self) -> int:
        """Of gate and up."""
        return 2 * self.hidden * self.intermediate

    @property
    def largest_weight(self) -> int:
        """Of the modules whose weights are needed at the same time."""
        return max(self.hidden * (self.queries + 2 * self.keys), self.hidden * self.intermediate)

    def kept(self, keep: ActivationPolicy) -> int:
        """Numbers that a layer keeps of a token."""
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
        """Numbers of a token that exist for a moment only, at the worst one: inside the MLP's gradient."""
        return 2 * self.intermediate + 5 * self.hidden


@dataclass(frozen=True)
class MicroBatchPlan:
    """The split of a micro-step."""

    tokens: int
    keep: tuple[ActivationPolicy, ...]
    """One a layer."""
    dense_layers: int = 0
    """Whose weights are kept as matrix products take them, in memory that nothing else wants."""

    @property
    def recomputed(self) -> int:
        """Layers of which something is computed again."""
        return sum(each is not ActivationPolicy.SAVE_ALL for each in self.keep)


@dataclass(frozen=True)
class DeviceRates:
    """What the machine does a second."""

    flops: float
    """In matrix products."""
    bytes: float
    """To and from memory."""


def plan(
    sizes: ModelSizes,
    rates: DeviceRates,
    other_bytes: int,
    allowed_bytes: int,
    longest_row: int,
    most_tokens: int = MOST_TOKENS,
) -> MicroBatchPlan | None:
    """The fastest split that fits into `allowed_bytes`; None if not even one row of the longest does.

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
    """Predicted for everything; `other_bytes` as in `plan`."""
    return other_bytes + workspace_bytes(sizes, split.keep, split.tokens) + split.dense_layers * _layer_bytes(sizes)


def adapter_bytes(parameters: int, hyperparameters: Hyperparameters, itemsize: int) -> int:
    """Memory of an adapter on a GPU: weights and gradient in float32, optimizer state, and copies for products."""
    state = 2 if "8bit" in hyperparameters.optimizer else 8
    return parameters * (4 + 4 + state + 2 * itemsize)


def workspace_bytes(sizes: ModelSizes, keep: Sequence[ActivationPolicy], tokens: int) -> int:
    """Memory of micro-steps of so many tokens, beside base model and adapters."""
    fixed = sizes.largest_weight * sizes.itemsize + _LOGITS_BYTES + _SLACK_BYTES
    return fixed + tokens * _token_bytes(sizes, keep)


def seconds_per_token(sizes: ModelSizes, rates: DeviceRates, split: MicroBatchPlan) -> float:
    """At the machine's rates, with nothing lost in between: good for comparing splits."""
    again = {
        ActivationPolicy.SAVE_ALL: 0,
        ActivationPolicy.RECOMPUTE_MLP: sizes.mlp_inner_weights,
        ActivationPolicy.RECOMPUTE_ALL: sizes.layer_weights,
    }
    forward = sizes.layers * sizes.layer_weights
    recomputed = sum(again[each] for each in split.keep)
    flops = 4 * forward + 2 * recomputed
    # A matrix product reads every weight as a number; of 4 bits that is made first, from half a byte.
    quantized = 1 - split.dense_layers / sizes.layers if sizes.is_quantized else 0.0
    bytes_read = (2 * forward + recomputed) * (sizes.itemsize + (0.5 + sizes.itemsize) * quantized)
    return flops / rates.flops + bytes_read / rates.bytes / split.tokens


def _choices(layers: int) -> Iterator[tuple[ActivationPolicy, ...]]:
    """From keeping everything to keeping inputs only, in quarters of the layers."""
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
