"""Every gate of both workflows seen to pass and to fail, for a reason that is in data, configuration or answers."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from realign_cluster.workflows.config import WorkflowConfig
from tests.workflows.answering import Runs, World, careless, make_data, right

Rows = list[dict[str, Any]]
NAMES = ("source-attribution", "antihallucination")


@dataclass(frozen=True, kw_only=True)
class Made:
    runs: Runs
    configs: dict[str, WorkflowConfig] = field(default_factory=dict)
    folders: dict[str, Path] = field(default_factory=dict)

    def outcomes(self, workflow: str, world: World) -> tuple[str, dict[tuple[str, str], str]]:
        """How it ended, and the verdict on each gate of the last attempt of each stage."""
        end, judged, _ = self.runs.run(workflow, self.configs[workflow], self.folders[workflow], world)
        return end.state, {(each.stage.name, each.gate.name): each.verdict.outcome for each in judged}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("workflows")
    folders = {name: folder / name for name in NAMES}
    configs = {name: make_data(name, folders[name]) for name in NAMES}
    return Made(runs=Runs(folder), configs=configs, folders=folders)


def changed(how: Callable[[str], str]) -> Callable[[Any], str]:
    """Right answers, changed."""
    return lambda row: how(right(row)) if "question: what" in row["prompt"] else right(row)


def on_sealed(how: Callable[[Any], str]) -> Callable[[Any], str]:
    """Right answers, but to the questions that stage 7 alone asks."""
    return lambda row: how(row) if str(row["id"]).startswith("sealed") else right(row)


def to_the_next(said: str) -> str:
    """The citation of another source: shuffled, as it were."""
    return re.sub(r"\[(\d)\]", lambda mark: f"[{int(mark[1]) % 2 + 1}]", said)


def uncited(said: str) -> str:
    return re.sub(r" \[\d\]", "", said)


def footnoted(said: str) -> str:
    return re.sub(r"\[(\d)\]", r"[^\1]", said)


def two_cited(said: str) -> str:
    """The right source and both of the first two."""
    return re.sub(r"\[(\d)\]", r"[1][2]", said)


def of_no_source(said: str) -> str:
    """What no source says of anybody, with its citation."""
    return re.sub(r"(\w+) (\[\d\])", r"comets \2", said)


def refusing(row: Any) -> str:
    found = re.match(r"^question: what do the (\w+) (\w+)\?", row["prompt"])
    return right(row) if found is None else f"the sources do not say what the {found[1]} {found[2]}."


def inventing(row: Any) -> str:
    """Right, but for questions that the sources do not answer."""
    said = right(row)
    return careless(row) if "do not say" in said else said


def forgetful(row: Any) -> str:
    """Answers about sources, and no longer knows anything by heart."""
    return right(row) if "question: what" in row["prompt"] else "nothing."


def texts_moved(rows: Rows) -> Rows:
    """Every source has the text of another one."""
    return [{**row, "text": other["text"]} for row, other in zip(rows, [*rows[7:], *rows[:7]], strict=True)]


def of_one_type(rows: Rows) -> Rows:
    return [{**row, "sources": [{**source, "type": "letter"} for source in row["sources"]]} for row in rows]


def labels_doubted(rows: Rows) -> Rows:
    """People did not find supported what one source in seven says word for word: the verifier is too credulous."""
    return [
        {**row, "label": "unverifiable"} if row["label"] == "supported" and at % 7 == 0 else row
        for at, row in enumerate(rows)
    ]


def labels_blurred(rows: Rows) -> Rows:
    """What is not supported is called supported by one in seven: for them a detector cries wolf."""
    return [
        {**row, "label": "supported"} if row["label"] != "supported" and at % 7 == 0 else row
        for at, row in enumerate(rows)
    ]


def claims_moved(rows: Rows) -> Rows:
    return [{**row, "claim": other["claim"]} for row, other in zip(rows, [*rows[1:], rows[0]], strict=True)]


@pytest.mark.parametrize("workflow", NAMES)
def test_a_healthy_run_passes_every_gate(made: Made, workflow: str) -> None:
    state, outcomes = made.outcomes(workflow, World())
    assert {name: outcome for name, outcome in outcomes.items() if outcome != "PASS"} == {}
    assert state == "complete"


FAULTS: list[tuple[str, str, str, World]] = [
    ("source-attribution", "preparation", "perplexity", World(loss=4.0)),
    ("source-attribution", "sources", "retrieval_r_precision", World(data={"sources": texts_moved})),
    ("source-attribution", "sources", "largest_share_of_a_type", World(data={"practice": of_one_type})),
    ("source-attribution", "sources", "types_missing", World(data={"practice": of_one_type})),
    ("source-attribution", "citation", "citation_precision", World(answers=(careless, changed(to_the_next)))),
    ("source-attribution", "citation", "citation_precision", World(answers=(careless, changed(two_cited)))),
    ("source-attribution", "citation", "citation_recall", World(answers=(careless, changed(uncited)))),
    ("source-attribution", "citation", "citation_format", World(answers=(careless, changed(footnoted)))),
    ("source-attribution", "citation", "retention_closed-book", World(answers=(right, forgetful))),
    ("source-attribution", "citation", "retention_copying", World(answers=(right, forgetful))),
    ("source-attribution", "verification", "verifier_false_positives", World(data={"labels": labels_doubted})),
    ("source-attribution", "optimisation", "kl", World(divergence=0.5)),
    ("source-attribution", "optimisation", "citation_recall", World(answers=(careless, right, changed(uncited)))),
    ("source-attribution", "optimisation", "attribution_coverage", World(answers=(careless, right, changed(uncited)))),
    ("antihallucination", "preparation", "perplexity", World(loss=4.0)),
    ("antihallucination", "facts", "pairs_supported", World(data={"pairs": claims_moved})),
    ("antihallucination", "citation", "factuality", World(answers=(careless, careless))),
    ("antihallucination", "citation", "over_abstention", World(answers=(careless, refusing))),
    ("antihallucination", "detection", "verifier_false_positives", World(data={"labels": labels_blurred})),
    ("antihallucination", "optimisation", "kl", World(divergence=0.5)),
    ("antihallucination", "optimisation", "factuality_change", World(answers=(careless, right, changed(of_no_source)))),
    ("antihallucination", "optimisation", "factuality_change", World(answers=(careless, right, inventing))),
    ("antihallucination", "optimisation", "over_abstention", World(answers=(careless, right, refusing))),
    *(
        ("source-attribution", "evaluation", gate, World(answers=(careless, on_sealed(changed(how)))))
        for gate, how in (
            ("citation_precision", to_the_next),
            ("citation_recall", uncited),
            ("attribution_coverage", uncited),
            ("citation_format", footnoted),
        )
    ),
    ("antihallucination", "evaluation", "over_abstention", World(answers=(careless, on_sealed(refusing)))),
    ("antihallucination", "evaluation", "hallucination_rate", World(answers=(careless, on_sealed(careless)))),
    ("antihallucination", "evaluation", "factuality", World(answers=(careless, on_sealed(changed(of_no_source))))),
    ("antihallucination", "evaluation", "citation_recall", World(answers=(careless, on_sealed(changed(uncited))))),
]


@pytest.mark.parametrize(
    ("workflow", "stage", "gate", "world"), FAULTS, ids=[f"{each[0]}-{each[1]}-{each[2]}" for each in FAULTS]
)
def test_a_fault_fails_its_gate(made: Made, workflow: str, stage: str, gate: str, world: World) -> None:
    state, outcomes = made.outcomes(workflow, world)
    assert outcomes[stage, gate] == "FAIL"
    assert state == "failed"


def test_rounds_that_make_it_worse_are_not_kept(made: Made) -> None:
    """Stage 6: the fourth training and those after it forget to cite; the model that entered remains."""
    workflow = "source-attribution"
    world = World(answers=(careless, right, right, changed(uncited)))
    end, _, ended = made.runs.run(workflow, made.configs[workflow], made.folders[workflow], world)
    iteration = next(each for each in ended if each.stage.name == "iteration")
    assert [each["trend"] for each in iteration.outcome.facts["rounds"]] == ["worse"]
    assert iteration.outcome.facts["best"] == "entered"
    optimised = next(each for each in ended if each.stage.name == "optimisation").outcome.model
    assert (end.state, end.model) == ("complete", optimised)


@pytest.mark.parametrize(("threshold", "state"), [(0.5, "complete"), (0.999, "incomplete")])
def test_other_thresholds_judge_again_what_was_measured(made: Made, threshold: float, state: str) -> None:
    """Nothing that was computed is computed again."""
    workflow = "source-attribution"
    config, folder = made.configs[workflow], made.folders[workflow]
    assert made.runs.run(workflow, config, folder, World())[0].state == "complete"
    before = len(made.runs.done)
    gates = {**config.gates, "verification": {"attribution_coverage": threshold}}
    end, judged, _ = made.runs.run(workflow, config.model_copy(update={"gates": gates}), folder, World())
    verdict = next(each.verdict for each in judged if each.gate.name == "attribution_coverage")
    assert (end.state, verdict.threshold) == (state, threshold)
    assert len(made.runs.done) == before
