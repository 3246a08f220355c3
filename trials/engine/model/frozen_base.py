"""Weights of the frozen base model, read directly from the model that transformers loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from trials.engine.model.kernels import gpu_ops
from trials.errors import ModelError
from trials.model.architecture import ARCHITECTURES
from trials.model.memory_plan import KEPT_DENSE_BYTES, ModelSizes

QKV = ("q_proj", "k_proj", "v_proj")
ATTENTION = (*QKV, "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


class FrozenLinear:
    """Weight matrix [out, in] of a linear module, in 4 bits or unquantised."""

    def __init__(self, name: str, linear: Any, dtype: torch.dtype) -> None:
        self.name = name
        self.shape: tuple[int, int] = (linear.out_features, linear.in_features)
        self.dtype = dtype
        self._weight: Tensor = linear.weight.data
        self._scales = getattr(linear.weight, "quant_state", None)
        self._dense: Tensor | None = self._weight.to(dtype) if self._scales is None else None
        self._kernels = gpu_ops(self._weight.device)
        self._pairs = _pair_table(self._scales, self._kernels)

    @property
    def numel(self) -> int:
        """Number of weights."""
        return self.shape[0] * self.shape[1]

    @property
    def is_quantized(self) -> bool:
        """Whether the weights are dequantised for each use."""
        return self._dense is None

    def keep_dense(self) -> None:
        """Keep the weights in the type of matrix products from now on."""
        if self._dense is None:
            self._dense = self.dense(torch.empty(self.shape, dtype=self.dtype, device=self._weight.device))

    def drop_dense(self) -> None:
        """Dequantise the weights for each use from now on, if they are in 4 bits."""
        if self._scales is not None:
            self._dense = None

    def dense(self, buffer: Tensor) -> Tensor:
        """Return the weights in the type of matrix products, in `buffer` [out, in] unless they are kept that way."""
        if self._dense is not None:
            return self._dense
        if self._kernels is not None and self._pairs is not None:
            self._kernels.dequantize(self._weight, self._pairs, self._scales, buffer)
            return buffer
        from bitsandbytes.functional import dequantize_4bit

        return buffer.copy_(dequantize_4bit(self._weight, self._scales).reshape(self.shape))


def _pair_table(scales: Any, kernels: ModuleType | None) -> Tensor | None:
    """Return the table for the engine's own kernel; None without NF4, double quantisation and a GPU."""
    if kernels is None or scales is None or not scales.nested or scales.quant_type != "nf4":
        return None
    table: Tensor = kernels.pair_table(scales.code.float())
    return table


class FrozenLayer:
    """Weights of one decoder layer."""

    def __init__(self, index: int, attention_norm: Tensor, mlp_norm: Tensor, linears: dict[str, FrozenLinear]) -> None:
        """`linears` has the linear modules by the last part of their names, such as q_proj."""
        self.index = index
        self.attention_norm = attention_norm
        self.mlp_norm = mlp_norm
        self.linears = linears
        self._qkv: Tensor | None = None

    def dense(self, names: Sequence[str], buffer: Callable[[int, int], Tensor]) -> Tensor:
        """Return the weights of one module, or those of q_proj, k_proj and v_proj stacked, in the type of products.

        `buffer` returns memory for so many rows and columns. Weights that aren't kept in that type are put there.
        """
        linears = [self.linears[name] for name in names]
        rows = [linear.shape[0] for linear in linears]
        if len(linears) == 1:
            return linears[0].dense(buffer(*linears[0].shape))
        if self._qkv is not None:
            return self._qkv
        whole = buffer(sum(rows), linears[0].shape[1])
        for linear, part in zip(linears, torch.split(whole, rows), strict=True):
            dense = linear.dense(part)
            if dense is not part:
                part.copy_(dense)
        return whole

    def keep_dense(self) -> None:
        """Keep the weights in the type of matrix products from now on, with q_proj, k_proj and v_proj stacked."""
        if self._qkv is not None:
            return
        like = self.attention_norm
        self._qkv = self.dense(QKV, like.new_empty)
        for name in set(self.linears) - set(QKV):
            self.linears[name].keep_dense()

    def drop_dense(self) -> None:
        """Dequantise the weights for each use from now on, if they are in 4 bits."""
        self._qkv = None
        for linear in self.linears.values():
            linear.drop_dense()


@dataclass(frozen=True)
class FrozenDecoder:
    """Frozen base model: its layers, final norm and head."""

    model: Any
    layers: Sequence[FrozenLayer]
    final_norm: Tensor
    head: Tensor
    """[vocabulary, hidden]"""
    eps: float
    heads: int
    key_heads: int
    head_size: int
    dtype: torch.dtype
    """Type of matrix products."""

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.final_norm.device

    @property
    def hidden(self) -> int:
        """Features of a token between layers."""
        return int(self.final_norm.shape[0])

    @property
    def intermediate(self) -> int:
        """Features of a token inside an MLP."""
        return self.layers[0].linears["gate_proj"].shape[0]

    @property
    def targets(self) -> list[tuple[str, int, int]]:
        """Every linear layer that can carry an adapter, in PEFT's order: name, in, out."""
        return [(m.name, m.shape[1], m.shape[0]) for layer in self.layers for m in layer.linears.values()]

    @property
    def sizes(self) -> ModelSizes:
        """Sizes by which micro-batches are planned."""
        return ModelSizes(
            layers=len(self.layers),
            hidden=self.hidden,
            intermediate=self.intermediate,
            queries=self.heads * self.head_size,
            keys=self.key_heads * self.head_size,
            itemsize=self.dtype.itemsize,
            is_quantized=self.layers[0].linears["o_proj"].is_quantized,
        )

    def embed(self, input_ids: Tensor) -> Tensor:
        """Return the embeddings [tokens, hidden] of `input_ids` [tokens]."""
        embedded: Tensor = self.model.get_input_embeddings()(input_ids)
        return embedded.to(self.dtype)

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cosines and sines [tokens, head_size] of rotary position embedding."""
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        cos, sin = self.model.get_decoder().rotary_emb(like, positions[None])
        return cos[0].contiguous(), sin[0].contiguous()


def freeze(model: Any, dtype: torch.dtype) -> FrozenDecoder:
    """Read the weights of a model of transformers. Raises `ModelError` if the engine doesn't know its layers."""
    config = model.config
    _refuse_unknown(model)
    decoder = model.get_decoder()
    layers = [_layer(index, layer, dtype) for index, layer in enumerate(decoder.layers)]
    frozen = FrozenDecoder(
        model=model,
        layers=layers,
        final_norm=decoder.norm.weight.data.to(dtype),
        head=model.get_output_embeddings().weight.data.to(dtype),
        eps=config.rms_norm_eps,
        heads=config.num_attention_heads,
        key_heads=config.num_key_value_heads,
        head_size=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        dtype=dtype,
    )
    linears = [linear for layer in layers for linear in layer.linears.values()]
    if sum(linear.numel for linear in linears) * dtype.itemsize <= KEPT_DENSE_BYTES:
        for layer in layers:
            layer.keep_dense()
    return frozen


def _layer(index: int, layer: Any, dtype: torch.dtype) -> FrozenLayer:
    prefix = f"model.layers.{index}"
    attention = {
        name: FrozenLinear(f"{prefix}.self_attn.{name}", getattr(layer.self_attn, name), dtype) for name in ATTENTION
    }
    mlp = {name: FrozenLinear(f"{prefix}.mlp.{name}", getattr(layer.mlp, name), dtype) for name in MLP}
    return FrozenLayer(
        index,
        layer.input_layernorm.weight.data.to(dtype),
        layer.post_attention_layernorm.weight.data.to(dtype),
        attention | mlp,
    )


def _refuse_unknown(model: Any) -> None:
    config = model.config
    has_bias = any(
        getattr(module, "bias", None) is not None for module in model.modules() if hasattr(module, "in_features")
    )
    if config.model_type not in ARCHITECTURES or config.hidden_act != "silu" or has_bias:
        raise ModelError(
            f"the engine doesn't know the layers of a {config.model_type} with activation {config.hidden_act}"
            f"{' and biases' if has_bias else ''}. Allowed: {', '.join(ARCHITECTURES)}. Set engine=trl."
        )
