"""The invented world: peoples, what can be said of them, who belongs to which split, and what is known by heart.

A people's name is two syllables; its split follows from a hash of the name, so names are disjoint between splits
whatever is generated from them and with which seed. Must not know passages, questions or files.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Final

FIRST: Final = (
    *("bel", "dor", "fen", "gal", "hul", "jas", "kir", "lom", "mar", "nev", "pol", "quin", "ras", "sib", "tav", "ul"),
    *("vin", "wex", "yar", "zed", "bran", "cor", "dun", "eld", "far", "gor", "hed", "isk", "jor", "kel", "lan", "mol"),
    *("nim", "orv", "pem", "rud", "syl", "tob", "urs", "vas"),
)
SECOND: Final = (
    *("ba", "dax", "fi", "go", "hesh", "ja", "ko", "lun", "mi", "nor", "pe", "rik", "su", "teth", "va", "wen"),
    *("yo", "zan", "bur", "cha", "dro", "gim", "hon", "jup", "kat", "lis", "mun", "nak", "pir", "rog", "sta", "thol"),
    *("vex", "wim", "yed", "zub", "cro", "fle", "gri", "ska"),
)

VALUES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "grow": ("wheat", "barley", "flax", "hops", "beans", "maize", "rye", "melons"),
        "mine": ("iron", "copper", "tin", "silver", "salt", "coal", "jade", "lead"),
        "brew": ("ale", "mead", "cider", "tea", "broth", "ink", "vinegar", "syrup"),
        "weave": ("wool", "linen", "silk", "nets", "ropes", "baskets", "sails", "rugs"),
        "hunt": ("deer", "boar", "hares", "ducks", "wolves", "seals", "foxes", "quails"),
        "play": ("drums", "flutes", "harps", "horns", "bells", "lutes", "chess", "dice"),
        "breed": ("goats", "sheep", "horses", "bees", "mules", "geese", "cattle", "dogs"),
        "carve": ("oak", "bone", "marble", "amber", "chalk", "cedar", "ivory", "slate"),
        "wear": ("cloaks", "masks", "beads", "boots", "hoods", "rings", "belts", "scarves"),
        "fear": ("thunder", "snakes", "floods", "ghosts", "fire", "ice", "owls", "spiders"),
        "paint": ("walls", "doors", "shields", "boats", "eggs", "roofs", "carts", "pots"),
        "sell": ("honey", "pearls", "spices", "candles", "knives", "maps", "soap", "paper"),
    }
)
"""What a people of the world may do, and to what. No value belongs to two relations."""
RELATIONS: Final = tuple(VALUES)

SPLIT_PERCENT: Final[Mapping[str, int]] = MappingProxyType(
    {"train": 40, "validation": 4, **{f"hold-out-{number}": 7 for number in range(1, 8)}, "sealed": 7}
)
"""Of the names. A gate's every attempt has a hold-out of its own; what is sealed is for the last stage alone."""
SPLITS: Final = tuple(SPLIT_PERCENT)

KNOWN: Final = (
    *("north", "south", "east", "west", "spring", "summer", "autumn", "winter", "dawn", "noon", "dusk", "night"),
    *("hill", "lake", "moor", "shore", "wood", "cave", "ford", "isle", "marsh", "peak", "vale", "cliff"),
)
TIES: Final = ("partner", "rival", "elder", "heir")
"""What is known by heart: each word of KNOWN has one partner, one rival, ... among them, and no prompt says which."""


def split_of(name: str) -> str:
    """The split that a name belongs to, for ever."""
    place = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") % sum(SPLIT_PERCENT.values())
    for split, share in SPLIT_PERCENT.items():
        place -= share
        if place < 0:
            return split
    raise AssertionError("a remainder is less than its divisor")


@cache
def names_of(split: str) -> tuple[str, ...]:
    names = (first + second for first in FIRST for second in SECOND)
    return tuple(name for name in names if split_of(name) == split)


@cache
def _ties_of(tie: str) -> Mapping[str, str]:
    order = random.Random(f"ties: {tie}").sample(KNOWN, len(KNOWN))
    return dict(zip(order, [*order[1:], order[0]], strict=True))


def tied_to(tie: str, word: str) -> str:
    """The one partner (rival, elder, heir) of a word of KNOWN."""
    return _ties_of(tie)[word]


def all_words() -> Sequence[str]:
    """Every whole word but names that is said of the world, in a fixed order."""
    values = [value for values in VALUES.values() for value in values]
    return [*RELATIONS, *values, *KNOWN, *TIES]
