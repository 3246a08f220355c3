"""A trial in a process of its own whose data really hangs, and one that only waits for its search."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support.cli import run_command
from trials.records.trial_dir import read_trial

pytestmark = pytest.mark.slow

# TRL's trainer reads its ninth micro-batch, and that hangs.
HANGING = """
import itertools, sys, time
from pathlib import Path
from datasets import Dataset
from orchestrator.execution.watchdog import ending_if_hung
from search_spaces.loader import load_recipe
from tests.conftest import SMALL
from trials.data.dataset import load_data
from trials.model.loading import load_tokenizer
from trials.records.trial_dir import Origin, TrialDir
from trials.training.training_run import Decision, TrainingRun
from trials.system.torch_setup import use_threads
from trials.trl.backend import TrlBackend

recipe = load_recipe("demo", [*SMALL, "train_tokens=100000", "evaluations=90"], environ={{}}).recipe
config, tokenizer = recipe.trial_config({{}}), load_tokenizer(recipe.model)
folder = TrialDir(Path({folder!r}))
folder.begin(config, Origin.SINGLE, "hangs")
use_threads(config.machine)
data = load_data(recipe.data, tokenizer)
read, whole = itertools.count(), Dataset.__getitems__

def hangs(self, keys):
    if next(read) > 8:
        time.sleep(600)
    return whole(self, keys)

Dataset.__getitems__ = hangs  # what the trainer's data loader reads by
with ending_if_hung({limit}) as watchdog:
    def on_eval(point):
        with watchdog.resting():
            time.sleep({thinks})
        return Decision.STOP if {thinks} else Decision.CONTINUE
    TrlBackend().run(TrainingRun(config, data, tokenizer, folder, on_eval))
print("it was stopped")
"""


def hanging(folder: Path, limit: float, thinks: float) -> list[str]:
    return [sys.executable, "-c", HANGING.format(folder=str(folder), limit=limit, thinks=thinks)]


def test_a_process_whose_data_hangs_ends_and_says_where(tmp_path: Path) -> None:
    found = run_command(hanging(tmp_path / "trial", limit=10, thinks=0), timeout=200)
    assert found.returncode == 1, found.stdout + found.stderr
    assert "no progress in 10 s (machine.step_limit_seconds): this process ends" in found.stderr
    assert "in hangs" in found.stderr
    left = read_trial(tmp_path / "trial")
    assert left.points
    assert left.ending is None


def test_waiting_for_the_search_is_not_hanging(tmp_path: Path) -> None:
    found = run_command(hanging(tmp_path / "trial", limit=8, thinks=12), timeout=200)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "it was stopped" in found.stdout


def test_the_hook_is_gone_with_the_block() -> None:
    script = (
        "import torch; from torch.nn.modules import module\n"
        "from orchestrator.execution.watchdog import ending_if_hung\n"
        "with ending_if_hung(60): assert len(module._global_forward_pre_hooks) == 1\n"
        "assert not module._global_forward_pre_hooks"
    )
    found = run_command([sys.executable, "-c", script])
    assert found.returncode == 0, found.stderr
