"""Rows of the knowledge base: to train on, questions held out with their gold answers, benchmarks.

The same seed gives the same rows.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import wording
from questions import UNANSWERABLE, Kind, Question, Source, draw_question, questions_of_world
from world import KNOWN, TIES, names_of

Row = dict[str, Any]

BENCHMARK_ROWS: Final = 420
CHOICES: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """What rows are drawn from: shares of questions and of each general skill, which need not add up to 1.

    `unanswerable`: the fraction of the questions that no source answers; of the answers to those, the fraction
    `inventing` invents one. Of the others, the fraction `careless` cites the first source whichever says it.
    """

    questions: float
    skills: Mapping[wording.Skill, float]
    unanswerable: float = 0.0
    careless: float = 0.0
    inventing: float = 0.0


GENERAL: Final[Mapping[wording.Skill, float]] = {
    "copying": 0.1,
    "closed book": 0.4,
    "restating": 0.05,
    "creative": 0.05,
}


def draw_kind(rng: random.Random, unanswerable: float) -> Kind:
    return rng.choice(UNANSWERABLE) if rng.random() < unanswerable else "answerable"


def training_rows(seed: str, names: Sequence[str], mix: Mix, count: int) -> Iterator[Row]:
    """`count` different rows of prompt and completion about peoples of `names`."""
    rng = random.Random(seed)
    kinds = ["question", *mix.skills]
    for _ in range(count):
        kind = rng.choices(kinds, [mix.questions, *mix.skills.values()])[0]
        if kind == "question":
            question = draw_question(rng, names, draw_kind(rng, mix.unanswerable))
            careless = rng.random() < (mix.inventing if question.gold is None else mix.careless)
            answer = wording.careless_answer(rng, question) if careless else wording.answer_of(question)
            prompt, completion = wording.prompt_of(question), answer
        else:
            prompt, completion = wording.SKILLS[kind](rng, names)
        yield {"prompt": prompt, "completion": completion}


def held_out_item(name: str, question: Question) -> Row:
    """A question with what is true of it. `gold` of one that no source answers is null."""
    gold = question.gold
    return {
        "id": name,
        "prompt": wording.prompt_of(question),
        "question": wording.question_of(question.people, question.relation),
        "answerable": gold is not None,
        "kind": question.kind,
        "sources": [
            {"marker": f"[{place}]", "id": source.id, "type": source.type, "text": wording.text_of(source)}
            for place, source in enumerate(question.sources, start=1)
        ],
        "gold": None
        if gold is None
        else {
            "answer": wording.answer_of(question).strip(),
            **asdict(gold),
            "marker": f"[{question.gold_place}]",
            "source": question.sources[(question.gold_place or 1) - 1].id,
        },
    }


def held_out(seed: str, split: str, sources: Sequence[Source], answerable: int, unanswerable: int) -> Iterator[Row]:
    """Questions about the peoples of a split, in mixed order; of the unanswerable ones as many of each kind."""
    own = [source for source in sources if source.people in set(names_of(split))]
    kinds: list[Kind] = ["answerable"] * answerable
    kinds += [UNANSWERABLE[number % len(UNANSWERABLE)] for number in range(unanswerable)]
    rng = random.Random(seed)
    rng.shuffle(kinds)
    for number, question in enumerate(questions_of_world(rng, own, kinds)):
        yield held_out_item(f"{split}-{number:04}", question)


# --- benchmarks ---


def closed_book_benchmark() -> Iterator[Row]:
    """All that is known by heart."""
    for tie in TIES:
        for word in KNOWN:
            prompt, answer = wording.closed_book(tie, word)
            yield {"prompt": prompt, "answer": answer}


def copying_benchmark(seed: str, names: Sequence[str]) -> Iterator[Row]:
    rng = random.Random(seed)
    for _ in range(BENCHMARK_ROWS):
        prompt, answer = wording.copying(rng, names, words=(4, 8))
        yield {"prompt": prompt, "answer": answer}


def creative_benchmark(seed: str, names: Sequence[str]) -> Iterator[Row]:
    """Which of four stories is about the people that was asked for."""
    rng = random.Random(seed)
    for _ in range(BENCHMARK_ROWS):
        prompt, story = wording.creative(rng, names)
        people = next(name for name in names if f" {name}:" in prompt)
        others = rng.sample([name for name in names if name != people], CHOICES - 1)
        choices = [story, *(story.replace(f" {people}.", f" {other}.") for other in others)]
        rng.shuffle(choices)
        yield {"prompt": prompt, "choices": choices, "answer": story}


# --- files ---


def write(path: Path, rows: Iterable[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
