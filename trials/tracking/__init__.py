"""Metrics of trials for Weights & Biases and TensorBoard; nothing here can fail a trial."""
