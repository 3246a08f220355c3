"""scripts/submit against a real Ray on this machine: its dashboard, its jobs, its token."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.cluster import submit as submit_search
from orchestrator.cluster.submit import entrypoint
from tests.support.cli import ROOT

pytestmark = pytest.mark.cluster

SECONDS = 180.0
RAY = """
import ray, sys
from ray.cluster_utils import Cluster
# Other tests have a Ray on this machine too, and the first one has the port at which Ray's agents take jobs.
ports = {"dashboard_port": None, "dashboard_agent_listen_port": 0}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": True, **ports})
context = ray.init(cluster.address, log_to_driver=False)
print(f"http://{context.dashboard_url}", flush=True)
sys.stdin.read()
ray.shutdown()
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Ray with token, whose home has the project as machines of a cluster do."""
    home = tmp_path_factory.mktemp("home")
    folder = home / "qlora-orchestrator"
    folder.mkdir()
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/python").write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} "$@"\n')
    (folder / ".venv/bin/python").chmod(0o755)
    environment = pytest.MonkeyPatch()
    for name, value in {"HOME": str(home), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a-token-of-this-test"}.items():
        environment.setenv(name, value)
    # In a process of its own: Ray reads a token once in a process.
    process = subprocess.Popen([sys.executable, "-c", RAY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    yield next(line for line in lines if line.startswith("http://")).strip()
    process.communicate(timeout=SECONDS)  # it ends with its input
    environment.undo()


def submit(dashboard: str, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cluster.submit", "--address", dashboard, *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_what_is_refused_comes_with_its_one_message_and_its_exit_code(dashboard: str) -> None:
    search = submit(dashboard, "demo", "--set", "search.bugdet=9h")
    said, _ = search.communicate(timeout=SECONDS)
    assert search.returncode == 2, said
    job, message = said.strip().splitlines()
    assert job.startswith("job raysubmit_")
    assert message == "error: --set: unknown key 'search.bugdet'; the nearest known one is 'search.budget'."


def test_ctrl_c_leaves_a_search_running_which_can_be_followed_and_stopped(dashboard: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    search = submit(dashboard, "demo", "--out", str(run), "--budget", "1h", "--set", "data.eval_rows=8")
    assert search.stdout is not None
    job = search.stdout.readline().split()[1]
    assert any(f"run folder {run}" in line for line in iter(search.stdout.readline, ""))
    search.send_signal(signal.SIGINT)
    said, _ = search.communicate(timeout=SECONDS)
    assert search.returncode == 130
    assert f"scripts/submit --follow {job}" in said
    following = submit(dashboard, "--follow", job)
    stopping = submit(dashboard, "--stop", job)
    assert stopping.wait(SECONDS) == 0
    said, _ = following.communicate(timeout=SECONDS)
    assert f"run folder {run}" in said  # from its beginning
    assert following.returncode == 130


BAD_START = """
import sys
from ray.job_submission import JobSubmissionClient
from orchestrator.cluster.submit import follow, submit_job

class BadStart(JobSubmissionClient):
    # Nobody takes its job at first, and its first connection to the log is closed before anything came.
    asked = tails = 0

    def submit_job(self, **job):
        self.asked += 1
        if self.asked == 1:
            raise RuntimeError("Request failed with status code 500: No available agent to submit job, try again")
        return super().submit_job(**job)

    async def tail_job_logs(self, job_id):
        self.tails += 1
        if self.tails > 1:
            async for text in super().tail_job_logs(job_id):
                yield text

client = BadStart(sys.argv[1])
sys.exit(follow(client, submit_job(client, "echo first; sleep 1; echo last; exit 3")))
"""


def test_a_cluster_that_is_just_starting_takes_a_job_whose_last_words_are_printed_once(dashboard: str) -> None:
    command = [sys.executable, "-c", BAD_START, dashboard]
    environ = {**os.environ, "RAY_API_SERVER_ADDRESS": dashboard}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 3, done.stderr
    assert done.stdout.splitlines() == ["first", "last"]


def test_another_token_is_refused(dashboard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a-token-of-somebody-else")
    search = submit(dashboard, "demo")
    said, _ = search.communicate(timeout=SECONDS)
    assert (search.returncode, said.count("\n")) == (2, 1)
    assert "the cluster refuses the token" in said


def test_an_unknown_job_is_refused_by_name(dashboard: str) -> None:
    search = submit(dashboard, "--follow", "raysubmit_unknown")
    said, _ = search.communicate(timeout=SECONDS)
    assert search.returncode == 2, said
    assert "no job raysubmit_unknown on this cluster" in said


@pytest.mark.parametrize("option", ["--follow", "--stop"])
def test_where_there_is_no_cluster_it_says_so(option: str) -> None:
    search = submit("http://127.0.0.1:9", option, "raysubmit_x")
    said, _ = search.communicate(timeout=SECONDS)
    assert search.returncode == 2, said
    assert "no cluster answers at http://127.0.0.1:9" in said


def test_a_file_that_is_no_cluster_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit_search.main(["--cluster", str(tmp_path / "cluster.yaml"), "demo"]) == 2
    assert "Give the file that `ray up` was given" in capsys.readouterr().err


def test_the_cluster_s_gpus_are_taken_unless_the_options_say_otherwise() -> None:
    assert entrypoint(["demo", "--set", "a=b c"], 1).endswith("search demo --set 'a=b c' --gpus-per-trial 1")
    assert "--gpus-per-trial 1" not in entrypoint(["demo", "--gpus-per-trial=2"], 1)
    assert "--gpus-per-trial" not in entrypoint(["--resume", "/mnt/runs/x"], 1)


def test_the_help_names_both_kinds_of_options() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cluster.submit", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--cluster FILE" in done.stdout
    assert "All other options go to the search" in done.stdout
