"""Process of a sampler, which its parent's `SamplerProcess` talks to; it ends with its parent.

python -m orchestrator.sampling PARENT
"""

from __future__ import annotations

import os
import sys

from orchestrator.sampling.sampler_process import main
from trials.system.processes import die_with

if __name__ == "__main__":
    die_with(int(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # stdout is for answers, so what libraries print goes to stderr
    main(sys.stdin.buffer, answers)
