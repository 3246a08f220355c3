"""The process in which an export is proved by `trials.evaluation.verify`, ended with who waits for it.

python -m orchestrator.export.proof_process PARENT JOB RESULT
"""

from __future__ import annotations

import runpy
import sys

from trials.system.processes import die_with

if __name__ == "__main__":
    die_with(int(sys.argv.pop(1)))
    runpy.run_module("trials.evaluation.verify", run_name="__main__", alter_sys=True)
