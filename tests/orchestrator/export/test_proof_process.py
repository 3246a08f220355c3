"""The process that proves an export ends with the command that waits for it, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from orchestrator.export.verification import said_by
from tests.support.cli import ROOT, environment
from trials.system.processes import is_alive

PARENT = """
import os, subprocess, sys
proof = subprocess.Popen([sys.executable, "-m", "orchestrator.export.proof_process", str(os.getpid()), *sys.argv[1:]])
print(proof.pid, flush=True)
proof.wait()
"""
WAITS = "import os, sys, time; open(sys.argv[1], 'w').write(f'{os.getpid()}\\n'); time.sleep(600)"


def until_gone(pid: int) -> None:
    ends = time.monotonic() + 60
    while is_alive(pid):
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_it_ends_with_a_command_that_is_killed(tmp_path: Path) -> None:
    job = tmp_path / "job.json"
    os.mkfifo(job)
    command = [sys.executable, "-c", PARENT, str(job), str(tmp_path / "result.json")]
    with subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        proof = int(parent.stdout.readline())
        writing = job.open("w")  # opens as soon as the proof reads its job, which doesn't end
        parent.kill()
        until_gone(proof)
        writing.close()


def test_it_ends_with_a_command_that_is_interrupted(tmp_path: Path) -> None:
    started = tmp_path / "pid"

    def interrupt() -> None:
        while not (started.exists() and started.read_text().endswith("\n")):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        said_by([sys.executable, "-c", WAITS, str(started)], None)
    until_gone(int(started.read_text()))
