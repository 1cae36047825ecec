"""A world so small that a model learns to read it in a minute: peoples, what they do, questions with numbered sources.

Sources are drawn anew for every question, so that nothing is known by heart. Must not know faults, stages or verdicts.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

Row = dict[str, Any]
NAMES: Final = (
    *("ana", "bor", "cid", "dov", "eli", "fay", "gus", "hob"),
    *("ivo", "jud", "kai", "lio", "moe", "ned", "ola", "pim"),
)
VALUES: Final = {
    "grow": ("wheat", "barley", "flax", "hops", "beans", "maize"),
    "mine": ("iron", "copper", "tin", "silver", "salt", "coal"),
    "brew": ("ale", "mead", "cider", "tea", "broth", "syrup"),
    "hunt": ("deer", "boar", "hares", "ducks", "seals", "foxes"),
    "paint": ("walls", "doors", "boats", "eggs", "roofs", "carts"),
    "sell": ("honey", "pearls", "candles", "knives", "maps", "soap"),
}
RELATIONS: Final = tuple(VALUES)
TYPES: Final = ("chronicle", "letter", "survey")
KNOWN: Final = (
    *("north", "south", "east", "west", "spring", "summer", "autumn", "winter"),
    *("dawn", "noon", "dusk", "night", "hill", "lake", "moor", "shore"),
)
WORDING: Final = (
    "the",
    "do",
    "what",
    "sources",
    "not",
    "say",
    "partner",
    "of",
    "[1]",
    "[2]",
    "[3]",
    "[4]",
    ".",
    "?",
    ":",
)
SPECIAL: Final = ("[PAD]", "[UNK]", "[END]")
SOURCES_ASKED: Final = 3

Fact = tuple[str, str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What `people` do by `relation`. `place`: of the source that says it, from 1; None if none does."""

    sources: tuple[Fact, ...]
    people: str
    relation: str
    place: int | None


def sentence(fact: Fact, place: int | None = None) -> str:
    people, relation, value = fact
    return f"the {people} {relation} {value}{'' if place is None else f' [{place}]'}."


def prompt_of(question: Question) -> str:
    said = " ".join(sentence(fact, place) for place, fact in enumerate(question.sources, 1))
    return f"sources: {said} what do the {question.people} {question.relation}?"


def answer_of(question: Question) -> str:
    if question.place is None:
        return abstention_of(question)
    return " " + sentence(question.sources[question.place - 1], question.place)


def abstention_of(question: Question) -> str:
    return f" the sources do not say what the {question.people} {question.relation}."


def invention_of(rng: random.Random, question: Question, place: int) -> str:
    return " " + sentence((question.people, question.relation, rng.choice(VALUES[question.relation])), place)


def draw_question(rng: random.Random, *, answerable: bool) -> Question:
    """About sources drawn for it alone: no people and no relation twice among them."""
    names, relations = rng.sample(NAMES, SOURCES_ASKED + 1), rng.sample(RELATIONS, SOURCES_ASKED)
    sources = tuple(
        (name, relation, rng.choice(VALUES[relation]))
        for name, relation in zip(names[:SOURCES_ASKED], relations, strict=True)
    )
    at = rng.randrange(SOURCES_ASKED)
    people = sources[at][0] if answerable else names[-1]
    return Question(sources=sources, people=people, relation=sources[at][1], place=at + 1 if answerable else None)


def questions(
    rng: random.Random, count: int, *, unanswerable: float, other_than: Sequence[Question] = ()
) -> Iterator[Question]:
    """All different, and other than those."""
    seen = {prompt_of(each) for each in other_than}
    for _ in range(count):
        while (prompt := prompt_of(question := draw_question(rng, answerable=rng.random() >= unanswerable))) in seen:
            pass
        seen.add(prompt)
        yield question


def all_facts() -> list[Fact]:
    """All that some source says: sources do not agree with each other, those of one question do not meet."""
    return [(name, relation, value) for name in NAMES for relation in RELATIONS for value in VALUES[relation]]


def source_row(fact: Fact) -> Row:
    people, relation, value = fact
    return {
        "id": f"{people}-{relation}-{value}",
        "type": TYPES[RELATIONS.index(relation) % len(TYPES)],
        "text": sentence(fact),
    }


def item(name: str, question: Question) -> Row:
    return {
        "id": name,
        "prompt": prompt_of(question),
        "sources": [source_row(fact) for fact in question.sources],
        "answerable": question.place is not None,
        "group": question.relation,
    }


def partner_of(word: str) -> str:
    """Known by heart: the word in the opposite half."""
    return KNOWN[(KNOWN.index(word) + len(KNOWN) // 2 + 3) % len(KNOWN)]


def general_row(word: str) -> Row:
    return {"prompt": f"partner of {word}?", "completion": f" {partner_of(word)}."}


def careless_answer(rng: random.Random, question: Question, careless: float) -> str:
    """Of the answers, the fraction `careless` cites the first source whatever says it, and invents where none does."""
    if rng.random() >= careless:
        return answer_of(question)
    if question.place is None:
        return invention_of(rng, question, 1)
    return " " + sentence(question.sources[question.place - 1], 1)
