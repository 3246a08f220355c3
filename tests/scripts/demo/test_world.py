from collections import Counter

import pytest

from scripts.demo.world import (
    ACTIONS,
    ADJECTIVES,
    GEOGRAPHY,
    KIND_CHAINS,
    NAMES,
    PLACE_CHAINS,
    TAXONOMY,
    Chain,
    a,
    compare,
)


@pytest.mark.parametrize("tree", [TAXONOMY, GEOGRAPHY])
def test_every_concept_has_one_place(tree: dict[str, dict[str, tuple[str, ...]]]) -> None:
    concepts = [*tree]
    for branches in tree.values():
        concepts += [*branches, *(leaf for leaves in branches.values() for leaf in leaves)]
    assert max(Counter(concepts).values()) == 1


def test_names_are_no_other_words() -> None:
    places = {place for chain in PLACE_CHAINS for place in (chain.narrow, chain.middle, chain.wide)}
    assert len(set(NAMES)) == len(NAMES) == 40
    assert not places & set(NAMES)


def test_chains_lead_from_narrow_to_wide() -> None:
    assert Chain("poodle", "dog", "animal") in KIND_CHAINS
    assert Chain("Lisk", "Orval", "Norland") in PLACE_CHAINS
    assert {chain.wide for chain in KIND_CHAINS} == set(ADJECTIVES)


def test_plurals_and_forms_are_regular() -> None:
    # The texts add an s to every kind; that is right for none of these endings.
    kinds = {kind for chain in KIND_CHAINS for kind in (chain.narrow, chain.middle, chain.wide)}
    assert not [kind for kind in kinds if kind.endswith(("s", "x", "z", "ch", "sh")) or kind[-2:] in ("by", "ry", "ly")]
    assert all(third == f"{plain}s" for third, plain in ACTIONS)


@pytest.mark.parametrize(("noun", "expected"), [("owl", "an owl"), ("dog", "a dog"), ("insect", "an insect")])
def test_article(noun: str, expected: str) -> None:
    assert a(noun) == expected


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [(14, 9, "14 is more than 9"), (9, 14, "9 is less than 14"), (9, 9, "9 is equal to 9")],
)
def test_compare(left: int, right: int, expected: str) -> None:
    assert compare(left, right) == expected
