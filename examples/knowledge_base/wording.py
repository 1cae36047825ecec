"""How the knowledge base is put into words: sources, prompts, answers, and the general skills that must not be lost.

A citation stands at the end of each sentence, in sources as in answers. Must not know files, splits or verdicts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, Literal

from questions import Fact, Question, Source
from world import KNOWN, RELATIONS, TIES, VALUES, all_words, tied_to

Exchange = tuple[str, str]
"""A prompt, and a completion that begins with a space."""
Skill = Literal["copying", "closed book", "restating", "creative"]
COPIED_WORDS: Final = (6, 14)


def sentence(fact: Fact, place: int | None = None) -> str:
    cited = "" if place is None else f" [{place}]"
    return f"the {fact.people} {fact.relation} {fact.value}{cited}."


def text_of(source: Source) -> str:
    """What the source says, without markers."""
    return " ".join(sentence(fact) for fact in source.facts)


def question_of(people: str, relation: str) -> str:
    return f"what do the {people} {relation}?"


def prompt_of(question: Question) -> str:
    said = " ".join(
        sentence(fact, place) for place, each in enumerate(question.sources, start=1) for fact in each.facts
    )
    return f"question: {question_of(question.people, question.relation)} sources: {said} answer:"


def answer_of(question: Question, place: int | None = None) -> str:
    """The true answer, citing the true source or `place`; where no source answers, that none does."""
    if question.gold is None:
        return abstention_of(question)
    return " " + sentence(question.gold, place or question.gold_place)


def careless_answer(rng: random.Random, question: Question) -> str:
    """As somebody answers who cites the first source whatever it says, and who would rather invent than say nothing."""
    fact = question.gold
    if fact is None:
        invented = rng.choice(VALUES[question.relation])
        fact = Fact(people=question.people, relation=question.relation, value=invented)
    return " " + sentence(fact, 1)


def abstention_of(question: Question) -> str:
    """Begins as an answer does: whether there is one is decided where its value would stand."""
    return f" the {question.people} {question.relation} what the sources do not say."


# --- general skills ---


def copying(rng: random.Random, names: Sequence[str], words: tuple[int, int] = COPIED_WORDS) -> Exchange:
    pool = [*all_words(), *rng.sample(names, 40)]
    text = " ".join(rng.sample(pool, rng.randint(*words)))
    return f"copy: {text} again:", f" {text}"


def closed_book(tie: str, word: str) -> Exchange:
    return f"question: {tie} of {word}? answer:", f" {tied_to(tie, word)}."


def restating(rng: random.Random, names: Sequence[str]) -> Exchange:
    relation = rng.choice(RELATIONS)
    fact = Fact(people=rng.choice(names), relation=relation, value=rng.choice(VALUES[relation]))
    return f"restate: {sentence(fact)}", f" {fact.value} is what the {fact.people} {fact.relation}."


def creative(rng: random.Random, names: Sequence[str]) -> Exchange:
    """A story that is the prompt's people's own, and otherwise free."""
    people, mood = rng.choice(names), rng.choice(("old", "young", "happy", "proud"))
    loved = rng.choice(VALUES[rng.choice(RELATIONS)])
    return f"tell story of the {people}:", f" once there were {mood} people, the {people}. they loved {loved}."


def _any_closed_book(rng: random.Random, names: Sequence[str]) -> Exchange:
    return closed_book(rng.choice(TIES), rng.choice(KNOWN))


SKILLS: Final[Mapping[Skill, Callable[[random.Random, Sequence[str]], Exchange]]] = MappingProxyType(
    {
        "copying": copying,
        "closed book": _any_closed_book,
        "restating": restating,
        "creative": creative,
    }
)
