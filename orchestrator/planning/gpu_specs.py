"""Device rates from NVIDIA's datasheets, by the name that the driver reports; used before speed is measured."""

from __future__ import annotations

from trials.model.memory_plan import DeviceRates

_BRANDS = ("NVIDIA ", "Tesla ", "GeForce ")
# FLOP/s (bfloat16 with float32 accumulation, without sparsity) and memory bytes/s, from NVIDIA's datasheets.
_RATES = {
    "H200": DeviceRates(989e12, 4.8e12),
    "H200 NVL": DeviceRates(835e12, 4.8e12),
    "H100 80GB HBM3": DeviceRates(989e12, 3.35e12),
    "H100 NVL": DeviceRates(835e12, 3.9e12),
    "H100 PCIe": DeviceRates(756e12, 2.0e12),
    "GH200 480GB": DeviceRates(989e12, 4.0e12),
    "A100-SXM4-80GB": DeviceRates(312e12, 2.0e12),
    "A100 80GB PCIe": DeviceRates(312e12, 1.9e12),
    "A100-SXM4-40GB": DeviceRates(312e12, 1.55e12),
    "A100-PCIE-40GB": DeviceRates(312e12, 1.55e12),
    "A40": DeviceRates(150e12, 0.7e12),
    "A30": DeviceRates(165e12, 0.93e12),
    "A10": DeviceRates(125e12, 0.6e12),
    "A10G": DeviceRates(70e12, 0.6e12),
    "L40S": DeviceRates(362e12, 0.86e12),
    "L40": DeviceRates(181e12, 0.86e12),
    "L4": DeviceRates(121e12, 0.3e12),
    "RTX 6000 Ada Generation": DeviceRates(364e12, 0.96e12),
    "RTX A6000": DeviceRates(155e12, 0.77e12),
    "RTX A5000": DeviceRates(111e12, 0.77e12),
    "RTX 5090": DeviceRates(209e12, 1.79e12),
    "RTX 4090": DeviceRates(165e12, 1.0e12),
    "RTX 4090 Laptop GPU": DeviceRates(86e12, 0.58e12),
    "RTX 4080": DeviceRates(97e12, 0.72e12),
    "RTX 3090": DeviceRates(71e12, 0.94e12),
}


def known_rates(name: str) -> DeviceRates | None:
    """Return the rates of the GPU with this name; None if the table lacks it.

    The whole name must match, without the brand: an L40 is not an L4, and a laptop GPU is not the desktop card.
    """
    for brand in _BRANDS:
        name = name.removeprefix(brand)
    return _RATES.get(name)
