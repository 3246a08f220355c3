"""A search's policy with its sampler, as the controller has them: what to decide, and what to try."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from orchestrator.sampling.candidates import Proposer
from orchestrator.sampling.distributions import distributions
from orchestrator.scheduling.policy import SearchPolicy
from orchestrator.scheduling.types import BudgetState
from orchestrator.surrogate.model import Surrogate
from search_spaces.schema import Dimension, SearchSettings


class PolicyWithProposer(SearchPolicy):
    """The freeze-thaw policy, and the proposer on the same surrogate."""

    def __init__(
        self,
        space: Mapping[str, Dimension],
        settings: SearchSettings | None = None,
        only: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        settings = settings or SearchSettings()
        self.surrogate = Surrogate(distributions(space), only)
        super().__init__(self.surrogate, settings)
        self._proposer = Proposer(self.surrogate, np.random.default_rng(settings.seed))

    def propose(self, seed: int) -> dict[str, Any]:
        return self._proposer.propose(seed)

    def refit(self, budget: BudgetState) -> None:
        super().refit(budget)
        self._proposer.prepare()
