"""Length of a full trial, shortened so that enough trials fit into the budget. Pure arithmetic on measured speed."""

from __future__ import annotations

from trials.config import EvaluationSettings, Hyperparameters, TrialConfig

_MOST_TIMES = 9.0
"""Time kept for final trials at most, in trials as long as the recipe says."""
_LONGEST_SHARE = 0.5
"""Largest share of the time left that one full trial may take. Its result must still be of use to another trial."""
_LEAST_TRAINING_SHARE = 1 / 3


def shortened_length(
    full_tokens: int,
    seconds_per_token: float,
    seconds_left: float,
    slots: int,
    full_trials: float | None,
    evaluation_seconds: float = 0.0,
) -> int:
    """Return the tokens of a full trial in this search: `full_tokens`, or fewer.

    The length is reduced until `full_trials` such trials fit into `seconds_left` on all `slots` together. Besides, one
    trial takes at most half of `seconds_left`. `full_trials` None: never reduced. `seconds_per_token` is the speed of
    one trial in its slot. `evaluation_seconds` are those of all its evaluations, which a shorter trial has as many of;
    where they would leave less than a third of its time for training, it has that third and takes longer.
    """
    if full_trials is None:
        return full_tokens
    seconds = min(slots / full_trials, _LONGEST_SHARE) * max(0.0, seconds_left)
    training = max(seconds - evaluation_seconds, _LEAST_TRAINING_SHARE * seconds)
    return max(1, min(full_tokens, int(training / seconds_per_token)))


def final_seconds(share: float, full_tokens: int, seconds_per_token: float, seconds_left: float) -> float:
    """Return the seconds that are kept for final trials: `share` of the time left, or as many as are of use.

    `seconds_per_token` is the speed of a final trial, `full_tokens` the length that the recipe asks for.
    """
    return min(share * max(0.0, seconds_left), _MOST_TIMES * full_tokens * seconds_per_token)


def shortened(hyperparameters: Hyperparameters, factor: float) -> Hyperparameters:
    """Return the hyperparameters with the length of a full trial multiplied by `factor`, which is above 0."""
    hp = hyperparameters
    return hp.model_copy(
        update={
            "epochs": None if hp.epochs is None else hp.epochs * factor,
            "train_tokens": None if hp.train_tokens is None else max(1, round(hp.train_tokens * factor)),
            "rows_seen": None if hp.rows_seen is None else max(1, round(hp.rows_seen * factor)),
        }
    )


def shortened_evaluation(settings: EvaluationSettings, factor: float) -> EvaluationSettings:
    """Return the settings with `every_rows` multiplied by `factor`, so that the number of evaluations stays."""
    if settings.every_rows is None:
        return settings
    return settings.model_copy(update={"every_rows": max(1, round(settings.every_rows * factor))})


def shortened_trial(config: TrialConfig, factor: float) -> TrialConfig:
    """Return the configuration of a trial `factor` times as long, with as many evaluations."""
    if factor == 1.0:
        return config
    changes = {
        "hyperparameters": shortened(config.hyperparameters, factor),
        "evaluation": shortened_evaluation(config.evaluation, factor),
    }
    return config.model_copy(update=changes)


def length_in_words(full_tokens: int, shortened_tokens: int, epoch_tokens: int) -> str:
    """Describe the length of a full trial: in tokens, in epochs, and as a share of what the recipe asks for."""
    epochs = f"{shortened_tokens / epoch_tokens:.3g} of the training data"
    if shortened_tokens >= full_tokens:
        return f"{full_tokens:,} tokens, {epochs}"
    share = shortened_tokens / full_tokens
    return (
        f"{shortened_tokens:,} tokens in this search, {epochs}: {share:.3g} of the {full_tokens:,} that the recipe "
        "asks for, so "
        "that enough of them fit"
    )
