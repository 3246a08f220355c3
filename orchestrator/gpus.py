"""The GPUs of this machine by their names, and what such a one can do: all that's known before anything has run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trials.engine.planning import Rates

DRIVER = Path("/proc/driver/nvidia/gpus")
"""Where NVIDIA's driver has a folder for each GPU."""


@dataclass(frozen=True)
class Gpu:
    """A model of GPU: memory in GiB, and what it does a second as its maker says (bfloat16, without sparsity)."""

    memory_gib: float
    rates: Rates


# The first name that stands in the driver's wins.
_KNOWN = {
    "H200": Gpu(139.8, Rates(989e12, 4.8e12)),
    "H100 PCIe": Gpu(79.6, Rates(756e12, 2.0e12)),
    "H100": Gpu(79.2, Rates(989e12, 3.35e12)),
    "A100-SXM4-80GB": Gpu(79.2, Rates(312e12, 2.0e12)),
    "A100 80GB": Gpu(79.2, Rates(312e12, 1.9e12)),
    "A100": Gpu(39.4, Rates(312e12, 1.55e12)),
    "L40S": Gpu(44.5, Rates(362e12, 0.86e12)),
    "RTX 6000 Ada": Gpu(47.5, Rates(364e12, 0.96e12)),
    "RTX A6000": Gpu(47.5, Rates(155e12, 0.77e12)),
    "RTX A5000": Gpu(23.7, Rates(111e12, 0.77e12)),
    "A10G": Gpu(22.0, Rates(70e12, 0.6e12)),
    "A10": Gpu(22.0, Rates(125e12, 0.6e12)),
    "L4": Gpu(22.0, Rates(121e12, 0.3e12)),
    "RTX 5090": Gpu(31.4, Rates(209e12, 1.79e12)),
    "RTX 4090": Gpu(23.6, Rates(165e12, 1.0e12)),
    "RTX 4080": Gpu(15.7, Rates(97e12, 0.72e12)),
    "RTX 3090": Gpu(23.6, Rates(71e12, 0.94e12)),
}


def gpu_names() -> list[str]:
    """What the NVIDIA driver calls this machine's GPUs, without loading torch; none where there's no driver."""
    names = []
    for file in sorted(DRIVER.glob("*/information")):
        models = [
            line.partition(":")[2].strip()
            for line in file.read_text(encoding="utf-8").splitlines()
            if line.startswith("Model:")
        ]
        names += models[:1] or ["unknown"]
    return names


def known_gpu(name: str) -> Gpu | None:
    """What a GPU of this name can do; None for one that isn't in the table."""
    return next((gpu for part, gpu in _KNOWN.items() if part in name), None)
