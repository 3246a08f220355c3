"""The demo's inference phenomena by name."""

from __future__ import annotations

from scripts.demo.case import PairMaker
from scripts.demo.logic import conditional_pair, junction_pair, opposite_pair
from scripts.demo.nesting import kind_pair, place_pair, quantifier_pair
from scripts.demo.relations import comparative_pair, number_pair, time_pair

PHENOMENA: dict[str, PairMaker] = {
    "quantifier": quantifier_pair,
    "kind": kind_pair,
    "place": place_pair,
    "number": number_pair,
    "time": time_pair,
    "comparative": comparative_pair,
    "opposite": opposite_pair,
    "junction": junction_pair,
    "conditional": conditional_pair,
}
