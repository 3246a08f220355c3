"""Goes on with a paused trial in an engine and a process of its own: python -m tests.support.resume_once TRIAL ROWS."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from tests.support.small_splits import first_rows
from trials.data.dataset import load_data
from trials.engine.engine import Engine
from trials.model.loading import load_tokenizer
from trials.records.rewind import restore_latest
from trials.records.trial_dir import TrialDir, read_trial
from trials.system.torch_setup import use_threads
from trials.training.training_run import Decision, TrainingRun


def main(folder: Path, rows: int) -> None:
    checkpoint = restore_latest(folder)
    config = read_trial(folder).config
    tokenizer = load_tokenizer(config.model)
    data = load_data(config.data, tokenizer)
    few = replace(data, train=first_rows(data.train, rows))
    use_threads(config.machine)
    engine = Engine(config.model, config.machine)
    trial = TrialDir(folder)
    engine.run(TrainingRun(config, few, tokenizer, trial, lambda _: Decision.CONTINUE, checkpoint=checkpoint))
    engine.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
