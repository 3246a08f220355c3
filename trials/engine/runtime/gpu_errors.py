"""Telling an error after which nothing can be relied on that this process does on its GPU."""

from __future__ import annotations

from trials.system.oom import is_out_of_memory

_SAYS_GPU = ("CUDA error", "CUDA driver error", "Triton Error [CUDA]", "cuDNN error")
"""How the driver's and the libraries' errors come through torch and Triton, as plain `RuntimeError`s."""


def is_fatal_gpu_error(error: BaseException) -> bool:
    """Whether a kernel failed, or the GPU is lost, and not for want of memory.

    Who got the error says little: kernels run behind their launch. What else is in the GPU's memory may be spoilt too.
    """
    says_gpu = isinstance(error, RuntimeError) and any(mark in str(error) for mark in _SAYS_GPU)
    return says_gpu and not is_out_of_memory(error)
