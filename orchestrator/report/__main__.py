"""`python -m orchestrator.report`."""

import sys

from orchestrator.report.render import main

sys.exit(main())
