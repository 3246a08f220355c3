"""The process in which `orchestrator.verification` has an export proved: `trials.proof`, ended with who waits for it.

python -m orchestrator.proof_process PARENT JOB RESULT
"""

from __future__ import annotations

import runpy
import sys

from orchestrator.processes import die_with

if __name__ == "__main__":
    die_with(int(sys.argv.pop(1)))
    runpy.run_module("trials.proof", run_name="__main__", alter_sys=True)
