"""Recognition of errors that mean that memory ran out."""

from __future__ import annotations

import torch

_SAY_SO = (
    "can't allocate memory",  # torch, on a CPU
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "Triton Error [CUDA]: out of memory",
    # cuBLAS allocates its handle when a process first computes a matrix product.
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
)
"""Texts of plain RuntimeErrors: on a CPU, or about GPU memory that is taken outside torch's allocator."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, on a GPU or on a CPU."""
    return isinstance(error, torch.OutOfMemoryError) or any(part in str(error) for part in _SAY_SO)
