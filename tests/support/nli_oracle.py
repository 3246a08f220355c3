"""An exact judge of the demo's NLI rows that knows nothing of how they were made.

A sentence is read into a predicate over small worlds; a premise entails a hypothesis if the hypothesis holds in every
world in which all of the premise's sentences hold.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from itertools import permutations, product
from typing import Any

from scripts.demo.world import ACTIONS, COMPARATIVES, COMPLEMENTARY, CONTRARY, GEOGRAPHY, TAXONOMY

# Nothing says that the named poodles, towns, ... are all there are: each group has one more that has no name.
World = Any
Predicate = Callable[[World], bool]


def _members(tree: dict[str, dict[str, tuple[str, ...]]]) -> dict[str, set[str]]:
    """Each concept's leaves, unnamed ones included."""
    found: dict[str, set[str]] = {}
    for wide, branches in tree.items():
        found[wide] = {f"other {wide}"}
        for middle, leaves in branches.items():
            found |= {leaf: {leaf, f"other {leaf}"} for leaf in leaves}
            found[middle] = {f"other {middle}"}.union(*(found[leaf] for leaf in leaves))
            found[wide] |= found[middle]
    return found


KINDS, PLACES = _members(TAXONOMY), _members(GEOGRAPHY)
_ALL_KINDS, _ALL_PLACES = sorted(set().union(*KINDS.values())), sorted(set().union(*PLACES.values()))
_PLAIN = {plain: third for third, plain in ACTIONS}
_NUMBER = r"(\w+) has (?:(more than|fewer than|at least|at most|exactly) )?(\d+) (\w+)s"
_TESTS: dict[str, Callable[[int, int], bool]] = {
    "more than": int.__gt__,
    "fewer than": int.__lt__,
    "at least": int.__ge__,
    "at most": int.__le__,
    "exactly": int.__eq__,
    "": int.__eq__,
}
_BACKWARD = {"after": "before"} | {less: more for more, less in COMPARATIVES}


def _quantified(text: str) -> Predicate:
    """World: one thing, as (kind, place, whether it has the property)."""
    match = re.fullmatch(r"(all|no|some) (\w+)s in (\w+) are (\w+)", text, re.IGNORECASE)
    assert match
    quantifier, kind, place = match[1].lower(), KINDS[match[2]], PLACES[match[3]]

    def holds(world: tuple[str, str, bool]) -> bool:
        inside = world[0] in kind and world[1] in place
        return {"all": not inside or world[2], "no": not (inside and world[2]), "some": inside and world[2]}[quantifier]

    return holds


def _owned(text: str) -> Predicate:
    """World: {person: kind of the only thing that they have}."""
    match = re.fullmatch(r"(\w+) \w+ (no|an?) (\w+)", text)
    assert match
    return lambda world: (world[match[1]] in KINDS[match[3]]) != (match[2] == "no")


def _located(text: str) -> Predicate:
    """World: {person: place}."""
    match = re.fullmatch(r"(\w+) (.+) in (\w+)", text)
    assert match
    return lambda world: (world[match[1]] in PLACES[match[3]]) != ("not" in match[2].split())


def _counted(text: str) -> Predicate:
    """World: {person: number}."""
    match = re.fullmatch(_NUMBER, text)
    assert match
    return lambda world: _TESTS[match[2] or ""](world[match[1]], int(match[3]))


def _ordered(text: str) -> Predicate:
    """World: {person: rank}; before and the first of a pair of comparatives mean the lower rank."""
    match = re.fullmatch(r"(\w+) (?:came|is) (\w+)(?: than)? (\w+)", text)
    assert match
    forward = match[2] not in _BACKWARD
    return lambda world: (world[match[1]] < world[match[3]]) == forward


def _opposed(text: str) -> Predicate:
    """World: {person: the one of two opposites that they are, or neither}."""
    who, rest = text.split(" is ")
    parts = [(part.startswith("not "), part.removeprefix("not ")) for part in rest.split(" and ")]
    return lambda world: all((world[who] == word) != negated for negated, word in parts)


def _joined(text: str) -> Predicate:
    """World: the set of things that were bought (found, sold, drawn)."""
    things = set(re.findall(r"\ban? (\w+)", text))
    if " but not " in text:
        left, right = text.split(" but not ")
        return lambda world: bool(world & set(re.findall(r"\ban? (\w+)", left))) and right.split()[1] not in world
    if "neither" in text:
        return lambda world: not world & things
    if "did not" in text:  # of one thing, or of both
        return lambda world: not things <= world
    return lambda world: bool(world & things) if " or " in text else things <= world


def _conditional(text: str) -> Predicate:
    """World: the set of facts, as in {"Anna sings"}."""
    if text.startswith(("If ", "if ")):
        start, end = text[3:].split(" then ")
        return lambda world: start not in world or end in world
    if " does not " in text:
        who, plain = text.split(" does not ")
        return lambda world: f"{who} {_PLAIN[plain]}" not in world
    return lambda world: text in world


def _subsets(items: Iterable[str]) -> list[set[str]]:
    names = sorted(items)
    return [
        {name for name, kept in zip(names, mask, strict=True) if kept} for mask in product((0, 1), repeat=len(names))
    ]


def _worlds(phenomenon: str, text: str, who: str) -> Iterable[World]:
    if phenomenon == "quantifier":
        return product(_ALL_KINDS, _ALL_PLACES, (True, False))
    if phenomenon in ("time", "comparative"):
        names = sorted(set(re.findall(r"\b[A-Z]\w+", text)))
        return ({name: rank for rank, name in enumerate(order)} for order in permutations(names))
    if phenomenon == "junction":
        return _subsets(re.findall(r"\ban? (\w+)", text))
    if phenomenon == "conditional":
        return _subsets(
            f"{name} {_PLAIN.get(verb, verb)}"
            for name, verb in re.findall(r"([A-Z]\w+) (?:does not )?(\w+)", text.replace("If ", ""))
        )
    if phenomenon == "opposite":
        one = next(pair for pair in (*COMPLEMENTARY, *CONTRARY) if set(pair) & set(re.findall(r"\w+", text)))
        return ({who: state} for state in (one if one in COMPLEMENTARY else (*one, "neither")))
    values: Iterable[Any] = {"kind": _ALL_KINDS, "place": _ALL_PLACES, "number": range(100)}[phenomenon]
    return ({who: value} for value in values)


_READERS: dict[str, Callable[[str], Predicate]] = {
    "quantifier": _quantified,
    "kind": _owned,
    "place": _located,
    "number": _counted,
    "time": _ordered,
    "comparative": _ordered,
    "opposite": _opposed,
    "junction": _joined,
    "conditional": _conditional,
}


def entails(phenomenon: str, premise: str, hypothesis: str) -> bool:
    """Whether every world of the premise is one of the hypothesis."""
    sentences = [sentence for sentence in premise.rstrip(".").split(". ") if sentence]
    goal = hypothesis.rstrip(".")
    who = goal.split()[0]
    if phenomenon in ("kind", "place", "number", "opposite"):  # what is told of others bears on nobody else
        sentences = [sentence for sentence in sentences if sentence.startswith(f"{who} ")]
    given = [_READERS[phenomenon](sentence) for sentence in sentences]
    holds = _READERS[phenomenon](goal)
    worlds = [world for world in _worlds(phenomenon, f"{premise} {hypothesis}", who) if all(p(world) for p in given)]
    assert worlds, f"the premise contradicts itself: {premise}"
    return all(holds(world) for world in worlds)
