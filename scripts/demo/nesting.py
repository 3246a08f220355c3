"""Cases about things within things: kinds within kinds, places within places, and which way quantifiers carry."""

from __future__ import annotations

import random

from scripts.demo.case import Case, Pair, sentence, shuffled
from scripts.demo.world import ADJECTIVES, KIND_CHAINS, PLACE_CHAINS, a, pick_names


def quantifier_pair(rng: random.Random) -> Pair:
    """Return a pair about quantifiers, over kinds or over places.

    All and no carry from wide to narrow, some carries from narrow to wide.
    """
    # "some" is as frequent as the other two together: then neither a wide nor a narrow premise hints at the label.
    quantifier = rng.choice(("all", "no", "some", "some"))
    by_place = rng.random() < 0.5
    kind, place = rng.choice(KIND_CHAINS), rng.choice(PLACE_CHAINS)
    adjective = rng.choice(ADJECTIVES[kind.wide])
    inner = rng.choice((place.narrow, place.middle, place.wide))
    cases = []
    for wide in (True, False):
        plural = f"{kind.middle}s"
        if by_place:
            there = place.wide if wide else place.narrow
            asked, said = f"{plural} in {place.middle}", f"{plural} in {there}"
            link = f"{place.middle} is in {there}" if wide else f"{there} is in {place.middle}"
        else:
            other = f"{kind.wide if wide else kind.narrow}s"
            asked, said = f"{plural} in {inner}", f"{other} in {inner}"
            link = f"{plural} are {other}" if wide else f"{other} are {plural}"
        cases.append(_quantifier_case(quantifier, wide, said, asked, link, adjective))
    cases.sort(key=lambda case: -case.label)
    return cases[0], cases[1]


def _quantifier_case(quantifier: str, wide: bool, said: str, asked: str, link: str, adjective: str) -> Case:
    label = int((quantifier == "some") != wide)
    direction = "from wide to narrow" if wide else "from narrow to wide"
    carries = "carries" if label else "does not carry"
    return Case(
        phenomenon="quantifier",
        premise=sentence(f"{quantifier} {said} are {adjective}"),
        hypothesis=sentence(f"{quantifier} {asked} are {adjective}"),
        clauses=(f"{quantifier} {said} are {adjective}", link, f"{quantifier} {carries} {direction}"),
        label=label,
    )


_GETS = (("has", "has no"), ("owns", "owns no"), ("sees", "sees no"), ("wants", "wants no"))


def kind_pair(rng: random.Random) -> Pair:
    """Return a pair about kinds.

    Having a poodle means having a dog, not the other way round; having no dog means having no poodle.
    """
    who, other = pick_names(rng, 2)
    yes, no = rng.choice(_GETS)
    chain = rng.choice(KIND_CHAINS)
    foreign = rng.choice([one for one in KIND_CHAINS if one.middle != chain.middle])
    negative = rng.random() < 0.5

    def case(said: str, link: str, label: int) -> Case:
        def fact(kind: str) -> str:
            return f"{who} {no} {kind}" if negative else f"{who} {yes} {a(kind)}"

        may = f"nothing says that {fact(chain.middle)}"
        noise = f"{other} {rng.choice((f'{yes} {a(foreign.narrow)}', f'{no} {foreign.middle}'))}"
        return Case(
            phenomenon="kind",
            premise=shuffled(rng, fact(said), noise),
            hypothesis=sentence(fact(chain.middle)),
            clauses=(fact(said), link, fact(chain.middle) if label else may),
            label=label,
        )

    up = f"{a(chain.narrow)} is {a(chain.middle)}"
    down = f"{a(chain.middle)} is {a(chain.wide)}"
    if negative:
        return case(chain.wide, down, 1), case(chain.narrow, up + " but not the only one", 0)
    if rng.random() < 0.5:
        return case(chain.narrow, up, 1), case(chain.wide, down + " but not the only one", 0)
    return case(chain.narrow, up, 1), case(foreign.narrow, f"{a(foreign.narrow)} is not {a(chain.middle)}", 0)


def place_pair(rng: random.Random) -> Pair:
    """Return a pair about places: living in a town means living in its region, not the other way round."""
    who, other = pick_names(rng, 2)
    chain = rng.choice(PLACE_CHAINS)
    foreign = rng.choice([one for one in PLACE_CHAINS if one.middle != chain.middle])
    yes, no = rng.choice((("lives", "does not live"), ("is", "is not"), ("was born", "was not born")))
    negative = rng.random() < 0.5
    verb = no if negative else yes
    asked = f"{who} {verb} in {chain.middle}"

    def case(said: str, link: str, label: int, said_verb: str = verb) -> Case:
        told = f"{who} {said_verb} in {said}"
        conclusion = asked if label else f"nothing says that {asked}"
        return Case(
            phenomenon="place",
            premise=shuffled(rng, told, f"{other} {rng.choice((yes, no))} in {foreign.middle}"),
            hypothesis=sentence(asked),
            clauses=(told, link, conclusion),
            label=label,
        )

    up = f"{chain.narrow} is in {chain.middle}"
    down = f"{chain.middle} is in {chain.wide}"
    elsewhere = f"{foreign.narrow} is in {foreign.middle}, not in {chain.middle}"
    partial = " but is not all of it"
    if not negative:
        no_entailment = rng.choice(((chain.wide, down + partial), (foreign.narrow, elsewhere)))
        return case(chain.narrow, up, 1), case(*no_entailment, 0)
    if rng.random() < 0.5:
        return case(chain.wide, down, 1), case(chain.narrow, up + partial, 0)
    return case(foreign.narrow, elsewhere, 1, yes), case(chain.narrow, up, 0, yes)
