"""Limits of the hardware: measured rates of this machine, and the shortest possible time of a LoRA step.

Arithmetic: a token passes every frozen weight twice, forward and as the gradient of the input, at 2 FLOPs each. The
low-rank parts, the vocabulary projection and recomputation are left out. Attention's own products are counted apart.
Memory: both passes read the 4-bit weights, write them dequantised and read that again. Every kernel without
dequantisation inside the matrix product must do that. Every linear layer reads its input and writes its output.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.engine.workload import Size

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight: 4 bits, an 8-bit scale for 64 weights, a 32-bit scale for 256 scales.

See arXiv 2305.14314, section 3.
"""
BF16_BYTES = 2
MICRO_STEP_TOKENS = 4096


@dataclass(frozen=True)
class Rates:
    """Rates of a machine: matrix products in FLOP/s, copying in bytes/s (read and written ones both counted)."""

    name: str
    burst_flops: float
    sustained_flops: float
    copy_bytes: float


RTX_4090 = Rates("RTX 4090 (data sheet)", 165e12, 165e12, 1.0e12)


@dataclass(frozen=True)
class Floors:
    """Tokens per second that a machine can't exceed, by the limiting resource."""

    arithmetic: float
    arithmetic_sustained: float
    with_attention: float
    with_attention_long: float
    bandwidth: float


def flops_per_token(size: Size) -> int:
    """Return the FLOPs a token of the frozen linear layers, forward and backward, without recomputation."""
    return 4 * size.frozen_weights


def attention_flops_per_token(size: Size, lengths: Sequence[int]) -> float:
    """Return the FLOPs a token of causal attention, forward (2 matrix products) and backward (4), on average.

    The average is over the tokens of these rows. A token attends to half its row on average, and a row of n tokens has
    n of them. So the mean over tokens of the row's length is the sum of squares over the sum.
    """
    mean_row = sum(length * length for length in lengths) / sum(lengths)
    return 6 * size.layers * 2 * size.hidden * mean_row / 2


def bytes_per_micro_step(size: Size, tokens: int) -> float:
    """Return the bytes through device memory, without attention, norms and the vocabulary projection."""
    weights = 2 * size.frozen_weights * (NF4_BYTES + 2 * BF16_BYTES)
    activations = 2 * BF16_BYTES * size.layers * sum(inputs + outputs for inputs, outputs in size.linears)
    return weights + tokens * activations


def floors(rates: Rates, size: Size, short: Sequence[int], long: Sequence[int]) -> Floors:
    """Return the floors of a machine on rows of these lengths (tokens); bandwidth is for 4,096 tokens a micro-step."""
    linear = flops_per_token(size)
    return Floors(
        arithmetic=rates.burst_flops / linear,
        arithmetic_sustained=rates.sustained_flops / linear,
        with_attention=rates.burst_flops / (linear + attention_flops_per_token(size, short)),
        with_attention_long=rates.burst_flops / (linear + attention_flops_per_token(size, long)),
        bandwidth=rates.copy_bytes * MICRO_STEP_TOKENS / bytes_per_micro_step(size, MICRO_STEP_TOKENS),
    )


def measure_rates(device: str, side: int, copied: int, seconds: float = 2.0) -> Rates:
    """Measure bf16 products of two square matrices of `side`, and a copy of `copied` bytes.

    Burst: ten products in a row on a rested device; sustained: over `seconds`, when clocks have settled.
    """
    import torch

    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    flops = 2 * side**3
    burst = flops / _seconds_each(lambda: left @ right, device, 0.0)
    sustained = flops / _seconds_each(lambda: left @ right, device, seconds)
    source = torch.randint(0, 256, (copied,), device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    copy = 2 * copied / _seconds_each(lambda: target.copy_(source), device, 0.0)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    return Rates(name, burst, sustained, copy)


def _seconds_each(work: Callable[[], object], device: str, seconds: float) -> float:
    """Return the seconds of one call of `work`, over ten calls or `seconds`, whichever is longer."""
    for _ in range(3):
        work()
    synchronize(device)
    started, done = time.perf_counter(), 0
    while done == 0 or time.perf_counter() - started < seconds:
        for _ in range(10):
            work()
        synchronize(device)
        done += 10
    return (time.perf_counter() - started) / done


def synchronize(device: str) -> None:
    """Wait until the device has done all its work."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
