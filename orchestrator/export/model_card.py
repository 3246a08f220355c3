"""README.md of an export: what the adapter is, how it was chosen and verified, how to load it.

`model_card.md.j2` has the text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from search_spaces.schema import Recipe
from trials.metrics.intervals import Estimate
from trials.metrics.paired_tests import CANNOT_TELL
from trials.metrics.score_names import NAMES, shown
from trials.metrics.task_scores import Measure

_TEMPLATE = "model_card.md.j2"


def model_card(manifest: dict[str, Any], recipe: Recipe) -> str:
    """Return Markdown, with the front matter that model hubs read, from the manifest and the recipe."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    base = manifest["base_model"]["name"]
    return environment.get_template(_TEMPLATE).render(
        front_matter=ModelCardData(library_name="peft", base_model=base, tags=["qlora", "lora", "peft"]).to_yaml(),
        manifest=manifest,
        scores=manifest.get("scores"),
        skipped=manifest.get("skipped"),
        recipe=recipe,
        score_names=NAMES,
        interval=_interval,
        cannot_tell=CANNOT_TELL,
    )


def _interval(found: dict[str, Any], measure: str, unit: str = " %") -> str:
    return shown(Estimate(found["value"], found["low"], found["high"]), Measure(measure), unit)
