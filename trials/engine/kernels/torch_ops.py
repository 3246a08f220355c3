"""Element-wise operations of the engine in plain torch, the reference for the GPU kernels of `triton_ops`.

Tokens are packed end to end: tensors are [tokens, features] unless said otherwise. The formulas and their rounding are
those of Llama and Mistral in transformers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu

from trials.model.dropout import fmix32


def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the RMSNorm of every token, and its reciprocal root mean square [tokens] in float32 or wider.

    A `residual` is first added to `x` in place.
    """
    if residual is not None:
        x.add_(residual)
    wide = x.to(_wide(x))
    rstd = torch.rsqrt(wide.pow(2).mean(-1) + eps)
    return normed(x, weight, rstd), rstd


def normed(x: Tensor, weight: Tensor, rstd: Tensor) -> Tensor:
    """Return the RMSNorm again, from the known reciprocal root mean square `rstd` [tokens]."""
    return (x.to(rstd.dtype) * rstd[:, None]).to(x.dtype) * weight


def rms_norm_backward(dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, dx: Tensor) -> None:
    """Add the gradient through the norm to `dx`, which holds the gradient of `x` through other paths."""
    scaled = dy.to(rstd.dtype) * weight.to(rstd.dtype)
    hat = x.to(rstd.dtype) * rstd[:, None]
    mean = (scaled * hat).mean(-1, keepdim=True)
    dx.add_(((scaled - hat * mean) * rstd[:, None]).to(dx.dtype))


def rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, *, inverse: bool = False) -> None:
    """Write the rotary embedding of `x` [tokens, heads, size] to `out`; if `inverse`, its gradient instead.

    `cos` and `sin` are [tokens, size]. `out` may be `x`.
    """
    half = x.shape[-1] // 2
    first, second = x[..., :half].clone(), x[..., half:].clone()
    cos_first, cos_second = cos[:, None, :half], cos[:, None, half:]
    sin_first, sin_second = sin[:, None, :half], sin[:, None, half:]
    if inverse:
        out[..., :half] = first * cos_first + second * sin_second
        out[..., half:] = second * cos_second - first * sin_first
    else:
        out[..., :half] = first * cos_first - second * sin_first
        out[..., half:] = second * cos_second + first * sin_second


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) * up."""
    return silu(gate) * up


def swiglu_backward(dh: Tensor, gate: Tensor, up: Tensor, *, restores: bool) -> None:
    """Overwrite `gate` and `up` with their gradients; if `restores`, overwrite `dh` with the result of `swiglu`."""
    wide_gate, wide_up, wide_dh = (tensor.to(_wide(gate)) for tensor in (gate, up, dh))
    sigmoid = torch.sigmoid(wide_gate)
    active = wide_gate * sigmoid
    h = swiglu(gate, up) if restores else None
    gate.copy_(wide_dh * wide_up * (active * (1 - sigmoid) + sigmoid))
    up.copy_(wide_dh * active)
    if h is not None:
        dh.copy_(h)


def noise(token_keys: Tensor, feature_keys: Tensor, thresholds: Tensor, scales: Tensor) -> Tensor:
    """Return the factors [tokens, features] of dropout as in `trials.model.dropout`, at each token's own rate.

    Hashes below a token's threshold are dropped. All but `feature_keys` [features] are [tokens]; `scales` is in float32
    or wider.
    """
    kept = fmix32(token_keys[:, None] ^ feature_keys) >= thresholds[:, None]
    return torch.where(kept, scales[:, None], 0)


def drop(x: Tensor, factors: Tensor) -> Tensor:
    """Return `x` with dropout by the `factors` of `noise`."""
    return (x * factors).to(x.dtype)


def add_dropped(total: Tensor, x: Tensor, factors: Tensor, scale: float) -> None:
    """Add `scale` times the result of `drop` to `total`."""
    total.add_(drop(x, factors), alpha=scale)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
