"""What docs/workflows says of configuration, data, gates and checklists is what the program has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import orjson
import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from realign_cluster.domain.gate import Gate, Measurement
from realign_cluster.domain.gate_plan import plan_gate
from realign_cluster.domain.gates import judge_gate
from realign_cluster.domain.judge_error import VerifierLabels
from realign_cluster.domain.retention import BenchmarkPair, judge_benchmark
from realign_cluster.domain.training import TrainSettings
from realign_cluster.workflows.checklists import CHECKLISTS
from realign_cluster.workflows.config import HarnessTask, WorkflowConfig
from realign_cluster.workflows.diagnosis import DATA_RULES
from realign_cluster.workflows.findings import Issue
from realign_cluster.workflows.judging import rule_as_judged
from realign_cluster.workflows.sources import RETRIEVAL_ATTEMPTS
from realign_cluster.workflows.stage import Stage, StageGate, Workflow
from realign_cluster.workflows.tables import WORKFLOWS, workflow_named
from realign_cluster.workflows.template import DATA
from tests.workflows.made import config

PAGES = Path(__file__).parents[2] / "docs" / "workflows"
HEADINGS = {"source-attribution": "Source attribution", "antihallucination": "Anti-hallucination"}
DOCUMENTED = [(WorkflowConfig, ""), (TrainSettings, ""), (HarnessTask, "benchmarks.NAME.")]
STAGES = [(name, number) for name in WORKFLOWS for number in range(7)]


def page(name: str) -> str:
    return (PAGES / f"{name}.md").read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    return text.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def table_rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def workflow(name: str, attempts: int = 2) -> Workflow:
    return workflow_named(name, config(attempts=attempts, benchmarks={"NAME": "none.jsonl"}))


# --- configuration ---


def keys_of(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("generation.max_new_tokens", 64); tables themselves are left out, a training is its own table."""
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if inner is None or inner is TrainSettings:
            yield prefix + name, field.get_default(call_default_factory=True)
        else:
            yield from keys_of(inner, f"{prefix}{name}.")


def default_text(default: Any) -> str:
    if default is PydanticUndefined:
        return "required"
    if default is None or default in ((), {}, ""):
        return "none"
    return str(default).lower() if isinstance(default, bool) else str(default)


def documented_defaults() -> Mapping[str, str]:
    rows = table_rows(section(page("templates"), "Configuration"))
    pairs = [(row[at], row[at + 1]) for row in rows for at in range(0, len(row) - 1, 3)]
    return {key: default for names, default in pairs for key in re.findall(r"`([\w.]+)`", names)}


@pytest.mark.parametrize(("model", "prefix"), DOCUMENTED)
def test_every_key_is_there_with_its_default(model: type[BaseModel], prefix: str) -> None:
    documented = documented_defaults()
    wanted = {key: default_text(default) for key, default in keys_of(model, prefix)}
    assert {key: documented.get(key) for key in wanted} == wanted


def test_no_key_is_there_that_the_program_has_not() -> None:
    known = {key for model, prefix in DOCUMENTED for key, _ in keys_of(model, prefix)}
    assert set(documented_defaults()) - known == set()


# --- data ---


def test_the_rows_are_those_that_init_writes() -> None:
    found = re.findall(r"^    (\w+) +(\{.*\})$", section(page("templates"), "Data"), re.M)
    assert {name for name, _ in found} == set(DATA)
    for name, row in found:
        assert orjson.loads(row) in DATA[name]


# --- gates ---


def documented_gates(name: str) -> Mapping[str, list[str]]:
    rows = table_rows(section(page("thresholds"), HEADINGS[name]))
    return {row[0].strip("`"): row[1:] for row in rows if row[0].startswith("`")}


def threshold_text(gate: StageGate) -> str:
    """As "at least 0.90", or with ", watched"."""
    direction = getattr(gate.rule, "direction", "at least")
    return f"{direction} {gate.rule.threshold:g}" + (", watched" if gate.guard else "")


def judged(gate: StageGate, stage: Stage, attempts: int) -> Gate | None:
    rule = rule_as_judged(gate, stage, config(attempts=attempts))
    return rule if isinstance(rule, Gate) else None


def fewest(gate: StageGate, stage: Stage) -> str:
    """ "39 (32)": the fewest items that can pass with two attempts and with one; "" for what is no estimate."""
    two, one = (judged(gate, stage, attempts) for attempts in (2, 1))
    if two is None or one is None:
        return ""
    numbers = [plan_gate(each, 1).items_if_perfect for each in (two, one)]
    return f"{numbers[0]}" if numbers[0] == numbers[1] else f"{numbers[0]} ({numbers[1]})"


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_gate_is_there_with_its_threshold(name: str) -> None:
    documented = documented_gates(name)
    gates = {f"{stage.name}.{gate.name}": (stage, gate) for stage in workflow(name).stages for gate in stage.gates}
    assert set(documented) == set(gates)
    for where, (stage, gate) in gates.items():
        threshold, evidence, _, items = documented[where]
        assert re.sub(r"(\.\d*?)0+\b", r"\1", threshold) == threshold_text(gate), where
        assert items == fewest(gate, stage), where
        rule = gate.rule
        if isinstance(rule, Gate):
            assert evidence == ("paired" if rule.lowest < 0 else rule.evidence), where
        else:
            assert evidence == ("paired" if gate.name.startswith("retention_") else "count"), where


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_metric_that_is_gated_has_a_definition(name: str) -> None:
    defined = set(re.findall(r"^\| (`.*?) \|", section(page("thresholds"), "What is measured"), re.M))
    names = {each for row in defined for each in re.findall(r"`(\w+)`", row)}
    assert {gate.name for stage in workflow(name).stages for gate in stage.gates} <= names


@pytest.mark.parametrize(("name", "at"), STAGES)
def test_the_index_has_each_stage_with_its_thresholds(name: str, at: int) -> None:
    stage = workflow(name).stages[at]
    (row,) = [row for row in table_rows(page(name)) if row[0].startswith(f"{stage.number} [")]
    assert row[1] == f"`{stage.name}`"
    for gate in stage.gates:
        threshold = gate.rule.threshold
        said = {f"{threshold:g}", f"{threshold:.2f}", f"{abs(threshold):.2f}"}
        named = gate.guard or gate.name in ("baseline_recorded", "types_missing", "factuality_change")
        assert named or any(text in row[2] for text in said), gate.name


def test_what_plan_says_of_short_answers_is_what_the_page_says() -> None:
    """Of one claim in an answer where sixteen are allowed."""
    coverage = plan_gate(ratio("source-attribution", "attribution_coverage"), 1, units_per_item=1.0)
    rate = plan_gate(ratio("antihallucination", "hallucination_rate"), 1, units_per_item=1.0)
    said = f"need {coverage.items_if_perfect} for coverage and {rate.items_if_perfect} for the hallucination rate"
    assert said in page("thresholds").replace("\n", " ")


def ratio(name: str, metric: str) -> Gate:
    """As stage 4 judges it with two attempts."""
    stage = workflow(name).stages[3]
    (gate,) = [gate for gate in stage.gates if gate.name == metric]
    rule = judged(gate, stage, 2)
    assert rule is not None
    return rule


def test_what_a_flawless_verifier_costs() -> None:
    """Judged, not planned: right on all of 200 labels, every answer at its best."""
    text = page("validation-methodology").replace("\n", " ")
    (said,) = re.findall(r"can pass 0.90 from (\d+) items on instead of +(\d+)", text)
    labels = VerifierLabels(verifier="v", true_positives=100, false_negatives=0, true_negatives=100, false_positives=0)
    gate = Gate(metric="citation_recall", direction="at least", threshold=0.9, evidence="scores", attempts=2)
    for known, fewest_said in zip((labels, None), map(int, said), strict=True):
        outcomes = [
            judge_gate(gate, at_their_best(count), labels=known).outcome for count in (fewest_said - 1, fewest_said)
        ]
        assert outcomes == ["INSUFFICIENT", "PASS"]


def at_their_best(count: int) -> Measurement:
    names = tuple(map(str, range(count)))
    return Measurement(metric="citation_recall", items=names, values=(1.0,) * count, verifier="v", dataset="made")


def test_perplexity_of_a_stage_that_trains() -> None:
    settings = {"steps": 1, "global_batch": 1}
    trained = {"citation": settings, "preference": {**settings, "method": "dpo"}, "iteration": settings}
    asked = config(training={**trained, "preparation": settings})
    stage = workflow_named("source-attribution", asked).stages[0]
    rule = judged(stage.gates[0], stage, 2)
    assert rule is not None
    assert f"perplexity needs {plan_gate(rule, 1).items_if_perfect}." in page("thresholds")


# --- the rest ---


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_item_of_the_checklist_is_there(name: str) -> None:
    column = {"source-attribution": 1, "antihallucination": 2}[name]
    rows = table_rows(section(page("templates"), "Checklists"))[2:]
    said = "; ".join(rows[at][1] if rows[at][column] == "the same" else rows[at][column] for at in range(len(rows)))
    for item in CHECKLISTS[name]:
        first = item.text.removesuffix(" (model card, stage pages)")
        assert first in said, item.text


def test_the_parameters_of_the_index_are_those_that_are_tried() -> None:
    text = page("source-data")
    tried = [re.findall(r"\d\.\d+", part) for part in re.findall(r"\(k1 (.*?)\)", text)[0].split(";")]
    assert [(float(k1), float(b)) for k1, b in tried] == [(each.k1, each.b) for each in RETRIEVAL_ATTEMPTS]


def test_every_issue_that_is_diagnosed_is_there_with_what_is_tolerated() -> None:
    text = page("troubleshooting")
    rows = {row[0]: row[1:] for part in ("Common issues", "Causes") for row in table_rows(section(text, part))}
    assert set(get_args(Issue)) == set(rows) - {"issue", "cause", "---"}
    for rule in DATA_RULES:
        where, sign, _ = rows[rule.issue]
        assert where == "data"
        assert f"({100 * rule.tolerated:g} %" in sign, rule.check


@pytest.mark.parametrize(("right", "alpha", "items"), [(1.0, 0.05, 91), (1.0, 0.025, 111), (0.75, 0.05, 140)])
def test_how_many_items_show_that_a_capability_is_kept(right: float, alpha: float, items: int) -> None:
    """Of four choices, nothing changed."""
    assert str(items) in page("capability-assessment")
    for count, outcome in ((items, "PASS"), (items - 20, "INSUFFICIENT")):
        scores = tuple(float(at < right * count) for at in range(count))
        names = tuple(map(str, range(count)))
        pair = BenchmarkPair(benchmark="kept", items=names, before=scores, after=scores, chance=0.25)
        assert judge_benchmark(pair, alpha=alpha).outcome == outcome
