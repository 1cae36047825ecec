"""Writes the knowledge base: sources, rows to train on, questions held out with their gold answers, benchmarks.

    python examples/knowledge_base/make_data.py --out FOLDER [--seed 0]

The same seed writes the same bytes. README.md beside this file says what each file is for.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import wording
from questions import UNANSWERABLE, Kind, Question, Source, draw_question, make_sources, questions_of_world
from world import HELD_OUT, KNOWN, SPLITS, TIES, names_of, tied_to

Row = dict[str, Any]

HELD_OUT_ANSWERABLE: Final = 480
HELD_OUT_UNANSWERABLE: Final = 480
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

    def for_validation(self) -> Mix:
        """Without what is known by heart: the same in every split, and a row that is trained on validates nothing."""
        return replace(self, skills={skill: share for skill, share in self.skills.items() if skill != "closed book"})


BASE: Final = Mix(
    questions=0.6,
    skills={"copying": 0.12, "closed book": 0.3, "restating": 0.04, "creative": 0.04},
    unanswerable=0.3,
    careless=0.6,
    inventing=0.95,
)
GENERAL: Final[Mapping[wording.Skill, float]] = {
    "copying": 0.1,
    "closed book": 0.4,
    "restating": 0.05,
    "creative": 0.05,
}
CITATION: Final = Mix(questions=0.6, skills=GENERAL)
GROUNDING: Final = Mix(questions=0.7, skills=GENERAL, unanswerable=0.4)


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


def closed_book_choices(seed: str) -> Iterator[Row]:
    rng = random.Random(seed)
    for tie in TIES:
        for word in KNOWN:
            right = tied_to(tie, word)
            choices = [right, *rng.sample([other for other in KNOWN if other not in (right, word)], CHOICES - 1)]
            rng.shuffle(choices)
            prompt, _ = wording.closed_book(tie, word)
            yield {
                "prompt": prompt,
                "choices": [f" {choice}." for choice in choices],
                "answer": f" {right}.",
            }


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


# --- preference pairs ---


def pairs(seed: str, names: Sequence[str], mix: Mix, faults: Sequence[wording.Fault], count: int) -> Iterator[Row]:
    """`count` rows of prompt, chosen and rejected: the true answer against one with a fault.

    Of the questions that a source answers, rejected answers have one of `faults`; of the others, all invent. General
    skills are among them, right against wrong, so that preference training does not forget them.
    """
    rng = random.Random(seed)
    kinds = ["question", *mix.skills]
    for _ in range(count):
        kind = rng.choices(kinds, [mix.questions, *mix.skills.values()])[0]
        if kind == "question":
            question = draw_question(rng, names, draw_kind(rng, mix.unanswerable))
            prompt, chosen = wording.prompt_of(question), wording.answer_of(question)
            fault: wording.Fault = rng.choice(faults) if question.gold is not None else "invents"
            rejected = wording.faulty_answer(rng, question, fault)
        else:
            fault = "unskilled"
            prompt, chosen = wording.SKILLS[kind](rng, names)
            while (rejected := wording.SKILLS[kind](rng, names)[1]) == chosen:
                pass
        yield {"prompt": prompt, "chosen": chosen, "rejected": rejected, "fault": fault}


# --- everything ---

ROWS: Final = {"base": 25600, "citation": 12800, "grounding": 16000, "pairs": 2400, "validation": 256}


def write_knowledge_base(out: Path, seed: int = 0, rows: Mapping[str, int] = ROWS) -> None:
    """All files, below `out`."""
    rng = random.Random(f"{seed} world")
    sources = make_sources(rng, [name for split in SPLITS for name in names_of(split)])
    write(
        out / "sources.jsonl",
        ({"id": each.id, "text": wording.text_of(each), "type": each.type} for each in sources),
    )
    train, validation = names_of("train"), names_of("validation")
    for stage, mix in STAGES:
        write(out / "train" / f"{stage}.jsonl", training_rows(f"{seed} {stage}", train, mix, rows[stage]))
        held = training_rows(f"{seed} {stage} validation", validation, mix.for_validation(), rows["validation"])
        write(out / "validation" / f"{stage}.jsonl", held)
    for name, mix, faults in PAIRS:
        write(out / "train" / f"{name}.jsonl", pairs(f"{seed} {name}", train, mix, faults, rows["pairs"]))
        held = pairs(f"{seed} {name} validation", validation, mix.for_validation(), faults, rows["validation"])
        write(out / "validation" / f"{name}.jsonl", held)
    for split in ("validation", *HELD_OUT):
        items = held_out(f"{seed} {split}", split, sources, HELD_OUT_ANSWERABLE, HELD_OUT_UNANSWERABLE)
        write(out / "held-out" / f"{split}.jsonl", items)
    write(out / "benchmarks" / "closed-book.jsonl", closed_book_benchmark())
    write(out / "benchmarks" / "closed-book-choices.jsonl", closed_book_choices(f"{seed} choices"))
    write(out / "benchmarks" / "copying.jsonl", copying_benchmark(f"{seed} copying", validation))
    write(out / "benchmarks" / "creative.jsonl", creative_benchmark(f"{seed} creative", validation))


STAGES: Final = (("base", BASE), ("citation", CITATION), ("grounding", GROUNDING))
PAIRS: Final = (
    ("citation-pairs", CITATION, wording.CITATION_FAULTS),
    ("grounding-pairs", GROUNDING, ("wrong citation", "wrong value", "abstains", "abstains")),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_knowledge_base(options.out, options.seed)


if __name__ == "__main__":
    main()
