"""A whole workflow's files of the small world: data, configuration, base model. Healthy, unless a fault is put in.

Must not know which faults there are.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from realign_cluster.domain.training import OptimizerSettings, TrainSettings
from tests.workflows import small_world as world
from tests.workflows.local_jobs import train_here
from tests.workflows.small_model import write_model
from tests.workflows.small_world import Row

BASE_STEPS = 1400
BASE_ROWS = 24000
COUNTS = {
    "items": 140,
    "sealed": 80,
    "practice": 240,
    "citation": 800,
    "valid": 240,
    "labels": 200,
    "queries": 96,
    "pairs": 96,
}


@dataclass(slots=True, kw_only=True)
class SmallWorkflow:
    """What a user would have on disk before running it; a fault changes it in place."""

    name: str = "source-attribution"
    seed: int = 0
    data: dict[str, list[Row]] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    noise: float = 0.0  # standard deviation added to the base model's weights, as a part of their own

    def write(self, folder: Path, base: Path) -> Path:
        """Writes all files; returns the configuration's."""
        folder.mkdir(parents=True)
        for name, rows in self.data.items():
            write_rows(folder / f"{name}.jsonl", rows)
        model = folder / "base"
        shutil.copytree(base, model)
        path = folder / "workflow.toml"
        path.write_text("\n".join(_toml(self.config)) + "\n")
        return path


def healthy(
    seed: int, name: str = "source-attribution", counts: Mapping[str, int] = MappingProxyType(COUNTS)
) -> SmallWorkflow:
    """Everything drawn by the seed; so many rows of each set."""
    rng = random.Random(f"small workflow {seed}")
    facts = world.all_facts()
    drawn = list(world.questions(rng, counts["items"] + counts["sealed"] + counts["practice"], unanswerable=0.3))
    items, sealed, practice = _cut(drawn, (counts["items"], counts["sealed"], counts["practice"]))
    trained = list(world.questions(rng, counts["citation"] + counts["valid"], unanswerable=0.3, other_than=drawn))
    citation, valid = _cut(trained, (counts["citation"], counts["valid"]))
    data: dict[str, list[Row]] = {
        "sources": [world.source_row(fact) for fact in facts],
        "items": [world.item(f"i{at}", each) for at, each in enumerate(items)],
        "sealed": [world.item(f"s{at}", each) for at, each in enumerate(sealed)],
        "practice": [
            {**world.item(f"p{at}", each), "completion": world.answer_of(each)} for at, each in enumerate(practice)
        ],
        "citation": [{"prompt": world.prompt_of(each), "completion": world.answer_of(each)} for each in citation],
        "valid": [{"prompt": world.prompt_of(each), "completion": world.answer_of(each)} for each in valid],
        "general": [world.general_row(word) for word in world.KNOWN] * 8,
        "labels": _labels(rng, counts["labels"]),
        "hearts": [
            {"prompt": row["prompt"], "answer": row["completion"]} for row in map(world.general_row, world.KNOWN)
        ],
    }
    if name == "source-attribution":
        asked = rng.sample(facts, counts["queries"])
        data["queries"] = [{"query": " ".join(fact), "relevant": [world.source_row(fact)["id"]]} for fact in asked]
    else:
        asked = rng.sample(facts, counts["pairs"])
        data["pairs"] = [{"claim": world.sentence(fact), "sources": [world.source_row(fact)]} for fact in asked]
    return SmallWorkflow(name=name, seed=seed, data=data, config=_configuration(name, seed, data))


def make_base(folder: Path, seed: int = 0) -> Path:
    """A model that answers in the right form, cites the first source more often than not, and rather invents than
    says nothing; trained once and kept.
    """
    if (folder / "trained" / "config.json").exists():
        return folder / "trained"
    rng = random.Random(f"base {seed}")
    rows: list[Row] = []
    words = [*world.NAMES, *(value for values in world.VALUES.values() for value in values)]
    for _ in range(BASE_ROWS):
        drawn = rng.random()
        if drawn < 0.15:
            rows.append(world.general_row(rng.choice(world.KNOWN)))
        elif drawn < 0.4:
            copied = " ".join(rng.sample(words, 8))
            rows.append({"prompt": f"{copied}:", "completion": f" {copied}"})
        else:
            question = world.draw_question(rng, answerable=rng.random() > 0.3)
            answer = world.careless_answer(rng, question, 0.6)
            rows.append({"prompt": world.prompt_of(question), "completion": answer})
    write_model(folder / "random", seed)
    write_rows(folder / "rows.jsonl", rows)
    settings = TrainSettings(
        steps=BASE_STEPS,
        global_batch=64,
        fine_tune="full",
        optimizer=OptimizerSettings(learning_rate=3e-3, warmup_steps=50, final_fraction=0.1),
    )
    _, failed = train_here(folder / "random", folder / "rows.jsonl", settings, folder / "making")
    assert not failed, failed
    (folder / "making").rename(folder / "trained")
    return folder / "trained"


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _cut(drawn: list[Any], sizes: Iterable[int]) -> list[list[Any]]:
    found, at = [], 0
    for size in sizes:
        found.append(drawn[at : at + size])
        at += size
    return found


def _labels(rng: random.Random, count: int) -> list[Row]:
    rows: list[Row] = []
    for at in range(count):
        question = world.draw_question(rng, answerable=True)
        fact = question.sources[(question.place or 1) - 1]
        evidence = " ".join(world.sentence(each) for each in question.sources)
        other = rng.choice([value for value in world.VALUES[fact[1]] if value != fact[2]])
        claim = world.sentence(fact if at % 2 else (fact[0], fact[1], other))
        rows.append({"claim": claim, "evidence": evidence, "label": "supported" if at % 2 else "contradicted"})
    return rows


def _configuration(name: str, seed: int, data: dict[str, list[Row]]) -> dict[str, Any]:
    def training(steps: int, batch: int, rate: float, **more: Any) -> dict[str, Any]:
        optimizer = {"learning_rate": rate, "warmup_steps": 5, "weight_decay": 0.0}
        return {"steps": steps, "global_batch": batch, "fine_tune": "full", "optimizer": optimizer, **more}

    accuracy = {"citation_precision": 0.7, "citation_recall": 0.7}  # as much as so short a training is good for
    facts = {"factuality": 0.7, "hallucination_rate": 0.3}
    gates = {
        "source-attribution": dict.fromkeys(("citation", "verification", "optimisation", "evaluation"), accuracy),
        "antihallucination": {
            "citation": {"factuality": 0.7},
            "detection": {"hallucination_rate": 0.3},
            "evaluation": {**facts, **accuracy},
        },
    }
    return {
        "seed": seed,
        "mode": "permissive",
        "attempts": 1,
        "model": {"path": "base", "max_tokens": 48},
        "data": {name: f"{name}.jsonl" for name in data if name != "hearts"},
        "benchmarks": {"hearts": "hearts.jsonl"},
        "generation": {"max_new_tokens": 16, "most_claims": 2},
        "cleaning": {"taught": ["hearts"], "general": {"duplicates": "keep"}},
        "mix": {"general": 0.3},
        "preference": {"samples": 2, "abstention": 0.0, "prompts": 160, "least_pairs": 20, "probe_prompts": 96},
        "iteration": {"rounds": 1, "rows": 400},
        "training": {
            "citation": training(100, 32, 2e-3),
            "preference": training(30, 16, 5e-5, method="dpo"),
            "iteration": training(10, 32, 1e-4),
        },
        "gates": gates[name],
    }


def _toml(values: dict[str, Any], path: tuple[str, ...] = ()) -> Iterable[str]:
    """Plain values first, then tables."""
    if path:
        yield f"[{'.'.join(path)}]"
    yield from (f"{name} = {json.dumps(value)}" for name, value in values.items() if not isinstance(value, dict))
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _toml(value, (*path, name))
