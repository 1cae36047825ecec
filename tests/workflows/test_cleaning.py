"""What stages train on holds nothing of what models are judged on, and nothing twice, as the configuration says."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from realign_cluster.coordinator.workflow_jobs_here import derive_here
from realign_cluster.store.artifacts import ArtifactStore
from realign_cluster.workflows.bodies import citation_training, optimisation, preparation
from realign_cluster.workflows.cleaning import Cleaned, clean_rows, cleaned, cleaned_with_general
from realign_cluster.workflows.config import CleaningConfig, WorkflowConfig
from realign_cluster.workflows.derive import derive
from realign_cluster.workflows.jobs import ArtifactId, Ask, Derive, JobResult, ModelRef, Train, job_key
from realign_cluster.workflows.stage import Context, Outcome, State
from realign_cluster.workflows.tables import workflow_named
from tests.workflows.made import SFT, config

QUESTION = "ash birch cedar daisy elm fern gorse hazel iris juniper kelp larch maple nettle oak pine quince reed"
WORDS = QUESTION.split()
TEXTS = {
    "itself": QUESTION,
    "quoted": f"somebody asked once {' '.join(WORDS[2:17])} and nobody knew what to say",
    "half": f"{' '.join(WORDS[:10])} is a list that somebody wrote down and then forgot",
    "other": "of rivers that reach no sea there are more than most people believe to exist",
    "again": "of rivers that reach no sea there are more than most people believe to exist",
    "nearly": "of rivers that reach no sea there are more than most people believe to exist anywhere",
}
MOON = "Which moon is the largest?"
HELD_OUT = {"items": [{"prompt": QUESTION}], "sealed": [{"prompt": MOON}]}
Rows = list[dict[str, Any]]


def clean(folder: Path, rows: Rows, held_out: dict[str, Rows], of: str, **cleaning: Any) -> tuple[Rows, dict[str, Any]]:
    """The rows that are left, and what was said of the others."""
    store = ArtifactStore(folder / "artifacts")
    inputs = {name: ArtifactId(store.put_rows(each)) for name, each in {"rows": rows, **held_out}.items()}
    rules = getattr(CleaningConfig.model_validate({of: cleaning}), of)
    done = derive_here(
        derive(clean_rows, of, inputs=inputs, **rules.model_dump(mode="json")), store, folder / "scratch"
    )
    counted = done.value
    assert counted["rows"] == sum(counted[why] for why in ("kept", "contaminated", "doubled", "nearly doubled"))
    return list(store.rows(done.outputs["rows"])), counted


def kept(folder: Path, of: str, **cleaning: Any) -> tuple[set[str], dict[str, Any]]:
    rows = [{"prompt": text, "completion": "yes", "name": name} for name, text in TEXTS.items()]
    left, counted = clean(folder, rows, HELD_OUT, of, **cleaning)
    return {row["name"] for row in left}, counted


@pytest.mark.parametrize(
    ("of", "cleaning", "dropped"),
    [
        ("citation", {}, {"itself", "again"}),
        ("preparation", {}, {"itself", "again"}),
        ("practice", {}, {"itself", "again"}),
        ("general", {}, {"itself", "quoted", "half", "again", "nearly"}),
        ("citation", {"duplicates": "near"}, {"itself", "again", "nearly"}),
        ("citation", {"duplicates": "keep"}, {"itself"}),
        ("citation", {"contamination": ["exact", "13-gram"]}, {"itself", "again", "quoted"}),
        ("citation", {"contamination": ["8-gram coverage"]}, {"itself", "again", "quoted", "half"}),
        ("general", {"duplicates": "exact", "contamination": []}, {"again"}),
    ],
)
def test_what_is_dropped_is_what_was_asked_for(of: str, cleaning: Any, dropped: set[str], tmp_path: Path) -> None:
    left, counted = kept(tmp_path, of, **cleaning)
    assert set(TEXTS) - left == dropped
    assert counted["doubled"] == ("again" in dropped)
    assert counted["nearly doubled"] == ("nearly" in dropped)
    assert counted["contaminated"] == len(dropped & {"itself", "quoted", "half"})


def test_what_rows_hold_is_counted_by_set_and_by_what_found_it(tmp_path: Path) -> None:
    _, counted = kept(tmp_path, "general")
    assert counted["holding"] == {"items": {"13-gram": 1, "8-gram coverage": 1, "exact": 1}}


def test_a_row_that_goes_takes_no_copy_of_it_along(tmp_path: Path) -> None:
    """What quotes a question in full goes; what is nearly the same, and quotes too little of it, is the first then."""
    begun = "of all the rivers that reach no sea there are more than most people would ever believe to exist: "
    rows = [{"text": begun + " ".join(WORDS[:count])} for count in (13, 12)]
    rules = {"duplicates": "near", "contamination": ["13-gram"]}
    assert clean(tmp_path, rows, HELD_OUT, "general", **rules)[0] == rows[1:]
    assert clean(tmp_path / "without", rows, {}, "general", **rules)[0] == rows[:1]


def test_a_benchmark_may_have_the_name_of_another_set(tmp_path: Path) -> None:
    held_out: dict[str, Rows] = {**HELD_OUT, "benchmark items": [{"prompt": "2 + 2 =", "answer": "4"}]}
    rows = [{"text": QUESTION}, {"text": "2 + 2"}, {"text": "Jupiter has many."}]
    left, counted = clean(tmp_path, rows, held_out, "citation")
    assert left == rows[2:]
    assert counted["holding"] == {"items": {"exact": 1}, "benchmark items": {"exact": 1}}


def test_questions_of_benchmarks_are_held_out_and_validation_rows_but_not_what_they_ask(tmp_path: Path) -> None:
    held_out = {
        "benchmark sums": [{"prompt": "2 + 2 =", "choices": [" 3", " 4"], "answer": " 4"}],
        "benchmark signs": [{"prompt": "?!", "answer": "nothing"}],  # has no word that could be elsewhere
        "valid": [{"prompt": "Name a colour.", "completion": "Blue."}],
    }
    rows = [
        {"prompt": "2 + 2?", "completion": "It is 4."},
        {"prompt": "Say it.", "completion": "2 + 2"},
        {"prompt": "Name a colour.", "completion": "blue"},
        {"prompt": "Name a colour.", "completion": "Green."},
    ]
    left, counted = clean(tmp_path, rows, held_out, "citation")
    assert left == rows[3:]
    assert counted["holding"] == {"sums": {"exact": 2}, "valid": {"exact": 1}}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": MOON, "completion": "Ganymede."},
        {"prompt": None, "text": MOON},
        {"prompt": [{"role": "user", "content": MOON}], "response": "Ganymede."},
        {
            "prompt": [{"role": "system", "content": "Answer."}, {"role": "user", "content": MOON}],
            "completion": "Ganymede.",
        },
        {"messages": [{"role": "user", "content": MOON}, {"role": "assistant", "content": "Ganymede."}]},
        {
            "messages": [
                {"role": "system", "content": "Answer."},
                {"role": "user", "content": "Hello."},
                {"role": "assistant", "content": "Hello."},
                {"role": "user", "content": MOON},
                {"role": "assistant", "content": "Ganymede."},
            ]
        },
    ],
    ids=["completion", "text", "prompt of a message", "prompt of messages", "chat", "one turn of a chat"],
)
def test_a_question_is_found_whatever_form_its_row_has(row: dict[str, Any], tmp_path: Path) -> None:
    left, counted = clean(tmp_path, [row, {"text": "Jupiter has many."}], HELD_OUT, "preparation")
    assert left == [{"text": "Jupiter has many."}]
    assert counted["holding"] == {"sealed": {"exact": 1}}


# --- by the stages ---


BENCHMARKS = {"sums": "sums.jsonl", "hearts": "hearts.jsonl"}
FILES: dict[str, Rows] = {
    **HELD_OUT,
    "benchmark sums": [{"prompt": "2 + 2 =", "answer": "4"}],
    "benchmark hearts": [{"prompt": "Partner of north?", "answer": "moor"}],
    "valid": [{"prompt": "What is sold?", "completion": "Salt."}],
    "practice": [{"id": "p", "prompt": "Who?", "completion": "They.", "sources": [{"id": "a", "text": "They did."}]}],
    "citation": [{"prompt": "Where?", "completion": "There [1]."}, {"prompt": MOON, "completion": "Ganymede [1]."}],
    "preparation": [{"prompt": "When?", "completion": "Then [1]."}] * 2,
    "general": [
        {"prompt": "2 + 2 =", "completion": "4"},
        {"prompt": "Partner of north?", "completion": "moor"},
        {"prompt": "Name a colour.", "completion": "Blue."},
    ],
}


class Stage:
    """Jobs of one stage's body, derivations done for real, up to its end or its first training."""

    def __init__(self, folder: Path, asked: WorkflowConfig, files: dict[str, Rows] | None = None) -> None:
        self.store = ArtifactStore(folder / "artifacts")
        self._scratch = folder / "scratch"
        data = {name: ArtifactId(self.store.put_rows(rows)) for name, rows in {**FILES, **(files or {})}.items()}
        self.context = Context(
            config=asked, state=State(data=data, model=ModelRef(path="base", hash="base")), attempt=0, number=0
        )
        self.derived: list[Derive] = []

    def run(self, way: Generator[Ask, JobResult, Any]) -> Any:
        answer: JobResult | None = None
        while True:
            try:
                job = way.send(answer)  # type: ignore[arg-type]
            except StopIteration as end:
                return end.value
            if isinstance(job, Train):
                return job
            assert isinstance(job, Derive)
            self.derived.append(job)
            answer = derive_here(job, self.store, self._scratch)

    def prompts(self, rows: ArtifactId) -> list[str]:
        return sorted({row["prompt"] for row in self.store.rows(rows)})


def asking(**changes: Any) -> WorkflowConfig:
    training = {"citation": SFT, "preference": {**SFT, "method": "dpo"}, "iteration": SFT, "preparation": SFT}
    return config(benchmarks=BENCHMARKS, training=training, **changes)


@pytest.mark.parametrize(("body", "task"), [(preparation, "When?"), (citation_training, "Where?")])
def test_a_training_is_given_cleaned_rows_of_its_set_and_of_the_general_one(
    body: Any, task: str, tmp_path: Path
) -> None:
    stage = Stage(tmp_path, asking(cleaning={"taught": ["hearts"]}, mix={"general": 0.8}))
    trained = stage.run(body(stage.context))
    assert stage.prompts(trained.data) == sorted([task, "Name a colour.", "Partner of north?"])


@pytest.mark.parametrize("name", ["source-attribution", "antihallucination"])
def test_rounds_are_given_cleaned_rows(name: str, tmp_path: Path) -> None:
    rows = [*FILES["practice"], {**FILES["practice"][0], "id": "q", "prompt": MOON}]
    stage = Stage(tmp_path, asking(), {"practice": rows})
    found = cleaned_with_general(stage.context, "practice")
    assert stage.prompts(stage.run(found).rows["practice"]) == ["Who?"]
    first = next(workflow_named(name, asking()).stage("iteration").body(stage.context))
    assert job_key(first) == job_key(stage.derived[0])  # type: ignore[arg-type]


def test_the_same_rows_are_cleaned_once(tmp_path: Path) -> None:
    stage = Stage(tmp_path, asking())
    stage.run(preparation(stage.context))
    stage.run(citation_training(stage.context))
    keys = [job_key(job) for job in stage.derived if job.title == "general: cleaned"]
    assert len(keys) == 2
    assert len(set(keys)) == 1


def test_what_is_not_trained_on_is_not_cleaned(tmp_path: Path) -> None:
    stage = Stage(tmp_path, asking(mix={"general": 0.0}))
    found: Cleaned = stage.run(cleaned_with_general(stage.context, "citation"))
    assert list(found.rows) == ["citation"]
    del stage.context.state.data["general"]  # type: ignore[attr-defined]
    assert list(stage.run(cleaned(stage.context, "citation", "general")).rows) == ["citation"]


@pytest.mark.parametrize(
    ("body", "emptied", "prompt"),
    [
        (preparation, "preparation", MOON),
        (citation_training, "general", "2 + 2 ="),
        (optimisation, "practice", QUESTION),
    ],
)
def test_a_stage_whose_rows_are_all_contaminated_fails_and_says_by_what(
    body: Any, emptied: str, prompt: str, tmp_path: Path
) -> None:
    stage = Stage(tmp_path, asking(), {emptied: [{**FILES["practice"][0], "prompt": prompt}] * 3})
    outcome: Outcome = stage.run(body(stage.context))
    by = {MOON: "sealed", QUESTION: "items"}.get(prompt, "sums")
    assert outcome.failed == f"no row of {emptied} is left of 3: 3 are contaminated by {by} (exact 3)"
    assert outcome.facts["cleaned"][emptied]["kept"] == 0
    assert outcome.artifacts.keys() >= {f"cleaned {emptied}"}
