"""The stock rival: a Ray Tune search with Optuna's TPE, ASHA and TRL trials, as a careful user writes it today."""
