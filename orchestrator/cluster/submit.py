"""Sends a search to a Ray cluster as a job, and follows it; ends with the exit code of the search.

scripts/submit [--cluster FILE | --address URL] [options of python -m orchestrator.search]
scripts/submit --follow JOB       prints the job's output so far and from now on
scripts/submit --stop JOB         stops the search, which exports the best so far and can be resumed

The search runs on the head, in the project's folder there; paths in its options are paths there.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import re
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from aiohttp import ClientError
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient
from ray.util.state import list_nodes
from ray.util.state.exception import RayStateApiException

from orchestrator.cluster.access import FOLDER, tunnel
from trials.cli import run_command
from trials.errors import EXIT_DONE, EXIT_INTERRUPTED, InputError, first_line

_FAILED = 1
_ANSWER_SECONDS = 60
_AGAIN_SECONDS = 5.0
_ENDING_SECONDS = 30.0
_PATIENCE_SECONDS = 60.0
"""Seconds without an answer before giving up; the connection is gone, for example, after a laptop has slept."""
_NO_AGENT = "No available agent"
"""Part of Ray's error (2.60) while the part of a node that starts jobs isn't there yet."""
_OTHER_RAY = "Where another Ray runs on the head, it has the port at which jobs are taken (52365): end that one"
_RAY_SAYS = re.compile(r"Running entrypoint for job |\S+ \S+\sINFO job_manager.py:|.*\(raylet\).*|\s+\[|\s+\(\d\) ")
"""Beginnings of lines that Ray adds to a search's output; for a daemon that died, Ray prints its whole state."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code of the search."""
    return run_command(lambda: _main(*_parser().parse_known_args(argv)))


def entrypoint(options: Sequence[str], gpus: int) -> str:
    """Return the job's command.

    `gpus` are those of each trial, unless the options give them. The search can't tell, as it sees only the head's.
    """
    if not any(option.split("=")[0] in ("--gpus-per-trial", "--resume") for option in options):
        options = [*options, "--gpus-per-trial", str(gpus)]
    # `exec`, so that the signal to stop reaches the search itself, and not a shell above it.
    return f"cd {FOLDER} && exec .venv/bin/python -m orchestrator.search {shlex.join(options)}"


def _main(arguments: argparse.Namespace, options: Sequence[str]) -> int:
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    with nullcontext(arguments.address) if arguments.address else tunnel(arguments.cluster) as address:
        client = _client(address)
        known = arguments.stop or arguments.follow
        if known and known not in _jobs(client):
            raise InputError(f"no job {known} on this cluster. Its jobs: {', '.join(_jobs(client)) or 'none'}.")
        if arguments.stop:
            return _stop(client, arguments.stop)
        job = arguments.follow or _submit(client, address, options)
        try:
            return follow(client, job)
        except KeyboardInterrupt:
            print(
                f"\nthe search goes on without you. Follow it:  scripts/submit --follow {job}\n"
                f"stop it, and export the best so far:  scripts/submit --stop {job}"
            )
            return EXIT_INTERRUPTED


def _submit(client: JobSubmissionClient, address: str, options: Sequence[str]) -> str:
    try:
        nodes = list_nodes(address=address, filters=[("state", "=", "ALIVE")], timeout=_ANSWER_SECONDS)
        gpus = int(any(node.resources_total.get("GPU") for node in nodes))
        job = submit_job(client, entrypoint(options, gpus))
    except (OSError, RuntimeError, RayStateApiException) as error:  # Ray raises RuntimeError for a failed request
        remedy = _OTHER_RAY if _NO_AGENT in str(error) else "Try again"
        raise InputError(f"the cluster didn't take the search: {first_line(error)}. {remedy}.") from error
    print(
        f"job {job} on a cluster of {len(nodes)} machines. Ctrl-C leaves it running; until then its dashboard is at "
        f"{address}, and its token is what `ray get-auth-token` prints.",
        flush=True,
    )
    return job


def submit_job(client: JobSubmissionClient, command: str) -> str:
    """Submit a job that runs this command, and return its id.

    Retries for a minute, because a cluster that has just started may not take jobs yet. Raises RuntimeError after that.
    """
    ends = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return str(client.submit_job(entrypoint=command))
        except RuntimeError as error:
            if _NO_AGENT not in str(error) or time.monotonic() > ends:
                raise
        time.sleep(1.0)


def follow(client: JobSubmissionClient, job: str) -> int:
    """Print a job's output, from its beginning, until it ends; return its exit code.

    A broken connection is made again, and nothing is printed twice. Raises `InputError` if the cluster doesn't answer
    any more.
    """
    printer, answered = _Printer(), time.monotonic()
    while True:
        try:
            asyncio.run(printer.tail(client, job))
            code, answered = _exit_code(client, job), time.monotonic()
            if code is not None:
                asyncio.run(printer.tail(client, job))  # the rest, where the connection was closed before the end
                return code
        except (OSError, RuntimeError, ClientError) as error:  # the errors of Ray, requests and aiohttp
            if time.monotonic() - answered > _PATIENCE_SECONDS:
                raise InputError(
                    f"the cluster can't be reached any more: {first_line(error)}. The search goes on there, if its "
                    f"head is up; follow it by scripts/submit --follow {job}."
                ) from error
        time.sleep(_AGAIN_SECONDS)


class _Printer:
    """Prints a job's log without repetition, although Ray always sends it from its beginning."""

    def __init__(self) -> None:
        self._printed = 0

    async def tail(self, client: JobSubmissionClient, job: str) -> None:
        """Print the log until the job or the connection ends."""
        seen = 0
        async for text in client.tail_job_logs(job):
            fresh = text[max(0, self._printed - seen) :]
            seen += len(text)
            self._printed = max(self._printed, seen)
            lines = [line for line in fresh.splitlines(keepends=True) if not _RAY_SAYS.match(line)]
            print("".join(lines), end="", flush=True)


def _exit_code(client: JobSubmissionClient, job: str) -> int | None:
    """Return the exit code of a job's command; None: it still runs."""
    ends = time.monotonic() + _ENDING_SECONDS
    while not (info := client.get_job_info(job)).status.is_terminal():
        if time.monotonic() > ends:
            return None
        time.sleep(0.2)
    if info.driver_exit_code is not None and info.driver_exit_code >= 0:
        return int(info.driver_exit_code)
    if info.status is JobStatus.STOPPED:
        return EXIT_INTERRUPTED
    sys.stderr.write(f"the job ended without an exit code: {info.message}\n")
    return _FAILED


def _stop(client: JobSubmissionClient, job: str) -> int:
    client.stop_job(job)
    print(f"{job} was told to stop. It exports the best so far: scripts/submit --follow {job}")
    return EXIT_DONE


def _jobs(client: JobSubmissionClient) -> list[str]:
    return [job.submission_id for job in client.list_jobs() if job.submission_id]


def _client(address: str) -> JobSubmissionClient:
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # else RAY_ADDRESS would take precedence over the argument
    try:
        client = JobSubmissionClient(address)
        logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
        return client
    except AuthenticationError as error:
        raise InputError(
            "the cluster refuses the token in ~/.ray/auth_token. It was started with another one: fetch it from the "
            "head, or start the cluster again by `ray up`."
        ) from error
    except (ConnectionError, RuntimeError) as error:
        raise InputError(f"no cluster answers at {address}: {first_line(error)}. Start one by `ray up`.") from error


def _parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(
        prog="scripts/submit",
        usage="scripts/submit [--cluster FILE | --address URL] [options of python -m orchestrator.search]",
        description="Send a search to a cluster and follow it. Its exit code is that of the search.",
        epilog="All other options go to the search, whose paths are those of the head; relative ones begin in the "
        f"project's folder there, {FOLDER}. Give --out a folder that all machines see.",
        allow_abbrev=False,
    )
    where = arguments.add_mutually_exclusive_group()
    where.add_argument(
        "--cluster", type=Path, default=Path("cluster.yaml"), metavar="FILE", help="default: %(default)s"
    )
    where.add_argument(
        "--address",
        default=os.environ.get("RAY_API_SERVER_ADDRESS"),
        metavar="URL",
        help="of the dashboard, if it can be reached without SSH (default: $RAY_API_SERVER_ADDRESS)",
    )
    what = arguments.add_mutually_exclusive_group()
    what.add_argument("--follow", metavar="JOB", help="follow a job that was submitted before")
    what.add_argument("--stop", metavar="JOB", help="have a search export the best so far, and end")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
