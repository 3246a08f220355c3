"""A sampler in a process of its own, so that decisions don't wait for it, and the search's process loads no torch.

It reads pickled messages from stdin, and answers each request for configurations on stdout: a list of them, or an
exception. It ends with its parent, and when stdin ends.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any

from optuna.distributions import BaseDistribution

from orchestrator.sampling.finished_trials import FinishedTrials
from orchestrator.sampling.proposal_study import ProposalStudy
from orchestrator.sampling.samplers import make_sampler
from orchestrator.surrogate.trial_view import TrialView
from search_spaces.schema import SearchSettings

_SECONDS_TO_END = 5.0
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""Trials need the other cores, and a sampler's matrices are small."""


@dataclass(frozen=True)
class Begin:
    """First message: the sampler and its space."""

    settings: SearchSettings
    space: Mapping[str, BaseDistribution]
    seed: int


@dataclass(frozen=True)
class Request:
    """Asks for `count` configurations, for trials from `number` on, after all that has changed."""

    number: int
    count: int
    changed: Sequence[TrialView]


class SamplerProcess:
    """Asks a sampler in a process of its own, one request at a time; the process starts with the first one.

    A process that has ended is started again at the next request, and told all trials.
    """

    def __init__(self, begin: Begin) -> None:
        self._begin = begin
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._views: dict[str, TrialView] = {}
        self._changed: dict[str, TrialView] = {}

    def observe(self, view: TrialView) -> None:
        """Record a new trial, or what has changed of one; told with the next request."""
        self._views[view.trial_id] = self._changed[view.trial_id] = view

    def request(self, number: int, count: int) -> Future[list[dict[str, Any]]]:
        """Ask for configurations; the result raises what the sampler raised, or `EOFError` if its process ended."""
        is_new = self._process is None or self._process.poll() is not None
        changed = tuple((self._views if is_new else self._changed).values())
        self._changed.clear()
        return self._thread.submit(self._exchange, Request(number, count, changed))

    def close(self) -> None:
        """End the process, without waiting for a proposal."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(_SECONDS_TO_END)
        self._thread.shutdown(wait=True)
        if self._process is not None:
            for stream in (self._process.stdin, self._process.stdout):
                with suppress(OSError):
                    assert stream is not None  # both are pipes
                    stream.close()

    def _exchange(self, request: Request) -> list[dict[str, Any]]:
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, "-m", __package__, str(os.getpid())]
            environment = {**os.environ, **_ONE_THREAD}
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
            _send(self._process.stdin, self._begin)
        _send(self._process.stdin, request)
        assert self._process.stdout is not None  # a pipe
        found = pickle.load(self._process.stdout)
        if isinstance(found, Exception):
            raise found
        return list(found)


def main(stdin: IO[bytes], stdout: IO[bytes]) -> None:
    """Answer requests until stdin ends."""
    begin = pickle.load(stdin)
    study: ProposalStudy | None = None
    while True:
        try:
            request = pickle.load(stdin)
        except EOFError:
            return
        try:
            study = study or _study(begin)
            for view in request.changed:
                study.observe(view)
            _send(stdout, [study.ask(request.number + index) for index in range(request.count)])
        except Exception as error:
            _send(stdout, error if _can_be_sent(error) else RuntimeError(f"{type(error).__name__}: {error}"))


def _study(begin: Begin) -> ProposalStudy:
    return ProposalStudy(begin.space, make_sampler(begin.settings, begin.seed), FinishedTrials(begin.space))


def _can_be_sent(error: Exception) -> bool:
    try:
        return isinstance(pickle.loads(pickle.dumps(error)), type(error))
    except Exception:
        return False


def _send(stream: IO[bytes] | None, message: Any) -> None:
    assert stream is not None  # a pipe
    pickle.dump(message, stream)
    stream.flush()
