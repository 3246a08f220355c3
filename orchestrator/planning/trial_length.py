"""How long a full trial is in this search, and configurations that are as long: pure arithmetic on measured speed."""

from __future__ import annotations

from trials.config import EvaluationSettings, Hyperparameters, TrialConfig

_LONGEST_SHARE = 0.5
"""Of the search for one full trial: what was learned from the first must still have time for another."""


def shortened_length(
    full_tokens: int, seconds_per_token: float, seconds_left: float, slots: int, full_trials: float | None
) -> int:
    """Return the tokens of a full trial in this search: `full_tokens`, or fewer.

    Fewer are what `full_trials` such trials can each have in the time that is left; None: never fewer.
    `seconds_per_token` are one trial's in its slot, evaluations included.
    """
    if full_trials is None:
        return full_tokens
    share = min(slots / full_trials, _LONGEST_SHARE)
    return max(1, min(full_tokens, int(share * max(0.0, seconds_left) / seconds_per_token)))


def shortened(hyperparameters: Hyperparameters, factor: float) -> Hyperparameters:
    """The same with a full trial that is `factor` (above 0, at most 1) times as long."""
    hp = hyperparameters
    return hp.model_copy(
        update={
            "epochs": None if hp.epochs is None else hp.epochs * factor,
            "train_tokens": None if hp.train_tokens is None else max(1, round(hp.train_tokens * factor)),
            "rows_seen": None if hp.rows_seen is None else max(1, round(hp.rows_seen * factor)),
        }
    )


def shortened_evaluation(settings: EvaluationSettings, factor: float) -> EvaluationSettings:
    """As many evaluations in a shortened trial as in a whole one: rows between them shrink as the trial does."""
    if settings.every_rows is None:
        return settings
    return settings.model_copy(update={"every_rows": max(1, round(settings.every_rows * factor))})


def shortened_trial(config: TrialConfig, factor: float) -> TrialConfig:
    """A trial's configuration `factor` times as long, evaluated as often."""
    if factor == 1.0:
        return config
    changes = {
        "hyperparameters": shortened(config.hyperparameters, factor),
        "evaluation": shortened_evaluation(config.evaluation, factor),
    }
    return config.model_copy(update=changes)


def length_in_words(full_tokens: int, shortened_tokens: int, epoch_tokens: int) -> str:
    """How long a full trial is in this search, against what the recipe asks for and in passes over the data."""
    epochs = f"{shortened_tokens / epoch_tokens:.3g} of the training data"
    if shortened_tokens >= full_tokens:
        return f"{full_tokens:,} tokens, {epochs}"
    share = shortened_tokens / full_tokens
    return (
        f"{shortened_tokens:,} tokens in this search, {epochs}: {share:.3g} of the {full_tokens:,} that the recipe "
        "asks for, so "
        "that enough of them fit"
    )
