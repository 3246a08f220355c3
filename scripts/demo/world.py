"""The little world that the demo data set and the demo base model are about: its words, its facts and their grammar.

Kinds form chains of three (poodle, dog, animal), places chains of three (town, region, country). Towns, regions and
countries are invented, so nothing about them can be known except by having read the demo's own text.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

NAMES = (
    "Anna", "Ben", "Cleo", "Dora", "Emil", "Finn", "Gwen", "Hugo", "Ida", "Jonas", "Kira", "Leo", "Mara", "Nils",
    "Olga", "Paul", "Rosa", "Sam", "Tess", "Uri", "Vera", "Walt", "Yara", "Zeno", "Ada", "Bruno", "Clara", "Dirk",
    "Elsa", "Fred", "Greta", "Hans", "Jack", "Karl", "Lena", "Max", "Nora", "Otto", "Pia", "Ruth",
)  # fmt: skip

TAXONOMY: dict[str, dict[str, tuple[str, ...]]] = {
    "animal": {
        "dog": ("poodle", "beagle", "terrier", "spaniel"),
        "bird": ("robin", "owl", "crow", "duck"),
        "insect": ("bee", "wasp", "moth", "beetle"),
    },
    "plant": {
        "tree": ("oak", "pine", "maple", "willow"),
        "flower": ("rose", "tulip", "orchid", "violet"),
    },
    "object": {
        "tool": ("hammer", "saw", "drill", "shovel"),
        "instrument": ("flute", "violin", "drum", "harp"),
        "vehicle": ("car", "van", "truck", "tram"),
    },
}

GEOGRAPHY: dict[str, dict[str, tuple[str, ...]]] = {
    "Norland": {
        "Orval": ("Lisk", "Bresk", "Tarn"),
        "Vesta": ("Holm", "Ruden", "Sarn"),
        "Kelda": ("Mirt", "Dovik", "Plesk"),
    },
    "Sudria": {
        "Amara": ("Pelo", "Cassa", "Tivo"),
        "Bonda": ("Rulla", "Senna", "Gorto"),
        "Calda": ("Fenzo", "Lumo", "Varra"),
    },
    "Estmark": {
        "Zhelin": ("Kroz", "Vilna", "Drava"),
        "Tolma": ("Brin", "Ostra", "Yelna"),
        "Harz": ("Wald", "Stein", "Grund"),
    },
}

ADJECTIVES: dict[str, tuple[str, ...]] = {
    "animal": ("wet", "hungry", "tired", "calm", "thirsty", "noisy", "clean", "healthy"),
    "plant": ("wet", "green", "healthy", "dry", "rare", "dusty", "frozen", "pretty"),
    "object": ("wet", "new", "broken", "clean", "cheap", "dusty", "heavy", "pretty"),
}

# Of a complementary pair exactly one holds; of a contrary pair at most one holds.
COMPLEMENTARY = (("awake", "asleep"), ("present", "absent"), ("married", "single"), ("indoors", "outdoors"))
CONTRARY = (("happy", "sad"), ("rich", "poor"), ("young", "old"), ("loud", "quiet"))

# (comparative, its converse)
COMPARATIVES = (("taller", "shorter"), ("older", "younger"))

# (third person, plain form)
ACTIONS = (
    ("sings", "sing"),
    ("leaves", "leave"),
    ("smiles", "smile"),
    ("cooks", "cook"),
    ("reads", "read"),
    ("swims", "swim"),
    ("paints", "paint"),
    ("waits", "wait"),
    ("dances", "dance"),
    ("works", "work"),
)

LARGEST_NUMBER = 30


@dataclass(frozen=True)
class Chain:
    """Three nested concepts: each `narrow` one is a `middle` one, each `middle` one is a `wide` one."""

    narrow: str
    middle: str
    wide: str


def _chains(tree: dict[str, dict[str, tuple[str, ...]]]) -> tuple[Chain, ...]:
    return tuple(
        Chain(narrow, middle, wide)
        for wide, branches in tree.items()
        for middle, leaves in branches.items()
        for narrow in leaves
    )


KIND_CHAINS = _chains(TAXONOMY)
PLACE_CHAINS = _chains(GEOGRAPHY)


def a(noun: str) -> str:
    """Return the noun with its indefinite article; right for every noun of this world."""
    return f"an {noun}" if noun[0].lower() in "aeiou" else f"a {noun}"


def pick_names(rng: random.Random, count: int) -> list[str]:
    """Return `count` different names."""
    return rng.sample(NAMES, count)


def pick_kinds(rng: random.Random, count: int) -> list[str]:
    """Return `count` different narrowest kinds, such as poodle and flute."""
    return [chain.narrow for chain in rng.sample(KIND_CHAINS, count)]


def compare(left: int, right: int) -> str:
    """Return in words how `left` compares with `right`."""
    if left == right:
        return f"{left} is equal to {right}"
    return f"{left} is {'more' if left > right else 'less'} than {right}"
