"""One fine-tuning run: its configuration, data, model, training, evaluation and records. Knows nothing of Ray."""
