"""Pretraining texts that judge a claim: many ways to ask and to answer, none of them the NLI task's."""

from __future__ import annotations

import random
from collections.abc import Collection

from scripts.demo.case import Case
from scripts.demo.phenomena import PHENOMENA

# Phenomena that a small model learns last are drawn more often.
_EXTRA = {"comparative": 4, "time": 3, "opposite": 2, "junction": 2}
_MAKERS = tuple(maker for name, maker in PHENOMENA.items() for _ in range(_EXTRA.get(name, 1)))

_KNOWN = (
    "Note", "Letter", "Source", "Text", "Paper", "Book", "Report", "Story", "Message", "Paragraph", "Passage", "Record",
    "Diary", "Notice", "Article", "Memo", "Page",
)  # fmt: skip
_CLAIMED = (
    "Claim", "Guess", "Statement", "Idea", "Question", "Thesis", "Saying", "Belief", "Theory", "Answer", "Remark",
    "Thought", "Opinion", "Conclusion", "Point", "View",
)  # fmt: skip
_LAYOUTS = (
    "{known}: {premise}\n{claimed}: {hypothesis}\n{task}",
    "{known}: {premise}\n{claimed}: {hypothesis}\n\n{task}",
    "{premise}\n{claimed}: {hypothesis} {task}",
    "{known}: {premise} {claimed}: {hypothesis}\n{task}",
    "{task}\n{known}: {premise}\n{claimed}: {hypothesis}",
    "{claimed}: {hypothesis}\n{known}: {premise}\n{task}",
    "{premise} {task} {hypothesis}",
)


# Questions, and the words for a claim that is not entailed and for one that is.
_VERDICTS: tuple[tuple[tuple[str, ...], tuple[str, str]], ...] = (
    (("Is it sure?", "Think it through, then say sure or not sure."), ("it is not sure", "it is sure")),
    (("Say why, then judge.", "Give your reasons. Is this certain?"), ("this is open", "this is certain")),
    (("Does it hold?", "Explain, then say whether it holds."), ("it may fail", "it holds")),
    (("Must it be true? Think first.", "True in any case?"), ("no, it can be false", "yes, it must be true")),
    (("Accept or reject it, with reasons.", "Decide in the end."), ("we reject it", "we accept it")),
    (
        ("Can we rely on it?", "Think, then say whether we can rely on it."),
        ("we cannot rely on it", "we can rely on it"),
    ),
    (("Go line by line: is it proved?", "Is there a proof?"), ("a proof is missing", "that is a proof")),
    (("Does it follow?", "Does the one follow from the other?"), ("{claimed} does not follow", "{claimed} follows")),
)
# Text before each of the three clauses.
_MARKERS = (
    ("First, ", "second, ", "third, "),
    ("1. ", "2. ", "3. "),
    ("part one: ", "part two: ", "part three: "),
    ("fact: ", "rule: ", "result: "),
    ("told - ", "link - ", "end - "),
    ("", "now ", "we see that "),
    ("since ", "and since ", "we get that "),
    ("line 1: ", "line 2: ", "line 3: "),
    ("a) ", "b) ", "c) "),
)
_SOURCES = (
    "",
    "we read that ",
    "it is given that ",
    "{known} says that ",
    "{known} tells us that ",
    "{known} says that ",
)
_SEPARATORS = (". ", "; ", "\n", ", ", ". ")
_CONCLUDERS = (", so {}.", ". So {}.", ", and {}.", ": {}.", "; therefore {}", ", so {}.")


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def draw_case(rng: random.Random, excluded_premises: Collection[str]) -> Case:
    """Return a random case whose premise is not one of `excluded_premises`."""
    while True:
        case = rng.choice(rng.choice(_MAKERS)(rng))
        if case.premise not in excluded_premises:
            return case


def judged_claim(rng: random.Random, excluded_premises: Collection[str]) -> tuple[str, str]:
    """Return a question about a claim and its answer: the reasons, then the verdict."""
    case = draw_case(rng, excluded_premises)
    tasks, verdicts = rng.choice(_VERDICTS)
    known, claimed = rng.choice(_KNOWN), rng.choice(_CLAIMED)
    question = rng.choice(_LAYOUTS).format(
        known=known, claimed=claimed, premise=case.premise, hypothesis=case.hypothesis, task=rng.choice(tasks)
    )
    told, link, outcome = (
        f"{marker}{clause}" for marker, clause in zip(rng.choice(_MARKERS), case.clauses, strict=True)
    )
    told = told.replace(case.clauses[0], rng.choice(_SOURCES).format(known=f"the {known.lower()}") + case.clauses[0])
    verdict = verdicts[case.label].format(claimed=f"the {claimed.lower()}")
    reasons = rng.choice(_SEPARATORS).join((told, link, outcome))
    return question, reasons + rng.choice(_CONCLUDERS).format(verdict)


def told_inference(rng: random.Random, excluded_premises: Collection[str]) -> str:
    """Return an inference in prose: the premise, the reasons, then the verdict with the hypothesis."""
    case = draw_case(rng, excluded_premises)
    told, link, outcome = case.clauses
    ending = f"So it is certain: {case.hypothesis}" if case.label else f"It may be otherwise: {case.hypothesis}"
    return f"{case.premise} {_capital(told)}. {_capital(link)}. {_capital(outcome)}. {ending}"
