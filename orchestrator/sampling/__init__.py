"""Proposes new configurations: our sampler and Optuna's, each behind a study in memory. No Ray, disk or clock."""
