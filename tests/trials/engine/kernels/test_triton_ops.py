"""The element-wise kernels against the same operations in plain torch. See `tests.support.triton`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.support.triton import DEVICE, GPU, IS_NOWHERE, WHY_NOT, mended_interpreter
from trials.engine.kernels import torch_ops

if IS_NOWHERE:
    pytest.skip(WHY_NOT, allow_module_level=True)

from trials.engine.kernels import triton_ops

__all__ = ["mended_interpreter"]

TOKENS, HIDDEN, INNER = (333, 4096, 14336) if GPU else (11, 96, 224)
ONE_ROUNDING = {torch.bfloat16: 2**-7, torch.float32: 1e-5}


# The interpreter multiplies bfloat16's bits where they aren't a product's.
@pytest.fixture(params=[torch.bfloat16, torch.float32] if GPU else [torch.float32])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, device=DEVICE, dtype=dtype)


def close(found: Tensor, expected: Tensor) -> bool:
    tolerance = ONE_ROUNDING[expected.dtype]
    return bool(torch.all((found - expected).abs() <= tolerance * expected.abs().clamp(min=1)))


def test_rms_norm_and_its_gradient(dtype: torch.dtype) -> None:
    x, weight, dy = (
        random(TOKENS, HIDDEN, dtype=dtype),
        random(HIDDEN, dtype=dtype),
        random(TOKENS, HIDDEN, dtype=dtype),
    )
    y, rstd = triton_ops.rms_norm(x, weight, 1e-5)
    expected, expected_rstd = torch_ops.rms_norm(x, weight, 1e-5)
    assert close(y, expected)
    torch.testing.assert_close(rstd, expected_rstd)
    assert torch.equal(triton_ops.normed(x, weight, rstd), y)
    residual, added, expected_added = random(TOKENS, HIDDEN, dtype=dtype), x.clone(), x.clone()
    assert close(
        triton_ops.rms_norm(added, weight, 1e-5, residual)[0],
        torch_ops.rms_norm(expected_added, weight, 1e-5, residual)[0],
    )
    assert torch.equal(added, expected_added)
    dx = random(TOKENS, HIDDEN, dtype=dtype)
    expected_dx = dx.clone()
    triton_ops.rms_norm_backward(dy, x, weight, rstd, dx)
    torch_ops.rms_norm_backward(dy, x, weight, rstd, expected_dx)
    # The kernel rounds once, the plain operations twice.
    assert float((dx - expected_dx).abs().max()) <= 8 * ONE_ROUNDING[dtype]


@pytest.mark.parametrize("inverse", [False, True])
def test_rotation_in_place_and_elsewhere(dtype: torch.dtype, inverse: bool) -> None:
    qkv = random(TOKENS, 48, 128, dtype=dtype)
    angles = torch.rand(TOKENS, 128, device=DEVICE) * 7
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    expected = qkv.clone()
    torch_ops.rotate(expected[:, :40], cos, sin, expected[:, :40], inverse=inverse)
    out = torch.empty_like(qkv)
    triton_ops.rotate(qkv[:, :40].contiguous(), cos, sin, out[:, :40], inverse=inverse)
    triton_ops.rotate(qkv[:, :40], cos, sin, qkv[:, :40], inverse=inverse)
    assert torch.equal(out[:, :40], qkv[:, :40])
    assert float((qkv - expected).abs().max()) <= 8 * ONE_ROUNDING[dtype]
    assert torch.equal(qkv[:, 40:], expected[:, 40:])


@pytest.mark.parametrize("restores", [False, True])
def test_swiglu_and_its_gradient(dtype: torch.dtype, restores: bool) -> None:
    gate, up, dh = (random(TOKENS, INNER, dtype=dtype) for _ in range(3))
    h, before = triton_ops.swiglu(gate, up), dh.clone()
    assert close(h, torch_ops.swiglu(gate, up))
    expected_gate, expected_up = gate.clone(), up.clone()
    torch_ops.swiglu_backward(dh.clone(), expected_gate, expected_up, restores=restores)
    triton_ops.swiglu_backward(dh, gate, up, restores=restores)
    assert torch.equal(dh, h if restores else before)
    assert close(gate, expected_gate)
    assert close(up, expected_up)


@pytest.mark.parametrize("shape", [(1024, 4096), (96, 64), (33, 64)])
def test_dequantised_weights_are_those_of_bitsandbytes_bit_for_bit(shape: tuple[int, int]) -> None:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, scales = quantize_4bit(random(*shape), quant_type="nf4", compress_statistics=True, blocksize=64)
    assert scales.nested
    out = torch.full(shape, torch.nan, dtype=torch.bfloat16, device=DEVICE)
    triton_ops.dequantize(packed, triton_ops.pair_table(scales.code.float()), scales, out)
    assert torch.equal(out, dequantize_4bit(packed, scales))
