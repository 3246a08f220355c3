"""`python -m orchestrator.export`."""

import sys

from orchestrator.export.exporter import main

sys.exit(main())
