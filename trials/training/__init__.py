"""Training code that both backends share: the evaluation loop, early stopping, outcome, order of rows, averages."""
