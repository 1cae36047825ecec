"""What the invented sources say, and questions about it, with the truth: which fact answers, in which source.

Sources of one world agree with each other: a people has two sources of two facts each. Training needs more than one
world holds, so it draws sources anew for every question, and nothing in them can be learned by heart. Must not know
how prompts and answers are worded.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from world import RELATIONS, VALUES

SOURCE_TYPES: Final = ("chronicle", "travel book", "market list", "letter")
SOURCES_ASKED: Final = (2, 3, 3)
"""How many sources a question comes with, each as often as it stands here."""

Kind = Literal["answerable", "people absent", "relation absent", "relation of another"]
UNANSWERABLE: Final[tuple[Kind, ...]] = ("people absent", "relation absent", "relation of another")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    people: str
    relation: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Two facts about one people, with different relations."""

    id: str
    type: str
    facts: tuple[Fact, ...]

    @property
    def people(self) -> str:
        return self.facts[0].people

    @property
    def relations(self) -> frozenset[str]:
        return frozenset(fact.relation for fact in self.facts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What the `people` do by `relation`, with `sources` to answer from. `gold`: None exactly where none of them says.

    No people and no relation occurs in two of the sources.
    """

    sources: tuple[Source, ...]
    people: str
    relation: str
    kind: Kind
    gold: Fact | None

    @property
    def gold_place(self) -> int | None:
        """Number of the source that answers, from 1."""
        return next((place for place, source in enumerate(self.sources, start=1) if self.gold in source.facts), None)


def make_sources(rng: random.Random, names: Sequence[str], each: int = 2) -> list[Source]:
    """The sources of a world in which `names` are the peoples: `each` of them for every one, two facts in each."""
    made = []
    for name in names:
        relations = rng.sample(RELATIONS, 2 * each)
        for place in range(each):
            facts = (
                Fact(people=name, relation=relation, value=rng.choice(VALUES[relation]))
                for relation in relations[2 * place : 2 * place + 2]
            )
            made.append(Source(id=f"{name}-{place + 1}", type=rng.choice(SOURCE_TYPES), facts=tuple(facts)))
    return made


def draw_sources(rng: random.Random, names: Sequence[str], count: int) -> tuple[Source, ...]:
    """`count` sources about different peoples of `names` as they might be in some world."""
    relations = rng.sample(RELATIONS, 2 * count)
    return tuple(
        Source(
            id=f"{people}-drawn",
            type=rng.choice(SOURCE_TYPES),
            facts=tuple(
                Fact(people=people, relation=relation, value=rng.choice(VALUES[relation]))
                for relation in relations[2 * place : 2 * place + 2]
            ),
        )
        for place, people in enumerate(rng.sample(names, count))
    )


def ask(
    rng: random.Random, sources: Sequence[Source], names: Sequence[str], place: int, fact: Fact, kind: Kind
) -> Question:
    """A question around `fact` of `sources[place]`: it is the answer, or stands beside what is asked in vain."""
    people, relation, gold = fact.people, fact.relation, None
    match kind:
        case "answerable":
            gold = fact
        case "people absent":
            present = {source.people for source in sources}
            people = rng.choice([name for name in names if name not in present])
        case "relation absent":
            said = frozenset().union(*(source.relations for source in sources))
            relation = rng.choice([each for each in RELATIONS if each not in said])
        case "relation of another":
            other = rng.choice([at for at in range(len(sources)) if at != place])
            relation = rng.choice(sources[other].facts).relation
    return Question(sources=tuple(sources), people=people, relation=relation, kind=kind, gold=gold)


def draw_question(rng: random.Random, names: Sequence[str], kind: Kind) -> Question:
    """A question about sources drawn for it alone."""
    sources = draw_sources(rng, names, rng.choice(SOURCES_ASKED))
    place = rng.randrange(len(sources))
    return ask(rng, sources, names, place, rng.choice(sources[place].facts), kind)


def questions_of_world(rng: random.Random, sources: Sequence[Source], kinds: Sequence[Kind]) -> Iterator[Question]:
    """A question of each of `kinds`, about sources of one world. No fact's turn comes twice before each had one."""
    names = sorted({source.people for source in sources})
    facts = [(source, fact) for source in sources for fact in source.facts]
    rng.shuffle(facts)
    for number, kind in enumerate(kinds):
        asked, fact = facts[number % len(facts)]
        beside = _beside(rng, asked, sources, rng.choice(SOURCES_ASKED) - 1)
        place = rng.randrange(len(beside) + 1)
        yield ask(rng, [*beside[:place], asked, *beside[place:]], names, place, fact, kind)


def _beside(rng: random.Random, asked: Source, sources: Sequence[Source], count: int) -> list[Source]:
    """`count` other sources, no two of which, nor `asked`, are about the same people or the same relation."""
    found: list[Source] = []
    peoples, relations = {asked.people}, set(asked.relations)
    while len(found) < count:
        source = rng.choice(sources)
        if source.people not in peoples and not source.relations & relations:
            found.append(source)
            peoples.add(source.people)
            relations |= source.relations
    return found
