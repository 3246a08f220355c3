"""Configurations of a search's trials: shortened, with checkpoints, and scored at the rungs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.planning.trial_length import shortened_trial
from orchestrator.state.search import Search
from trials.config import TrialConfig
from trials.schedule import full_length

MOST_PROBE_STEPS = 12
"""Optimizer steps that the speed probe trains at most, in two halves: the first is warm-up."""
_MOST_OF_A_TRIAL = 0.03
"""Share of a full trial's steps that the probe trains at most, but never fewer than two steps."""


def trial_config(search: Search, values: Mapping[str, Any], base_eval_loss: float | None) -> TrialConfig:
    """Return the configuration of a trial with these hyperparameters in place of the recipe's.

    `base_eval_loss` is the base model's eval loss in nats per token; None: not known.
    """
    config = shortened_trial(search.recipe.trial_config(values), search.shortened or 1.0)
    # A search resumes a trial from its newest checkpoint only, so one is kept unless the recipe asks for more.
    keep = config.machine.keep_checkpoints or 1
    machine = config.machine.model_copy(update={"keep_checkpoints": keep, "checkpoint_evaluations": True})
    update: dict[str, Any] = {"base_eval_loss": base_eval_loss, "machine": machine}
    if config.evaluation.score_rows is not None:
        update["score_at_tokens"] = tuple(search.rungs)
    return config.model_copy(update=update)


def probe_config(search: Search, base_eval_loss: float) -> TrialConfig:
    """Return the speed probe's configuration: the first starting point, else the recipe's own hyperparameters.

    It trains a few steps with two evaluations, and logs nothing to W&B.
    """
    recipe = search.recipe
    first = next(iter(recipe.start), None)
    config = recipe.trial_config({} if first is None else recipe.start_values(first))
    hp = config.hyperparameters
    steps = full_length(hp, search.epoch).steps if search.epoch else MOST_PROBE_STEPS
    rows = max(2, min(MOST_PROBE_STEPS, round(_MOST_OF_A_TRIAL * steps))) * hp.effective_batch
    length = {"rows_seen": rows, "epochs": None, "train_tokens": None}
    evaluation = {"evaluations": 2, "every_rows": None, "score_rows": None, "divergence_factor": 1e6}
    return config.model_copy(
        update={
            "hyperparameters": hp.model_copy(update=length),
            "evaluation": config.evaluation.model_copy(update=evaluation),
            "tracking": config.tracking.model_copy(update={"wandb": False}),
            "base_eval_loss": base_eval_loss,
        }
    )
