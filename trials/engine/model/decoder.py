"""Forward and backward pass of a frozen Llama or Mistral decoder with the low-rank parts of several adapters.

The passes are written out by hand, because the weights are frozen. The backward pass needs few activations of a layer.
They are saved in memory that is allocated once, and gradients overwrite them there. `ActivationPolicy` says which
activations of a layer are saved: all, all but those of the MLP, or only its input. The rest is recomputed (arXiv
1604.06174).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trials.engine.kernels.padded_attention import Attention
from trials.engine.lora.multi_lora import MakeProducts, MultiLora, multi_lora
from trials.engine.model.activations import ActivationBuffers, LayerMemory
from trials.engine.model.cross_entropy import token_losses, token_losses_and_gradient
from trials.engine.model.frozen_base import QKV, FrozenDecoder, FrozenLayer
from trials.engine.model.kernels import kernels_for
from trials.engine.model.packed_batch import PackedBatch
from trials.model.activation_policy import ActivationPolicy

OUT = ("o_proj",)
GATE_UP = ("gate_proj", "up_proj")
DOWN = ("down_proj",)


@dataclass
class _PassState:
    """State that all layers share in one micro-batch."""

    batch: PackedBatch
    attention: Attention
    cos: Tensor
    sin: Tensor
    low_rank: MultiLora
    low_rank_of_learned: MultiLora
    """Adapters for learned tokens only."""
    training: bool


@dataclass
class _LayerState:
    """State of one layer from its forward to its backward pass; its memory is views of `ActivationBuffers`."""

    memory: LayerMemory
    after: LayerMemory
    """Memory for what comes after attention: `memory`, or in the last layer its first rows, one per learned token."""
    low_rank: MultiLora
    """Adapters for what comes after attention."""
    learned: Tensor | None
    """Indices of the learned tokens, in the last layer: only they matter after its attention. None: all tokens do."""
    attention_rstd: Tensor | None = None
    mlp_rstd: Tensor | None = None
    attention: Any = None
    """Result of `Attention.forward` for `Attention.backward`."""
    inner: dict[tuple[str, ...], Tensor | None] = field(default_factory=dict)
    """Inner products of the low-rank parts, by group of modules; saved under every policy, because they are small."""

    def narrowed(self, x: Tensor) -> Tensor:
        """Return the rows of `x` [tokens, features] that matter after attention."""
        return x if self.learned is None else x[self.learned]

    def widened(self, x: Tensor) -> Tensor:
        """Undo `narrowed`, for gradients; return [tokens, features] with zeros for the tokens that don't matter."""
        if self.learned is None:
            return x
        return x.new_zeros(len(self.memory.x), x.shape[1]).index_copy_(0, self.learned, x)


class Decoder:
    """Frozen base model and the activation memory that it runs in."""

    def __init__(self, frozen: FrozenDecoder, buffers: ActivationBuffers) -> None:
        self.frozen = frozen
        self.buffers = buffers
        """Replaced between micro-batches, when memory is divided anew."""
        self.kernels = kernels_for(frozen.device)
        self._ops = self.kernels.ops
        self._counts = [frozen.heads, frozen.key_heads, frozen.key_heads]

    @torch.no_grad()
    def losses(self, batch: PackedBatch) -> Tensor:
        """Return the summed loss in nats of each row's learned tokens [rows], in float32 or wider; no gradients."""
        shared = self._shared(batch, training=False)
        scratch = self.buffers.scratch(len(batch.input_ids))
        held = [self._held(index, scratch, shared) for index in range(len(self.frozen.layers))]
        states = self._forward(self._embed(batch), [scratch.x] * len(held), held, shared)
        hidden, _ = self._ops.rms_norm(states, self.frozen.final_norm, self.frozen.eps)
        return _row_sums(token_losses(hidden, self.frozen.head, batch.targets), batch)

    @torch.no_grad()
    def train(
        self, batch: PackedBatch, attention: Attention | None = None, products: MakeProducts | None = None
    ) -> Tensor:
        """Return what `losses` does, and add the gradients of the weighted losses to those of the batch's adapters.

        `attention` is that over the batch's rows, `products` makes the low-rank products; None: they are made for this
        batch only.
        """
        shared = self._shared(batch, training=True, attention=attention, products=products)
        layers = range(len(self.frozen.layers))
        held = [self._held(index, self.buffers.layer(index, len(batch.input_ids)), shared) for index in layers]
        states = self._forward(self._embed(batch), [each.memory.x for each in held], held, shared)
        losses, dx = self._head(states, batch)
        for layer, kept in zip(reversed(self.frozen.layers), reversed(held), strict=True):
            self._restore(layer, kept, shared)
            self._mlp_backward(layer, dx, kept)
            dx = self._attention_backward(layer, dx, kept, shared)
        return _row_sums(losses, batch)

    def _held(self, index: int, memory: LayerMemory, shared: _PassState) -> _LayerState:
        if index < len(self.frozen.layers) - 1:
            return _LayerState(memory, memory, shared.low_rank, None)
        learned = shared.batch.learned
        return _LayerState(memory, memory.view(len(learned)), shared.low_rank_of_learned, learned)

    def _forward(
        self, embedded: Tensor, inputs: Sequence[Tensor], held: Sequence[_LayerState], shared: _PassState
    ) -> Tensor:
        """Run all layers, storing the input of each in `inputs`; return the last layer's output [learned, hidden]."""
        last = embedded.new_empty(len(shared.batch.learned), embedded.shape[1])
        inputs[0].copy_(embedded)
        residual = None
        for layer, kept, x, out in zip(self.frozen.layers, held, inputs, [*inputs[1:], last], strict=True):
            self._attention_forward(layer, x, residual, kept, shared)
            self._project_out(layer, kept)
            h = self._mlp_inside(layer, kept.narrowed(x), kept)
            torch.mm(h, self._dense(layer, DOWN).T, out=out)
            kept.inner[DOWN] = kept.low_rank.add(DOWN, layer.index, h, (out,))
            residual = kept.after.middle
        return last if residual is None else last.add_(residual)

    def _shared(
        self,
        batch: PackedBatch,
        *,
        training: bool,
        attention: Attention | None = None,
        products: MakeProducts | None = None,
    ) -> _PassState:
        cos, sin = self.frozen.rotary(batch.positions)
        groups = (QKV, OUT, GATE_UP, DOWN)
        dtype = self.frozen.dtype if training else torch.promote_types(self.frozen.dtype, torch.float32)
        of_all = multi_lora(batch.segments, batch.dropout, groups, dtype, products or self.kernels.products)
        of_learned = of_all.narrowed(batch.learned, batch.learned_segments)
        attention = attention or self.kernels.attention(batch.lengths, None)
        return _PassState(batch, attention, cos, sin, of_all, of_learned, training)

    def _embed(self, batch: PackedBatch) -> Tensor:
        return self.frozen.embed(batch.input_ids)

    def _head(self, states: Tensor, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """Return the losses of learned tokens, and the gradient of the last layer's output [learned, hidden]."""
        hidden, rstd = self._ops.rms_norm(states, self.frozen.final_norm, self.frozen.eps)
        losses, dhidden = token_losses_and_gradient(hidden, self.frozen.head, batch.targets, batch.weights)
        dstates = torch.zeros_like(states)
        self._ops.rms_norm_backward(dhidden, states, self.frozen.final_norm, rstd, dstates)
        return losses, dstates

    def _attention_forward(
        self, layer: FrozenLayer, x: Tensor, residual: Tensor | None, held: _LayerState, shared: _PassState
    ) -> None:
        """Add `residual` to `x` in place, and compute up to `memory.attended`."""
        memory = held.memory
        y, held.attention_rstd = self._ops.rms_norm(x, layer.attention_norm, self.frozen.eps, residual)
        torch.mm(y, self._dense(layer, QKV).T, out=memory.qkv)
        held.inner[QKV] = shared.low_rank.add(QKV, layer.index, y, self._split(memory.qkv))
        rotated = self._rotated(memory.qkv)
        self._ops.rotate(rotated, shared.cos, shared.sin, rotated)
        out = memory.attended.view(-1, self.frozen.heads, self.frozen.head_size)
        held.attention = shared.attention.forward(*self._heads(memory.qkv), out, training=shared.training)

    def _project_out(self, layer: FrozenLayer, held: _LayerState) -> None:
        """Apply o_proj, into `after.middle`; the layer's input is added to that later."""
        attended, middle = held.narrowed(held.memory.attended), held.after.middle
        torch.mm(attended, self._dense(layer, OUT).T, out=middle)
        held.inner[OUT] = held.low_rank.add(OUT, layer.index, attended, (middle,))

    def _mlp_inside(self, layer: FrozenLayer, residual: Tensor | None, held: _LayerState) -> Tensor:
        """Add `residual` to `after.middle` in place, and return the input of down_proj."""
        after = held.after
        y, held.mlp_rstd = self._ops.rms_norm(after.middle, layer.mlp_norm, self.frozen.eps, residual)
        for name, out in zip(GATE_UP, (after.gate, after.up), strict=True):
            torch.mm(y, self._dense(layer, (name,)).T, out=out)
        held.inner[GATE_UP] = held.low_rank.add(GATE_UP, layer.index, y, (after.gate, after.up))
        h: Tensor = self._ops.swiglu(after.gate, after.up)
        return h

    def _restore(self, layer: FrozenLayer, held: _LayerState, shared: _PassState) -> None:
        """Recompute the activations that weren't saved."""
        if held.memory.keep is ActivationPolicy.RECOMPUTE_ALL:
            self._attention_forward(layer, held.memory.x, None, held, shared)
            self._project_out(layer, held)
            self._mlp_inside(layer, held.narrowed(held.memory.x), held)
        elif held.memory.keep is ActivationPolicy.RECOMPUTE_MLP:
            self._mlp_inside(layer, None, held)

    def _mlp_backward(self, layer: FrozenLayer, dx: Tensor, held: _LayerState) -> None:
        """Turn `dx`, the gradient of the layer's output, in place into that of the residual stream before the MLP."""
        after, low_rank = held.after, held.low_rank
        assert held.mlp_rstd is not None
        dh = dx @ self._dense(layer, DOWN)
        dinner = low_rank.add_input_gradient(DOWN, layer.index, (dx,), dh)
        self._ops.swiglu_backward(dh, after.gate, after.up, restores=dinner is not None)
        if dinner is not None:
            low_rank.add_weight_gradients(DOWN, layer.index, dh, held.inner[DOWN], dinner, (dx,))
        del dh
        dy = after.gate @ self._dense(layer, ("gate_proj",))
        dy.addmm_(after.up, self._dense(layer, ("up_proj",)))
        gradients = (after.gate, after.up)
        if (dinner := low_rank.add_input_gradient(GATE_UP, layer.index, gradients, dy)) is not None:
            y = self._ops.normed(after.middle, layer.mlp_norm, held.mlp_rstd)
            low_rank.add_weight_gradients(GATE_UP, layer.index, y, held.inner[GATE_UP], dinner, gradients)
        self._ops.rms_norm_backward(dy, after.middle, layer.mlp_norm, held.mlp_rstd, dx)

    def _attention_backward(self, layer: FrozenLayer, dx: Tensor, held: _LayerState, shared: _PassState) -> Tensor:
        """Return the gradient of the layer's input; `dx` is that of the residual stream between attention and MLP."""
        memory = held.memory
        assert held.attention_rstd is not None
        dout = dx @ self._dense(layer, OUT)
        if (dinner := held.low_rank.add_input_gradient(OUT, layer.index, (dx,), dout)) is not None:
            attended = held.narrowed(memory.attended)
            held.low_rank.add_weight_gradients(OUT, layer.index, attended, held.inner[OUT], dinner, (dx,))
        self._attend_backward(held.widened(dout), held, shared)
        dx = held.widened(dx)
        dy = memory.qkv @ self._dense(layer, QKV)
        gradients = self._split(memory.qkv)
        if (dinner := shared.low_rank.add_input_gradient(QKV, layer.index, gradients, dy)) is not None:
            y = self._ops.normed(memory.x, layer.attention_norm, held.attention_rstd)
            shared.low_rank.add_weight_gradients(QKV, layer.index, y, held.inner[QKV], dinner, gradients)
        self._ops.rms_norm_backward(dy, memory.x, layer.attention_norm, held.attention_rstd, dx)
        return dx

    def _attend_backward(self, dout: Tensor, held: _LayerState, shared: _PassState) -> None:
        """Overwrite queries, keys and values with their gradients."""
        memory, heads = held.memory, (-1, self.frozen.heads, self.frozen.head_size)
        q, k, v = self._heads(memory.qkv)
        out = memory.attended.view(heads)
        dq = shared.attention.backward(dout.view(heads), q, k, v, out, held.attention)
        self._ops.rotate(dq, shared.cos, shared.sin, q, inverse=True)
        self._ops.rotate(k, shared.cos, shared.sin, k, inverse=True)

    def _split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return views [tokens, features] of queries, keys and values."""
        q, k, v = torch.split(qkv, [count * self.frozen.head_size for count in self._counts], 1)
        return q, k, v

    def _heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return views [tokens, heads, size] of queries, keys and values."""
        q, k, v = torch.split(qkv.view(len(qkv), -1, self.frozen.head_size), self._counts, 1)
        return q, k, v

    def _rotated(self, qkv: Tensor) -> Tensor:
        """Return a view [tokens, heads, size] of queries and keys, the features that rotary embedding applies to."""
        return qkv.view(len(qkv), -1, self.frozen.head_size)[:, : self.frozen.heads + self.frozen.key_heads]

    def _dense(self, layer: FrozenLayer, names: Sequence[str]) -> Tensor:
        """Return the modules' weights [all their outputs, in], valid until the next call."""
        return layer.dense(names, self.buffers.weight)


def _row_sums(losses: Tensor, batch: PackedBatch) -> Tensor:
    return torch.zeros(batch.row_count, dtype=losses.dtype, device=losses.device).index_add_(0, batch.row_of, losses)
