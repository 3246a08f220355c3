"""One inference case of the demo world and the grammar that all phenomena share."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """A premise, a hypothesis, and whether the one entails the other.

    `clauses` derive the label: what the premise tells, what links it with the hypothesis, and the conclusion. The data
    set puts them in the frame of `thought`, the pretraining text in frames of its own.
    """

    phenomenon: str
    premise: str
    hypothesis: str
    clauses: tuple[str, str, str]
    label: int

    @property
    def thought(self) -> str:
        """The derivation in the data set's style: three numbered steps, the last one with the verdict."""
        told, link, outcome = self.clauses
        verdict = "follows" if self.label else "does not follow"
        return f"step 1: the premise says that {told}. step 2: {link}. step 3: {outcome}. so the hypothesis {verdict}."


# Two cases with the same hypothesis: the first is entailed, the second is not. So the hypothesis alone says nothing
# about the label.
Pair = tuple[Case, Case]
PairMaker = Callable[[random.Random], Pair]


def shuffled(rng: random.Random, *sentences: str) -> str:
    """Return the sentences in random order, each with a capital and a full stop."""
    order = rng.sample(sentences, len(sentences))
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in order)


def sentence(text: str) -> str:
    """Return the text with a capital and a full stop."""
    return f"{text[0].upper()}{text[1:]}."
