"""One fine-tuning run: its configuration, data, model, training, evaluation and records. Does not use Ray."""

from trials.system.torch_setup import collect_rarely, compile_lazily

collect_rarely()
compile_lazily()
