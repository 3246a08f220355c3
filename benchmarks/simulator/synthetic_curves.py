"""A landscape of made-up learning curves whose early losses mislead, with regions that diverge or don't fit.

It follows what LoRA runs show. The final loss is a bowl in the logarithm of the learning rate, which moves with the
batch. Rank, dropout and warm-up have smaller effects. A fast learning rate is ahead early and behind at the end. Above
a limit trials diverge, and the largest adapters with the largest batches don't fit into memory.
"""

from __future__ import annotations

import math
import random

from benchmarks.simulator.landscapes import Curve
from trials.config import Hyperparameters
from trials.state import TrialState

_EVALUATIONS = 36


class ModelledCurves:
    """Every configuration has a curve of its own, with a little chance in it; `seed` moves the best learning rate."""

    base_loss = 2.0

    def __init__(self, seed: int) -> None:
        lot = random.Random(seed)
        self._seed = seed
        self._best_rate = 3e-4 * 10 ** lot.uniform(-0.5, 0.5)
        self._diverges_above = self._best_rate * lot.uniform(6, 15)
        self._something_does_not_fit = lot.random() < 0.5
        self.finals: dict[str, float] = {}

    @property
    def lowest(self) -> float:
        """The final loss of the best possible configuration, without chance."""
        return 1.0

    def curve(self, trial_id: str, hyperparameters: Hyperparameters) -> Curve:
        """Return the curve of a trial; the same for every call with its id."""
        hp = hyperparameters
        final, ahead = self._final(hp), self._ahead(hp)
        tau = min(2.0, max(0.03, 0.12 * 10 ** (-0.5 * ahead)))
        lot = random.Random(f"{self._seed} {trial_id}")
        points = []
        for number in range(1, _EVALUATIONS + 1):
            fraction = number / _EVALUATIONS
            late = 0.9 * math.exp(-((fraction / tau) ** 0.7)) + 0.03 * max(ahead, 0.0) * (1 - fraction)
            points.append((fraction, final + late + lot.gauss(0, 0.002)))
        self.finals[trial_id] = points[-1][1]
        ending, at = self._ending(hp, lot)
        return Curve(points, slowness=0.8 + 0.4 * hp.lora_rank / 32, ending=ending, ends_at=at)

    def _ahead(self, hp: Hyperparameters) -> float:
        return math.log10(hp.learning_rate / self._best_rate)

    def _final(self, hp: Hyperparameters) -> float:
        off = math.log10(hp.learning_rate / self._best_rate * math.sqrt(16 / hp.effective_batch))
        rank = 0.003 * (math.log2(hp.lora_rank) - 4) ** 2
        batch = 0.015 * abs(math.log2(hp.effective_batch / 16))
        return (
            1 + 0.06 * off**2 + rank + batch + 0.2 * abs(hp.lora_dropout - 0.05) + 0.1 * abs(hp.warmup_fraction - 0.03)
        )

    def _ending(self, hp: Hyperparameters, lot: random.Random) -> tuple[TrialState, float]:
        if self._something_does_not_fit and hp.lora_rank == 32 and hp.effective_batch == 32:
            return TrialState.OUT_OF_MEMORY, 0.001
        if hp.learning_rate > self._diverges_above * math.sqrt(hp.effective_batch / 16):
            return TrialState.DIVERGED, lot.uniform(0.01, 0.2)
        return TrialState.FINISHED, 1.0
