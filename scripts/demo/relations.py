"""Cases about quantities and orders: numbers against bounds, and who came first or is taller, through a third."""

from __future__ import annotations

import random

from scripts.demo.case import Case, Pair, sentence, shuffled
from scripts.demo.world import COMPARATIVES, LARGEST_NUMBER, compare, pick_kinds, pick_names

# The words of a bound, and which numbers satisfy a bound of k.
_BOUNDS = {
    "more than": lambda number, k: number > k,
    "fewer than": lambda number, k: number < k,
    "at least": lambda number, k: number >= k,
    "at most": lambda number, k: number <= k,
    "exactly": lambda number, k: number == k,
}
_UPWARD = {"more than", "at least"}


def number_pair(rng: random.Random) -> Pair:
    """Return a pair about numbers: a count, or a bound on one, against another bound."""
    who, other = pick_names(rng, 2)
    things = f"{pick_kinds(rng, 1)[0]}s"
    asked = rng.choice(tuple(_BOUNDS))
    k = rng.randint(5, LARGEST_NUMBER - 5)
    if asked != "exactly" and rng.random() < 0.4:
        said = rng.choice(("more than", "at least") if asked in _UPWARD else ("fewer than", "at most"))
        low, high = rng.randint(1, k - 2), rng.randint(k + 2, LARGEST_NUMBER)
        good, bad = (high, low) if asked in _UPWARD else (low, high)
    else:
        said = ""
        numbers = range(1, LARGEST_NUMBER + 1)
        # A third of the counts lie on the bound itself, where "more than" and "at least" differ.
        good, bad = (
            k if k in pool and rng.random() < 0.3 else rng.choice(pool)
            for pool in ([n for n in numbers if _BOUNDS[asked](n, k) is holds] for holds in (True, False))
        )

    def case(number: int, label: int) -> Case:
        told = f"{who} has {said + ' ' if said else ''}{number} {things}"
        denial = f"{who} {'may not' if said else 'does not'} have"
        conclusion = f"{who} has {asked} {k} {things}" if label else f"{denial} {asked} {k} {things}"
        noise = f"{other} has {rng.randint(1, LARGEST_NUMBER)} {things}"
        return Case(
            phenomenon="number",
            premise=shuffled(rng, told, noise),
            hypothesis=sentence(f"{who} has {asked} {k} {things}"),
            clauses=(told, compare(number, k), conclusion),
            label=label,
        )

    return case(good, 1), case(bad, 0)


def time_pair(rng: random.Random) -> Pair:
    """Return a pair about which of two people came before the other, through a third person."""
    return _order_pair(rng, "time", "came before", "came after")


def comparative_pair(rng: random.Random) -> Pair:
    """Return a pair about which of two people is taller (or older) than the other, through a third person."""
    more, less = rng.choice(COMPARATIVES)
    return _order_pair(rng, "comparative", f"is {more} than", f"is {less} than")


def _order_pair(rng: random.Random, phenomenon: str, relation: str, converse: str) -> Pair:
    if rng.random() < 0.5:
        relation, converse = converse, relation
    left, middle, right = pick_names(rng, 3)
    chain = ((left, middle), (middle, right))
    broken = rng.choice(
        (
            ((middle, left), (right, middle)),
            ((left, middle), (right, middle)),
            ((middle, left), (middle, right)),
        )
    )

    def told(pair: tuple[str, str]) -> str:
        """Return a fact in words, by the relation or by its converse at random."""
        first, second = pair
        return f"{first} {relation} {second}" if rng.random() < 0.5 else f"{second} {converse} {first}"

    def case(links: tuple[tuple[str, str], tuple[str, str]], label: int) -> Case:
        first, second = (f"{one} {relation} {two}" for one, two in links)
        asked = f"{left} {relation} {right}"
        outcome = f"{'this' if label else 'nothing'} leads from {left} to {right}"
        return Case(
            phenomenon=phenomenon,
            premise=shuffled(rng, told(links[0]), told(links[1])),
            hypothesis=sentence(asked),
            clauses=(first, second, outcome),
            label=label,
        )

    return case(chain, 1), case(broken, 0)
