"""One fine-tuning run: its configuration, data, model, training, evaluation and records. Knows nothing of Ray."""

from trials.system.torch_setup import compile_lazily

compile_lazily()
