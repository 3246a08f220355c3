"""Commands whose console goes, stops or was never there: real pipes and terminals, in processes without Ray."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli import ROOT, environment
from tests.support.terminals import Terminal, says, wait_for

OF_HOURS = """
import os, signal, sys, time
from pathlib import Path
from trials.cli import run_command
from trials.console.line_log import LineLog
from trials.console.terminal import speak_into, survives_hangup
from trials.console.unexpected import keep_tracebacks_in

def hours(log):
    keep_tracebacks_in(log)
    with survives_hangup():
        speak_into(log)
        return command(log.path.parent)
"""
END = "\nsys.exit(run_command(lambda: hours(LineLog(Path(sys.argv[1])))))"


def of_hours(body: str, log: Path) -> list[str]:
    """A command that outlives its terminal, by the body of a function of the folder that the log is in."""
    lines = "".join(f"    {line}\n" for line in body.strip().splitlines())
    return [sys.executable, "-c", f"{OF_HOURS}\ndef command(folder):\n{lines}{END}", str(log)]


def run_script(script: str, shell: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in a shell where `$RUN` stands for it."""
    command = f'set -o pipefail; run() {{ {sys.executable} -c "$SCRIPT"; }}; {shell}'
    return subprocess.run(
        ["bash", "-c", command],
        cwd=ROOT,
        env=environment(SCRIPT=script, **environ),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


SHORT = """
import os, sys, time
from trials.cli import run_command

def command():
    {body}
    return 7

sys.exit(run_command(command))
"""
SAYS_MUCH = SHORT.format(body="[print(number, flush=True) or time.sleep(0.001) for number in range(3000)]")


def test_whoever_reads_no_further_is_no_error() -> None:
    done = run_script(SAYS_MUCH, "run | head -1")
    assert (done.stdout, done.stderr, done.returncode) == ("0\n", "", 7)


def test_what_is_left_to_be_written_at_the_end_is_no_error_either() -> None:
    done = run_script(SHORT.format(body="time.sleep(1); print('x' * 100, end='')"), "run | true")
    assert (done.stderr, done.returncode) == ("", 7)


def test_argparse_s_own_words_too() -> None:
    done = run_script("", f"{sys.executable} -m trials.train --help | true")
    assert (done.stderr, done.returncode) == ("", 0)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_a_stream_that_was_closed_from_the_beginning_is_nobody_else_s(closed: str, tmp_path: Path) -> None:
    body = f"file = open({str(tmp_path / 'file')!r}, 'w'); print('said'); sys.stderr.write('said'); os.write(1, b'C')"
    done = run_script(SHORT.format(body=body), f"run {closed}")
    assert done.returncode == 7
    assert "Traceback" not in done.stderr
    assert (tmp_path / "file").read_text() == ""


def test_a_result_that_a_full_disk_does_not_take_is_an_error() -> None:
    done = run_script(SHORT.format(body="print('result')"), "run > /dev/full")
    assert done.returncode == 1
    assert done.stderr.startswith("error: an unexpected OSError: [Errno 28] No space left on device. Its traceback is")
    assert done.stderr.count("\n") == 1


def test_what_an_encoding_lacks_is_no_error() -> None:
    done = run_script(SHORT.format(body="print('\\u2192')"), "run", PYTHONIOENCODING="latin-1")
    assert (done.stdout, done.returncode) == ("\\u2192\n", 7)


def test_an_error_in_a_thread_is_one_line() -> None:
    body = "import threading; thread = threading.Thread(target=lambda: 1 / 0); thread.start(); thread.join()"
    done = run_script(SHORT.format(body=body), "run")
    assert done.returncode == 7
    assert done.stderr.startswith("error in the background: an unexpected ZeroDivisionError: division by zero. Its ")
    assert done.stderr.count("\n") == 1


ON_TERMINAL = """
from rich.console import Console
from rich.live import Live
with Live("a table", console=Console(), refresh_per_second=20):
    sys.__stdout__.write("it begins\\n")
    while not (folder / "closed").exists():
        time.sleep(0.05)
    print("nobody sees this")
    sys.__stderr__.write("nor that\\n")
    time.sleep(0.5)
    os.write(1, b"from C"), os.write(2, b"from C")
    child = os.system("echo from a child && echo and its errors >&2")
print("all of it is done")
return 7 + child
"""


def test_a_terminal_that_is_closed_is_given_up_and_the_command_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    terminal = Terminal(of_hours(ON_TERMINAL, log))
    terminal.read_until("a table")
    wait_for(lambda: says(log, "it begins"), terminal.process)
    terminal.close()
    (tmp_path / "closed").touch()
    assert terminal.process.wait(60) == 7
    said = log.read_text()
    assert said.count("the console is gone (standard ") == 1
    assert "Z nor that\n" in said
    assert said.endswith("all of it is done\n")
    assert "Traceback" not in said
    assert "\x1b" not in said


def test_nobody_waits_for_a_console_that_takes_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    body = "[print(number, 'x' * 100) for number in range(20000)]\nreturn 7"
    with subprocess.Popen(of_hours(body, log), cwd=ROOT, env=environment(), stdout=subprocess.PIPE) as process:
        assert process.wait(120) == 7  # though nobody reads
    lines = log.read_text().splitlines()
    assert [int(line.split()[1]) for line in lines] == list(range(20000))


def test_a_person_who_reads_standard_error_is_told_where_all_is_said(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    body = "[print('x' * 100) or time.sleep(0.01) for number in range(300)]\nreturn 7"
    with subprocess.Popen(
        of_hours(body, log), cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        _, said = process.communicate(timeout=120)
    assert process.returncode == 7
    assert said.decode() == f"nobody reads the standard output any more: this goes on, and all is said in {log}\n"


def test_a_console_that_was_gone_before_there_was_a_log_is_told_there(tmp_path: Path) -> None:
    command = of_hours("print('x')\nreturn 7", tmp_path / "log.txt")
    command[2] = command[2].replace(
        "    keep_tracebacks_in", "    time.sleep(1); print('x' * 9999, flush=True)\n    keep_tracebacks_in"
    )
    with subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
    assert process.returncode == 7
    assert "the console is gone (standard output: Broken pipe)" in (tmp_path / "log.txt").read_text()


def test_a_hangup_that_was_ignored_stays_ignored(tmp_path: Path) -> None:
    """As by nohup."""
    body = "os.kill(os.getpid(), signal.SIGHUP)\nreturn 7"
    script = of_hours(body, tmp_path / "log.txt")[2].replace("sys.exit(run", "code = (run")
    script += "\nos.kill(os.getpid(), signal.SIGHUP)\nsys.exit(code)"
    for prefix, code in ((["nohup"], 7), (["env", "--default-signal=HUP"], -1)):  # also where pytest has it ignored
        command = [*prefix, sys.executable, "-c", script, str(tmp_path / "log.txt")]
        done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, check=False, timeout=120)
        assert done.returncode == code, done.stderr


def test_a_child_that_is_forked_says_what_it_has_to_say(tmp_path: Path) -> None:
    body = "pid = os.fork()\nif pid == 0:\n    print('from a child')\n    os._exit(0)\nos.waitpid(pid, 0)\nreturn 7"
    done = subprocess.run(
        of_hours(body, tmp_path / "log.txt"),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.stdout, done.returncode) == ("from a child\n", 7)
