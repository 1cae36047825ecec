"""Every gate of both workflows seen to pass and to fail, for a reason that is in data, configuration or answers."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from realign_cluster.workflows.config import WorkflowConfig, read_config
from realign_cluster.workflows.tables import workflow_named
from tests.workflows.answering import KNOWLEDGE, NAME, Runs, World, careless, digests, make_data, right

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


def some(how: Callable[[Any], str], of: int) -> Callable[[Any], str]:
    """Right answers, but to one question in so many, by its words."""
    return lambda row: how(row) if zlib.crc32(row["prompt"].encode()) % of == 0 else right(row)


def slipping(row: Any) -> str:
    """Of ten questions refuses three, leaves out the citation of three others; has forgotten three in ten."""
    at = zlib.crc32(row["prompt"].encode()) % 10
    if "question: what" not in row["prompt"]:
        return "nothing." if at < 3 else right(row)
    return refusing(row) if at < 3 else uncited(right(row)) if at < 6 else right(row)


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
    assert_no_training_has_a_word_of_those_that_models_are_judged_on(made, workflow)


def assert_no_training_has_a_word_of_those_that_models_are_judged_on(made: Made, workflow: str) -> None:
    """Of all that a run trains on, as it was made in the run: mixes, pairs and targeted rounds too."""
    trained = {artifact for job in made.runs.trained for artifact in (job.data, job.valid) if artifact is not None}
    assert len(made.runs.trained) >= 5  # stages 1, 3, 5 and two rounds of stage 6
    data = made.folders[workflow] / "data"
    judged_on = {name: (data / f"{name}.jsonl").read_text() for name in ("items", "sealed")}
    held_out = {name: digests(set(NAME.findall(text))) for name, text in judged_on.items()}
    assert all(len(names) > 50 for names in held_out.values())
    for artifact in trained:
        words = set(re.findall(r"[a-z]+", made.runs.artifacts.rows_path(artifact).read_text()))
        assert len(words) > 50
        assert not digests(words) & (held_out["items"] | held_out["sealed"]), artifact


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A world, and the gates of a stage that it fails."""

    workflow: str
    stage: str
    gates: tuple[str, ...]
    world: World
    soak: bool = False  # fast tests have the same gate of the other workflow, or of another stage


def fault(workflow: str, place: str, *answers: Callable[[Any], str], soak: bool = False, **more: Any) -> Fault:
    """`place`: "stage: gate, gate"."""
    stage, gates = place.split(": ")
    world = World(**more, **({"answers": answers} if answers else {}))
    return Fault(workflow=workflow, stage=stage, gates=tuple(gates.split(", ")), world=world, soak=soak)


SOURCE, ANTI = NAMES
FORGOTTEN = "retention_closed-book, retention_copying, retention_creative"
EASY = {  # what the stages before may ask for, so that a stage is come to
    **dict.fromkeys(("citation_precision", "citation_recall", "factuality", "attribution_coverage"), 0.2),
    **dict.fromkeys(("citation_format", "over_abstention", *FORGOTTEN.split(", ")), 0.5),
    **dict.fromkeys(("citation_precision_change", "citation_recall_change", "coverage_change"), -0.9),
    "factuality_change": -0.9,
    "kl": 1.0,
    "hallucination_rate": 0.9,
}


def easy(workflow: str, *stages: str) -> dict[str, dict[str, float]]:
    """Thresholds for these stages."""
    table = workflow_named(workflow, read_config(KNOWLEDGE / "workflows" / f"{workflow}.toml"))
    return {
        stage: {gate.name: EASY[gate.name] for gate in table.stage(stage).gates if gate.name in EASY}
        for stage in stages
    }


FAULTS = (
    fault(SOURCE, "preparation: perplexity", loss=4.0),
    fault(SOURCE, "preparation: baseline_recorded", refusing),
    fault(SOURCE, "sources: retrieval_r_precision", data={"sources": texts_moved}),
    fault(SOURCE, "sources: largest_share_of_a_type, types_missing", data={"practice": of_one_type}),
    fault(SOURCE, "citation: citation_precision, citation_recall", careless, changed(to_the_next)),
    fault(SOURCE, "citation: citation_precision", careless, changed(two_cited)),
    fault(SOURCE, "citation: citation_recall", careless, changed(uncited)),
    fault(SOURCE, "citation: citation_format", careless, changed(footnoted)),
    fault(SOURCE, f"citation: {FORGOTTEN}", right, forgetful),
    fault(SOURCE, "citation: over_abstention", careless, refusing, soak=True),
    fault(
        SOURCE,
        "verification: citation_recall, attribution_coverage",
        careless,
        some(changed(uncited), 2),
        gates=easy(SOURCE, "citation"),
    ),
    fault(
        SOURCE,
        "verification: citation_precision, citation_recall",
        careless,
        some(changed(to_the_next), 2),
        gates=easy(SOURCE, "citation"),
    ),
    fault(SOURCE, "verification: verifier_false_positives", data={"labels": labels_doubted}),
    fault(SOURCE, "optimisation: kl", divergence=0.5),
    fault(
        SOURCE,
        "optimisation: citation_recall, attribution_coverage, citation_recall_change, coverage_change",
        careless,
        right,
        changed(uncited),
    ),
    fault(
        SOURCE,
        "optimisation: citation_precision, citation_precision_change",
        careless,
        right,
        changed(to_the_next),
    ),
    fault(SOURCE, f"optimisation: {FORGOTTEN}", right, right, forgetful, soak=True),
    fault(SOURCE, "optimisation: over_abstention", careless, right, refusing, soak=True),
    fault(
        SOURCE,
        f"iteration: attribution_coverage, over_abstention, {FORGOTTEN}",
        right,
        slipping,
        gates=easy(SOURCE, "citation", "verification", "optimisation"),
        soak=True,
    ),
    fault(SOURCE, "evaluation: citation_precision", careless, on_sealed(changed(to_the_next))),
    fault(SOURCE, "evaluation: citation_recall, attribution_coverage", careless, on_sealed(changed(uncited))),
    fault(SOURCE, "evaluation: citation_format", careless, on_sealed(changed(footnoted))),
    fault(SOURCE, "evaluation: over_abstention", careless, on_sealed(refusing), soak=True),
    fault(SOURCE, "evaluation: kl", divergence=0.5, gates=easy(SOURCE, "optimisation")),
    fault(
        SOURCE,
        f"evaluation: {FORGOTTEN}",
        right,
        some(forgetful, 3),
        gates=easy(SOURCE, "citation", "optimisation", "iteration"),
    ),
    fault(ANTI, "preparation: perplexity", loss=4.0),
    fault(ANTI, "preparation: baseline_recorded", refusing),
    fault(ANTI, "facts: pairs_supported", data={"pairs": claims_moved}),
    fault(ANTI, "citation: factuality", careless, careless),
    fault(ANTI, f"citation: {FORGOTTEN}", right, forgetful, soak=True),
    fault(ANTI, "citation: over_abstention", careless, refusing),
    fault(
        ANTI,
        "detection: hallucination_rate",
        careless,
        some(changed(of_no_source), 2),
        gates=easy(ANTI, "citation"),
    ),
    fault(ANTI, "detection: verifier_false_positives", data={"labels": labels_blurred}),
    fault(ANTI, "optimisation: kl", divergence=0.5),
    fault(ANTI, "optimisation: factuality_change", careless, right, changed(of_no_source)),
    fault(ANTI, "optimisation: factuality_change", careless, right, inventing, soak=True),
    fault(ANTI, "optimisation: citation_recall_change, coverage_change", careless, right, changed(uncited), soak=True),
    fault(ANTI, "optimisation: citation_precision_change", careless, right, changed(to_the_next), soak=True),
    fault(ANTI, f"optimisation: {FORGOTTEN}", right, right, forgetful, soak=True),
    fault(ANTI, "optimisation: over_abstention", careless, right, refusing),
    fault(
        ANTI,
        f"iteration: over_abstention, {FORGOTTEN}",
        right,
        slipping,
        gates=easy(ANTI, "citation", "detection", "optimisation"),
        soak=True,
    ),
    fault(ANTI, "evaluation: over_abstention", careless, on_sealed(refusing)),
    fault(ANTI, "evaluation: hallucination_rate", careless, on_sealed(careless)),
    fault(ANTI, "evaluation: factuality", careless, on_sealed(changed(of_no_source))),
    fault(ANTI, "evaluation: citation_recall", careless, on_sealed(changed(uncited))),
    fault(ANTI, "evaluation: citation_precision", careless, on_sealed(changed(to_the_next))),
    fault(ANTI, "evaluation: kl", divergence=0.5, gates=easy(ANTI, "optimisation"), soak=True),
    fault(
        ANTI,
        f"evaluation: {FORGOTTEN}",
        right,
        some(forgetful, 3),
        gates=easy(ANTI, "citation", "optimisation", "iteration"),
        soak=True,
    ),
)
NEVER_FAILS = ("iteration", "progress")  # the stage ends with the best of its models; see the test of worse rounds


def name_of(fault: Fault) -> str:
    return f"{fault.workflow}-{fault.stage}-{'-'.join(fault.gates).replace('retention_', '')}"


CASES = [pytest.param(each, id=name_of(each), marks=[pytest.mark.soak] if each.soak else []) for each in FAULTS]


@pytest.mark.parametrize("fault", CASES)
def test_a_fault_fails_its_gates(made: Made, fault: Fault) -> None:
    state, outcomes = made.outcomes(fault.workflow, fault.world)
    assert {gate: outcomes[fault.stage, gate] for gate in fault.gates} == dict.fromkeys(fault.gates, "FAIL")
    assert state == "failed"


@pytest.mark.parametrize("workflow", NAMES)
def test_every_gate_has_a_fault_that_fails_it(made: Made, workflow: str) -> None:
    stages = workflow_named(workflow, made.configs[workflow]).stages
    gates = {(stage.name, gate.name) for stage in stages for gate in stage.gates}
    failed = {(each.stage, gate) for each in FAULTS if each.workflow == workflow for gate in each.gates}
    assert gates - failed == {NEVER_FAILS}


def test_a_base_that_never_cites_can_be_begun_with(made: Made) -> None:
    """As models from outside are: its citation precision is undefined, and says so with a count."""
    workflow = SOURCE
    world = World(answers=(changed(uncited), right))
    end, judged, ended = made.runs.run(workflow, made.configs[workflow], made.folders[workflow], world)
    baseline = ended[0].outcome.measurements["citation_precision"]
    assert (baseline.items, baseline.undefined > 0) == ((), True)
    assert next(each.verdict.outcome for each in judged if each.gate.name == "baseline_recorded") == "PASS"
    assert end.state == "complete"


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


def test_a_round_that_gains_by_refusing_is_not_kept(made: Made) -> None:
    """Its citations are better than those of the model that entered, and it no longer answers every other question."""
    workflow = "source-attribution"
    items = made.folders[workflow] / "data" / "items.jsonl"
    ids = [json.loads(line)["id"] for line in items.read_text().splitlines()]
    one, half = ids[0], set(ids[::2])

    def once_uncited(row: Any) -> str:
        return uncited(right(row)) if row["id"] == one else right(row)

    def half_refusing(row: Any) -> str:
        return refusing(row) if row["id"] in half else right(row)

    world = World(answers=(careless, right, once_uncited, half_refusing))
    end, _, ended = made.runs.run(workflow, made.configs[workflow], made.folders[workflow], world)
    iteration = next(each for each in ended if each.stage.name == "iteration")
    rounds = iteration.outcome.facts["rounds"]
    assert all(each["value"] == 1.0 for each in rounds)
    assert iteration.outcome.facts["best"] == "entered"
    assert end.state == "complete"


def test_every_training_looks_at_the_benchmarks_on_its_way(made: Made) -> None:
    """If it is asked to, that of pairs and those of the rounds too; examples are validated as well."""
    workflow = "source-attribution"
    config = made.configs[workflow]
    names = ("preparation", "citation", "preference", "iteration")
    watched = {
        name: (settings := getattr(config.training, name)).model_copy(
            update={"evaluation": settings.evaluation.model_copy(update={"every": 10})}
        )
        for name in names
    }
    asked = config.model_copy(update={"training": config.training.model_copy(update=watched)})
    made.runs.run(workflow, asked, made.folders[workflow], World())
    assert len(made.runs.trained) >= 5
    for job in made.runs.trained:
        assert set(job.benchmarks) == set(config.benchmarks)
        assert (job.valid is None) == (job.settings.method == "dpo")


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
