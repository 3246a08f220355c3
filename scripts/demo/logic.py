"""Cases about the small words: not, and, or, neither, if; and about opposites."""

from __future__ import annotations

import random

from scripts.demo.case import Case, Pair, sentence, shuffled
from scripts.demo.world import ACTIONS, COMPLEMENTARY, CONTRARY, a, pick_kinds, pick_names


def opposite_pair(rng: random.Random) -> Pair:
    """Return a pair about opposites: not awake means asleep, but not happy need not mean sad."""
    who, other = pick_names(rng, 2)
    complementary = rng.random() < 0.5
    one, two = rng.sample(rng.choice(COMPLEMENTARY if complementary else CONTRARY), 2)
    negative = rng.random() < 0.5
    asked = f"{who} is {'not ' if negative else ''}{two}"

    def case(told: str, rule: str, label: int) -> Case:
        noise = f"{other} is {rng.choice(('', 'not '))}{rng.choice((one, two))}"
        conclusion = asked if label else f"nothing says that {asked}"
        return Case(
            phenomenon="opposite",
            premise=shuffled(rng, f"{who} is {told}", noise),
            hypothesis=sentence(asked),
            clauses=(f"{who} is {told}", rule, conclusion),
            label=label,
        )

    must = f"who is not {one} {'must' if complementary else 'need not'} be {two}"
    if negative:
        return case(one, f"who is {one} is not {two}", 1), case(f"not {one}", must, 0)
    if complementary:
        return case(f"not {one}", must, 1), case(one, f"who is {one} is not {two}", 0)
    return case(f"{two} and not {one}", "and means both", 1), case(f"not {one}", must, 0)


def junction_pair(rng: random.Random) -> Pair:
    """Return a pair about and, or, neither, not both: what they leave open and what they rule out."""
    who = pick_names(rng, 1)[0]
    x, y, z = (a(kind) for kind in pick_kinds(rng, 3))
    verb, plain = rng.choice((("bought", "buy"), ("found", "find"), ("sold", "sell"), ("drew", "draw")))
    not_x = f"{who} did not {plain} {x}"
    just_x = f"{who} {verb} {x}"

    def listed(word: str, one: str, two: str) -> str:
        one, two = rng.sample((one, two), 2)
        return f"{one} {word} {two}"

    def case(told: str, rule: str, asked: str, label: int) -> Case:
        conclusion = asked if label else f"nothing says that {asked}"
        return Case(
            phenomenon="junction",
            premise=sentence(told),
            hypothesis=sentence(asked),
            clauses=(told, rule, conclusion),
            label=label,
        )

    either = f"{who} {verb} {listed('or', x, y)}"
    if_both, if_or = "and means both", "or leaves open which one"
    form = rng.randrange(4)
    if form == 0:
        return case(f"{who} {verb} {listed('and', x, y)}", if_both, just_x, 1), case(either, if_or, just_x, 0)
    if form == 1:
        out_y, out_x = f"{either} but not {y}", f"{either} but not {x}"
        ruled = f"{y} is ruled out, which leaves {x}", f"{x} is ruled out, which leaves {y}"
        return case(out_y, ruled[0], just_x, 1), case(out_x, ruled[1], just_x, 0)
    if form == 2:
        asked = f"{who} {verb} {listed('or', x, y)}"
        yes, no = f"{who} {verb} {listed('and', x, z)}", f"{who} {verb} {listed('or', x, z)}"
        return case(yes, if_both, asked, 1), case(no, if_or, asked, 0)
    neither = f"{who} {verb} neither {listed('nor', x, y)}"
    not_both = f"{who} did not {plain} both {listed('and', x, y)}"
    return case(neither, "neither rules out both", not_x, 1), case(not_both, "not both leaves one open", not_x, 0)


def conditional_pair(rng: random.Random) -> Pair:
    """Return a pair about if A then B: it leads from A to B and from not B to not A, but not the other ways."""
    one, two = pick_names(rng, 2)
    (does_a, do_a), (does_b, do_b) = rng.sample(ACTIONS, 2)
    yes = {"a": f"{one} {does_a}", "b": f"{two} {does_b}"}
    no = {"a": f"{one} does not {do_a}", "b": f"{two} does not {do_b}"}
    contrapose = rng.random() < 0.5
    # The hypothesis is always about B; the fact told is always about A.
    asked, told = (no["b"], no["a"]) if contrapose else (yes["b"], yes["a"])

    def case(start: str, end: str, fact: str, link: str, label: int) -> Case:
        rule = f"if {yes[start]} then {yes[end]}"
        conclusion = asked if label else f"nothing says that {asked}"
        return Case(
            phenomenon="conditional",
            premise=shuffled(rng, rule, fact),
            hypothesis=sentence(asked),
            clauses=(rule, f"{fact}, {link}", conclusion),
            label=label,
        )

    opens, shuts = "which opens the rule", "which shuts the rule"
    idle = "which the rule says nothing about"
    if contrapose:
        good = case("b", "a", told, shuts, 1)
        bad = case("a", "b", told, idle, 0) if rng.random() < 0.5 else case("b", "a", yes["a"], idle, 0)
    else:
        good = case("a", "b", told, opens, 1)
        bad = case("b", "a", told, idle, 0) if rng.random() < 0.5 else case("a", "b", no["a"], idle, 0)
    return good, bad
