"""Ratios measured side by side in one run: of the engine, of whole systems, and of searches on a simulated clock."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
"""Folder of the project, in which its command lines run."""
