"""What others see of a backend that gets on, and of one that hangs."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch.nn.modules.module import _global_forward_pre_hooks
from transformers import PreTrainedTokenizerBase

from tests.support.trained_trials import Workshop
from trials.data.dataset import TrialData
from trials.data.tokenization import TokenizedRow
from trials.engine.engine import Engine
from trials.records.trial_dir import EvalPoint, Origin, TrialDir
from trials.training.heartbeat import Heartbeat
from trials.training.training_run import Decision, TrainingRun, TrialBackend
from trials.trl.backend import TrlBackend


def test_who_has_been_silent_longest_counts_and_who_rests_does_not() -> None:
    heartbeat = Heartbeat()
    assert heartbeat.seconds_since_progress() is None
    with ThreadPoolExecutor() as other, heartbeat.working():
        time.sleep(1.0)
        other.submit(heartbeat.beat).result()
        assert 1.0 <= (heartbeat.seconds_since_progress() or 0) < 5
        with heartbeat.resting():
            assert (heartbeat.seconds_since_progress() or 0) < 1.0
            other.submit(heartbeat.stop).result()
            assert heartbeat.seconds_since_progress() is None
        assert (heartbeat.seconds_since_progress() or 0) < 1.0
    assert heartbeat.seconds_since_progress() is None
    with heartbeat.resting():
        pass
    assert heartbeat.seconds_since_progress() is None


def test_a_thread_at_work_lets_others_beat_for_it_until_it_rests() -> None:
    heartbeat = Heartbeat()
    with heartbeat.working() as beat, ThreadPoolExecutor() as other:
        time.sleep(1.0)
        other.submit(beat).result()
        assert (heartbeat.seconds_since_progress() or 9) < 1.0
        with heartbeat.resting():
            other.submit(beat).result()
            assert heartbeat.seconds_since_progress() is None
    beat()
    assert heartbeat.seconds_since_progress() is None


def test_under_trl_any_module_s_forward_pass_in_any_thread_is_a_heartbeat(
    workshop: Workshop, small_data: TrialData, tokenizer: PreTrainedTokenizerBase
) -> None:
    backend, module = TrlBackend(), torch.nn.Linear(1, 1)
    folder = TrialDir(workshop.path / "beats")
    run = TrainingRun(workshop.config(), small_data, tokenizer, folder, lambda _: Decision.CONTINUE)
    with backend._watched(run), ThreadPoolExecutor() as autograd:
        time.sleep(1.0)
        assert (backend.seconds_since_progress() or 0) >= 1.0
        autograd.submit(module, torch.ones(1)).result()
        assert (backend.seconds_since_progress() or 9) < 1.0
    assert backend.seconds_since_progress() is None
    assert not _global_forward_pre_hooks


def _eventually(is_so: Callable[[], bool]) -> bool:
    until = time.monotonic() + 30
    while not (found := is_so()) and time.monotonic() < until:
        time.sleep(0.02)
    return found


@pytest.mark.parametrize("by_engine", [True, False], ids=["engine", "trl"])
def test_a_trial_that_waits_for_a_word_does_not_hang(workshop: Workshop, engine: Engine, by_engine: bool) -> None:
    backend: TrialBackend = engine if by_engine else TrlBackend()
    assert backend.seconds_since_progress() is None
    while_asked: list[float | None] = []

    def think(_: EvalPoint) -> Decision:
        # The engine's own thread may have answered and not yet sat down.
        assert _eventually(lambda: backend.seconds_since_progress() is None)
        while_asked.append(backend.seconds_since_progress())
        return Decision.CONTINUE

    workshop.run("trial", workshop.config(), 18, think, by=backend)
    assert while_asked == [None] * 6
    assert _eventually(lambda: backend.seconds_since_progress() is None)


class _Blocked:
    """Rows of which one is never read."""

    def __init__(self, rows: Any, allowed: threading.Event) -> None:
        self._rows, self._allowed, self._reads = rows, allowed, 0

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        self._reads += 1
        if self._reads == 10:
            self._allowed.wait(60)
        return self._rows[index]


def test_a_loader_that_hangs_is_seen(
    workshop: Workshop, engine: Engine, small_data: TrialData, tokenizer: PreTrainedTokenizerBase
) -> None:
    allowed = threading.Event()
    train = copy.copy(small_data.train)
    train.rows = cast(Sequence[TokenizedRow], _Blocked(train.rows, allowed))
    config, folder = workshop.config(), TrialDir(workshop.path / "hangs")
    folder.begin(config, Origin.PROPOSED, "hangs")
    with ThreadPoolExecutor() as pool:
        data = replace(small_data, train=train)
        ended = pool.submit(engine.run, TrainingRun(config, data, tokenizer, folder, lambda _: Decision.CONTINUE))
        assert _eventually(lambda: (engine.seconds_since_progress() or 0) > 1.5)
        allowed.set()
        assert ended.result(60) is not None
    assert _eventually(lambda: engine.seconds_since_progress() is None)
