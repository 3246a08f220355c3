"""What a segment of training is worth."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr

from orchestrator.scheduling.encoding import Array


def expected_improvement(best: float, mean: Array, deviation: Array) -> Array:
    """The expected improvement on `best` by values with these means and deviations (Jones, Schonlau, Welch 1998)."""
    deviation = np.maximum(deviation, 1e-9)
    z = (best - mean) / deviation
    return np.asarray(deviation * (z * ndtr(z) + np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)))
