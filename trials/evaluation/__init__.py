"""Evaluation of a model on rows: loss, answers, comparison, verification of an export."""
