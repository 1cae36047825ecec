"""What a workflow's gates can decide with the rows that are there, before anything is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

from realign_cluster.domain.gate import Gate
from realign_cluster.domain.gate_plan import GatePlan, plan_gate
from realign_cluster.domain.judge_error import FEWEST_LABELS, VerifierLabels
from realign_cluster.domain.retention import BenchmarkPair, judge_benchmark
from realign_cluster.workflows.config import WorkflowConfig
from realign_cluster.workflows.distance import PROBED, count_probes
from realign_cluster.workflows.harness_process import TaskRequests
from realign_cluster.workflows.intake import read_rows
from realign_cluster.workflows.judging import alpha_each, rule_as_judged
from realign_cluster.workflows.stage import Counted, Retained, Workflow

# metric -> (data file, which of its rows are items)
ITEMS_OF: Final[Mapping[str, tuple[str, str]]] = {
    "perplexity": ("valid", "all"),
    "retrieval_r_precision": ("queries", "all"),
    "pairs_supported": ("pairs", "all"),
    "citation_precision": ("items", "answerable"),
    "citation_recall": ("items", "answerable"),
    "citation_format": ("items", "answerable"),
    "attribution_coverage": ("items", "answerable"),
    "factuality": ("items", "answerable"),
    "factuality_change": ("items", "all"),
    "hallucination_rate": ("items", "all"),
    "over_abstention": ("items", "answerable"),
    "citation_precision_change": ("items", "answerable"),
    "citation_recall_change": ("items", "answerable"),
    "coverage_change": ("items", "answerable"),
    "progress": ("items", "answerable"),
}
# what the verifier reports of answers and pairs, 0 to 1: its errors on people's labels are in the bound
BY_THE_VERIFIER: Final = frozenset(
    {"pairs_supported", "citation_precision", "citation_recall", "factuality", "hallucination_rate"}
)
MOST_ITEMS: Final = 5_000


def plan_gates(
    workflow: Workflow,
    config: WorkflowConfig,
    files: Mapping[str, Path],
    tasks: Mapping[str, TaskRequests],
    minutes_per_item: float | None,
) -> list[dict[str, Any]]:
    """Of every gate, in order: what its rows decide at the alpha that it will have, and what measuring them takes."""
    labels = _faultless(files)
    gates = []
    for stage in workflow.stages:
        for gate in stage.gates:
            rule = rule_as_judged(gate, stage, config)
            alpha = None if isinstance(rule, Counted) else alpha_each(stage, config)
            found = {
                "stage": stage.name,
                "gate": gate.name,
                "title": gate.title,
                "guard": gate.guard,
                "alpha_each": alpha,
                "looks": config.looks,
            }
            decidable = _decidable(rule, stage.name, alpha, config, files, tasks, labels, minutes_per_item)
            gates.append(found | {"measured_on": _measured_on(rule, stage.name)} | decidable)
    return gates


def plan_labels(workflow: Workflow, files: Mapping[str, Path]) -> dict[str, Any] | None:
    """Whether `labels` are enough to hold the verifier against, and which gates cannot pass if they are not. None where
    no gate goes by what a verifier says.
    """
    asked = [
        f"{stage.name}.{gate.name}"
        for stage in workflow.stages
        for gate in stage.gates
        if isinstance(gate.rule, Gate) and gate.rule.metric in BY_THE_VERIFIER
    ]
    if not asked:
        return None
    labels = _faultless(files)
    return {
        "rows": labels.labels,
        "supported": labels.positives,
        "not_supported": labels.negatives,
        "needed": FEWEST_LABELS,
        "unusable": labels.unusable(),
        "gates": asked,
    }


def too_few(gates: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, int]]:
    """(rows, the most that a gate needs) of each file that has less; not of gates that are only watched."""
    have: dict[str, int] = {}
    needed: dict[str, int] = {}
    for gate in gates:
        if not gate["guard"] and gate.get("items_if_perfect"):
            have[gate["measured_on"]] = gate["items"]
            needed[gate["measured_on"]] = max(needed.get(gate["measured_on"], 0), gate["items_if_perfect"])
    return {name: (have[name], most) for name, most in needed.items() if have[name] < most}


def _faultless(files: Mapping[str, Path]) -> VerifierLabels:
    """The labels as they are counted in a run, of a verifier that gets none of them wrong."""
    there = "labels" in files
    return VerifierLabels(
        verifier="",
        true_positives=_count(files, "labels", "supported") if there else 0,
        false_negatives=0,
        true_negatives=_count(files, "labels", "not supported") if there else 0,
        false_positives=0,
    )


def _measured_on(rule: Gate | Counted | Retained, stage: str) -> str | None:
    """What more rows are to be added to."""
    match rule:
        case Counted():
            return None
        case Retained():
            return f"benchmark {rule.benchmark}"
        case Gate(metric="kl"):
            return "prompts of practice and general, preference.probe_prompts at most"
        case Gate(metric="verifier_false_positives"):
            return f"labels, {_labelled(stage)}"
        case Gate():
            name, which = ITEMS_OF[rule.metric]
            name = "sealed" if name == "items" and stage == "evaluation" else name
            return f"{name}, {which}" if which == "answerable" else name


def _labelled(stage: str) -> str:
    return "supported" if stage == "detection" else "not supported"


def _decidable(
    rule: Gate | Counted | Retained,
    stage: str,
    alpha: float | None,
    config: WorkflowConfig,
    files: Mapping[str, Path],
    tasks: Mapping[str, TaskRequests],
    labels: VerifierLabels,
    per_item: float | None,
) -> dict[str, Any]:
    match rule:
        case Counted():
            return {
                "items": None,
                "text": f"{rule.fact} {rule.direction} {rule.threshold:g}: a count, compared as it is",
            }
        case Retained():
            assert alpha is not None
            return _retention(rule, alpha, _chances(rule.benchmark, files, tasks))
        case Gate():
            count = _items(rule.metric, stage, config, files)
            found = _planned(rule, count)
            minutes = None if per_item is None or rule.metric not in ITEMS_OF else per_item * count
            unusable = labels.unusable() if rule.metric in BY_THE_VERIFIER else None
            return {
                "items": count,
                "can_pass": found.can_pass and unusable is None,
                "items_if_perfect": found.items_if_perfect,
                "passes_from": found.passes_from,
                "fails_from": found.fails_from,
                "minutes": minutes,
                "text": found.text if unusable is None else f"{found.text}; cannot pass: {unusable}",
            }


@cache
def _planned(rule: Gate, count: int) -> GatePlan:
    """Several stages have gates alike, and each takes a while to look through."""
    return plan_gate(rule, count, units_per_item=_usual_units(rule))


def _usual_units(rule: Gate) -> float | None:
    """Of a ratio: an answer of one claim, a completion half as long as it may be; of given texts, as long as any."""
    if rule.evidence != "ratio" or rule.scale == "exp":
        return None
    return rule.most_units / 2 if rule.metric == "kl" else 1.0


def _retention(rule: Retained, alpha: float, chances: Sequence[float]) -> dict[str, Any]:
    count = len(chances)
    needed = _needed(rule.threshold, sum(chances) / count, alpha)
    enough = needed is not None and count >= needed
    said = f"{count:,} items {'can' if enough else 'cannot'} show that {rule.threshold:.0%} is kept"
    wanted = "no number of items can" if needed is None else f"{needed:,} can, if all was right and nothing is lost"
    return {"items": count, "can_pass": enough, "items_if_perfect": needed, "text": f"{said}; {wanted}"}


def _chances(benchmark: str, files: Mapping[str, Path], tasks: Mapping[str, TaskRequests]) -> list[float]:
    """Of guessing each item of a benchmark."""
    if benchmark in tasks:
        return list({row["item"]: float(row["chance"]) for row in tasks[benchmark].rows}.values())
    name = f"benchmark {benchmark}"
    return [1 / len(row["choices"]) if "choices" in row else 0.0 for _, row in read_rows(name, files[name])]


@cache
def _needed(threshold: float, chance: float, alpha: float) -> int | None:
    """The fewest items (by steps of a tenth) on which a model that was right on all and still is passes."""
    items = 20
    while items <= MOST_ITEMS:
        all_right = (1.0,) * items
        names = tuple(map(str, range(items)))
        pair = BenchmarkPair(benchmark="", items=names, before=all_right, after=all_right, chance=chance)
        if judge_benchmark(pair, threshold=threshold, alpha=alpha).outcome == "PASS":
            return items
        items += max(1, items // 10)
    return None


def _items(metric: str, stage: str, config: WorkflowConfig, files: Mapping[str, Path]) -> int:
    if metric == "kl":
        rows = {name: _count(files, name, "all") for name in PROBED if name in files}
        return count_probes(rows, config.preference.probe_prompts)
    if metric == "verifier_false_positives":
        return _count(files, "labels", _labelled(stage))
    name, which = ITEMS_OF[metric]
    return _count(files, "sealed" if name == "items" and stage == "evaluation" else name, which)


def _count(files: Mapping[str, Path], name: str, which: str) -> int:
    keep: Mapping[str, Callable[[dict[str, Any]], bool]] = {
        "all": lambda row: True,
        "answerable": lambda row: bool(row.get("answerable", True)),
        "supported": lambda row: bool(row["label"] == "supported"),
        "not supported": lambda row: bool(row["label"] != "supported"),
    }
    return sum(keep[which](row) for _, row in read_rows(name, files[name]))
