"""Process that verifies an export by `trials.evaluation.verify`; it is killed when its parent ends.

python -m orchestrator.export.proof_process PARENT JOB RESULT
"""

from __future__ import annotations

import runpy
import sys

from trials.system.processes import die_with

if __name__ == "__main__":
    die_with(int(sys.argv.pop(1)))
    runpy.run_module("trials.evaluation.verify", run_name="__main__", alter_sys=True)
