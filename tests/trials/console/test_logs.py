"""What trials say is kept: by trial where they share a process, and also of a process that was killed."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
from pathlib import Path

from tests.support.cli import ROOT
from trials.console.logs import LOG_FILE, redirect_output, trial_log

WRITER = """
import os, signal, sys
from pathlib import Path
from trials.cli import quiet_libraries
from trials.console.logs import redirect_output
quiet_libraries()
redirect_output(Path(sys.argv[1]))
import logging
logging.getLogger("trials.x").info("a log line")
os.write(1, b"from C\\n")
os.system("echo from a child >&2")
print("printed", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def lines(folder: Path) -> list[str]:
    return [line.split(" ", 1)[1] for line in (folder / LOG_FILE).read_text().splitlines()]


def test_each_trial_of_a_process_has_its_own_lines(tmp_path: Path) -> None:
    logger, both_are_in = logging.getLogger("trials.engine.somewhere"), threading.Barrier(2)
    logger.setLevel(logging.INFO)

    def run(name: str) -> None:
        (tmp_path / name).mkdir()
        with trial_log(tmp_path / name):
            both_are_in.wait()
            logger.info("of %s", name)
            both_are_in.wait()

    threads = [threading.Thread(target=run, args=(name,)) for name in ("0001", "0002")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [lines(tmp_path / name) for name in ("0001", "0002")] == [["INFO of 0001"], ["INFO of 0002"]]


def test_a_trial_that_goes_on_adds_to_its_log_and_what_comes_after_it_does_not(tmp_path: Path) -> None:
    logger = logging.getLogger("trials.engine.somewhere")
    for segment in (1, 2):
        with trial_log(tmp_path):
            logger.warning("stretch %d", segment)
        logger.warning("of nobody")
    assert lines(tmp_path) == ["WARNING stretch 1", "WARNING stretch 2"]


def test_a_log_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    with trial_log(tmp_path / "gone"):
        logging.getLogger("trials.engine.somewhere").warning("to nowhere")
    (tmp_path / "file").touch()
    redirect_output(tmp_path / "file" / "engine-0.log")


def test_all_that_a_process_writes_is_kept_though_it_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "engine-0.log"
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", WRITER, str(log)], cwd=ROOT, capture_output=True, check=False)
        assert done.returncode == -signal.SIGKILL
        assert (done.stdout, done.stderr) == (b"", b"")
    said = log.read_text().splitlines()
    assert said[1:4] == ["from C", "from a child", "printed"] == said[5:]
    assert said[0].endswith("Z INFO a log line")
