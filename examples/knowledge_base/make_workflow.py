"""Writes all that a workflow takes from the knowledge base: its configuration, and its data in the workflow's forms.

    python examples/knowledge_base/make_workflow.py source-attribution --out FOLDER [--seed 0]

The model that it begins with, "model" beside the configuration, is primed-model/ in 32-bit floats.
"""

from __future__ import annotations

import argparse
import random
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import make_data
import make_model
import mlx.core as mx
import wording
from questions import UNANSWERABLE, Fact, Kind, Question, draw_question, make_sources
from world import SPLITS, VALUES, names_of

FOLDER: Final = Path(__file__).parent
WORKFLOWS: Final = ("source-attribution", "antihallucination")
ROWS: Final = {
    "preparation": 14000,
    "citation": 16000,
    "general": 8000,
    "practice": 3000,
    "queries": 400,
    "pairs": 400,
    "labels": 400,
    "valid": 300,
    "items": 480,
    "benchmark": 420,
}
UNANSWERABLE_SHARE: Final = {"source-attribution": 0.0, "antihallucination": 0.5}
"""Of the questions that are trained on."""
CARELESS: Final = {"source-attribution": 0.8, "antihallucination": 0.6}  # of the answers of the base
HELD_OUT_UNANSWERABLE: Final = {"source-attribution": 0.0, "antihallucination": 0.55}
Row = dict[str, Any]


def write_workflow(workflow: str, out: Path, seed: int = 0, rows: Mapping[str, int] = ROWS) -> None:
    """Everything below `out`: workflow.toml, data/, model/."""
    data, unanswerable = out / "data", UNANSWERABLE_SHARE[workflow]
    asked_in_vain = HELD_OUT_UNANSWERABLE[workflow]
    train, validation = names_of("train"), names_of("validation")
    sources = make_sources(random.Random(f"{seed} world"), [name for split in SPLITS for name in names_of(split)])
    own = make_data.Mix(questions=1.0, skills={}, unanswerable=unanswerable)
    careless = make_data.Mix(
        questions=1.0, skills={}, unanswerable=unanswerable, careless=CARELESS[workflow], inventing=0.95
    )
    skills = make_data.Mix(questions=0.0, skills=make_data.GENERAL)
    files: dict[str, Iterable[Row]] = {
        "sources": ({"id": s.id, "text": wording.text_of(s), "type": s.type} for s in sources),
        "items": held_out(f"{seed} items", "hold-out-1", sources, rows["items"], asked_in_vain),
        "sealed": held_out(f"{seed} sealed", "sealed", sources, rows["items"], asked_in_vain),
        "practice": practice(f"{seed} practice", train, unanswerable, rows["practice"]),
        "citation": make_data.training_rows(f"{seed} citation", train, own, rows["citation"]),
        "preparation": make_data.training_rows(f"{seed} base", train, careless, rows["preparation"]),
        "general": make_data.training_rows(f"{seed} general", train, skills, rows["general"]),
        "valid": make_data.training_rows(f"{seed} valid", validation, own, rows["valid"]),
        "labels": labels(f"{seed} labels", validation, rows["labels"]),
        "closed-book": make_data.closed_book_benchmark(),
        "copying": list(make_data.copying_benchmark(f"{seed} copying", validation))[: rows["benchmark"]],
        "creative": list(make_data.creative_benchmark(f"{seed} creative", validation))[: rows["benchmark"]],
        "queries" if workflow == "source-attribution" else "pairs": (
            queries(f"{seed} queries", "hold-out-2", sources, rows["queries"])
            if workflow == "source-attribution"
            else pairs(f"{seed} pairs", "hold-out-2", sources, rows["pairs"])
        ),
    }
    for name, found in files.items():
        make_data.write(data / f"{name}.jsonl", found)
    shutil.copyfile(FOLDER / "workflows" / f"{workflow}.toml", out / "workflow.toml")
    write_primed_model(out / "model")


def write_primed_model(folder: Path) -> None:
    """primed-model/ in 32-bit floats, as it is trained: it is kept in 16 bits only to be small."""
    kept = mx.load(str(FOLDER / "primed-model" / "model.safetensors"))
    assert isinstance(kept, dict)
    make_model.write_folder(folder, {name: weight.astype(mx.float32) for name, weight in kept.items()})


def item_of(name: str, question: Question) -> Row:
    """A question in the workflow's form: what it is about, and nothing of the answer."""
    row = make_data.held_out_item(name, question)
    sources = [{"id": s["id"], "text": s["text"], "type": s["type"]} for s in row["sources"]]
    return {
        "id": name,
        "prompt": row["prompt"],
        "sources": sources,
        "answerable": row["answerable"],
        "group": question.relation if row["answerable"] else question.kind,
    }


def held_out(seed: str, split: str, sources: Sequence[Any], answerable: int, unanswerable: float) -> Iterator[Row]:
    """About peoples that nothing is trained on; `answerable` of them have an answer, beside them the share without."""
    without = round(answerable * unanswerable / (1 - unanswerable))
    for row in make_data.held_out(seed, split, sources, answerable, without):
        gold = row["gold"]
        group = row["kind"] if gold is None else gold["relation"]
        kept = [{name: source[name] for name in ("id", "text", "type")} for source in row["sources"]]
        yield {
            "id": row["id"],
            "prompt": row["prompt"],
            "sources": kept,
            "answerable": gold is not None,
            "group": group,
        }


def practice(seed: str, names: Sequence[str], unanswerable: float, count: int) -> Iterator[Row]:
    """Questions about peoples that are trained on, with the true answer."""
    rng = random.Random(seed)
    for number in range(count):
        kind: Kind = rng.choice(UNANSWERABLE) if rng.random() < unanswerable else "answerable"
        question = draw_question(rng, names, kind)
        yield item_of(f"practice-{number:05}", question) | {"completion": wording.answer_of(question)}


def queries(seed: str, split: str, sources: Sequence[Any], count: int) -> Iterator[Row]:
    for row in make_data.held_out(seed, split, sources, count, 0):
        yield {"query": row["question"], "relevant": [row["gold"]["source"]]}


def pairs(seed: str, split: str, sources: Sequence[Any], count: int) -> Iterator[Row]:
    """What was collected as facts, with the sources it was collected from; one in fifty was copied wrongly."""
    rng = random.Random(f"{seed} errors")
    for row in make_data.held_out(seed, split, sources, count, 0):
        fact = Fact(people=row["gold"]["people"], relation=row["gold"]["relation"], value=row["gold"]["value"])
        if rng.random() < 0.02:
            fact = _with_another_value(rng, fact)
        kept = [{name: source[name] for name in ("id", "text")} for source in row["sources"]]
        yield {"claim": wording.sentence(fact), "sources": kept}


def labels(seed: str, names: Sequence[str], count: int) -> Iterator[Row]:
    """Claims with a source and what is true of them: as many of each label, by the world and not by their texts."""
    rng = random.Random(seed)
    for number in range(count):
        question = draw_question(rng, names, "answerable")
        assert question.gold is not None
        said = question.sources[(question.gold_place or 1) - 1]
        other = next(source for source in question.sources if source is not said)
        match number % 4:
            case 0 | 1:
                claim, evidence, label = question.gold, said, "supported"
            case 2:
                claim, evidence, label = _with_another_value(rng, question.gold), said, "contradicted"
            case _:
                claim, evidence, label = question.gold, other, "unverifiable"
        yield {
            "id": f"label-{number:04}",
            "claim": wording.sentence(claim),
            "evidence": wording.text_of(evidence),
            "label": label,
        }


def _with_another_value(rng: random.Random, fact: Fact) -> Fact:
    others = [value for value in VALUES[fact.relation] if value != fact.value]
    return Fact(people=fact.people, relation=fact.relation, value=rng.choice(others))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("workflow", choices=WORKFLOWS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_workflow(options.workflow, options.out, options.seed)


if __name__ == "__main__":
    main()
