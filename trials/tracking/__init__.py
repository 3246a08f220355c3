"""Figures on their way to Weights & Biases and TensorBoard; nothing here can fail a trial."""
