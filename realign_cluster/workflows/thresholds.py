"""The gates of both workflows, with the thresholds as given, and what a user may change of them.

Metrics are defined in `metrics`; a gate says which of them, which way, and what its bound is made from.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.gate import Direction, Evidence, Gate
from realign_cluster.domain.suggest import did_you_mean
from realign_cluster.domain.toml_lines import line_of_toml, lines_of_toml
from realign_cluster.workflows.config import WorkflowConfig
from realign_cluster.workflows.stage import Counted, Retained, StageGate, Workflow

LARGEST_NATS: Final = math.log(1e6)  # per token: more than guessing among a million
LARGEST_KL: Final = 2.0  # nats per completion token that count; beyond it a model is another one
KL_BUDGET: Final = 0.1


def _gate(name: str, title: str, direction: Direction, threshold: float, evidence: Evidence, **more: Any) -> StageGate:
    gate = Gate(metric=name, direction=direction, threshold=threshold, evidence=evidence, **more)
    return StageGate(name=name, title=title, rule=gate)


def perplexity() -> StageGate:
    """Pooled over completion tokens; how many a row has is the data's."""
    gate = _gate("perplexity", "validation perplexity", "at most", 20.0, "ratio", highest=LARGEST_NATS, scale="exp")
    return replace(gate, units_given=True)


def divergence(most_tokens: int) -> StageGate:
    """Nats per completion token, of prompts with at most `most_tokens` of them."""
    title = "KL from the model that entered optimisation"
    return _gate("kl", title, "at most", KL_BUDGET, "ratio", highest=LARGEST_KL, most_units=float(most_tokens))


def retrieval_precision() -> StageGate:
    gate = _gate("retrieval_r_precision", "retrieval precision (R-precision)", "at least", 0.85, "scores")
    return replace(gate, judges="index")


def citation_accuracy(threshold: float = 0.90) -> tuple[StageGate, StageGate]:
    """Precision and recall: both have to clear it."""
    return (
        _gate("citation_precision", "citation precision", "at least", threshold, "scores"),
        _gate("citation_recall", "citation recall", "at least", threshold, "scores"),
    )


def one_format() -> StageGate:
    """The share within each answer: a bound on the pooled one would need to know how long an answer may be."""
    return _gate("citation_format", "citations in the one format", "at least", 0.99, "scores")


def coverage(most_claims: int) -> StageGate:
    title = "attribution coverage"
    return _gate("attribution_coverage", title, "at least", 0.80, "ratio", most_units=float(most_claims))


def factuality() -> StageGate:
    return _gate("factuality", "factuality", "at least", 0.90, "scores")


def factuality_improving() -> StageGate:
    """The paired change from the model that entered, abstentions counted as saying nothing unsupported: a hallucination
    that became one is better, one that became a hallucination worse. Refusing what could be answered gains nothing.
    """
    return _gate("factuality_change", "factuality improving", "at least", 0.0, "scores", lowest=-1.0)


def hallucination_rate(most_claims: int) -> StageGate:
    title = "hallucination rate"
    return _gate("hallucination_rate", title, "at most", 0.10, "ratio", most_units=float(most_claims))


def verifier_false_positives(title: str) -> StageGate:
    return replace(_gate("verifier_false_positives", title, "at most", 0.05, "items"), judges="verifier")


def pairs_supported() -> StageGate:
    gate = _gate("pairs_supported", "citation accuracy of the collected pairs", "at least", 0.85, "items")
    return replace(gate, judges="pairs")


def over_abstention() -> StageGate:
    return _gate("over_abstention", "over-abstention", "at most", 0.10, "items")


def not_worse(metric: str, title: str, margin: float) -> StageGate:
    """The paired change of a metric from the stage's input."""
    return _gate(f"{metric}_change", f"{title}, not worse than before", "at least", -margin, "scores", lowest=-1.0)


def progress(margin: float) -> StageGate:
    """The paired change of the first measure from the model that entered the iteration."""
    return _gate("progress", "not worse than the model that entered", "at least", -margin, "scores", lowest=-1.0)


def retention(benchmark: str) -> StageGate:
    return StageGate(
        name=f"retention_{benchmark}", title=f"retention of {benchmark}", rule=Retained(benchmark=benchmark)
    )


def counted(fact: str, title: str, direction: Direction, threshold: float) -> StageGate:
    rule = Counted(fact=fact, direction=direction, threshold=threshold)
    return StageGate(name=fact, title=title, rule=rule, judges="data")


def guard(gate: StageGate) -> StageGate:
    """The same gate where it is watched and not the purpose."""
    return replace(gate, guard=True)


def check_thresholds(workflow: Workflow, config: WorkflowConfig, path: Path) -> None:
    """Raises UsageError for a stage or gate in [gates] that is not there, and for a threshold that cannot be meant."""
    lines = lines_of_toml(path.read_text(encoding="utf-8"))
    wrong: list[str] = []
    for stage_name, gates in config.gates.items():
        place = f"{path}:{line_of_toml(lines, ('gates', stage_name))}: gates.{stage_name}"
        names = [stage.name for stage in workflow.stages]
        if stage_name not in names:
            wrong.append(f"{place}: there is no such stage{did_you_mean(stage_name, names)}")
            continue
        known = {gate.name: gate for gate in workflow.stage(stage_name).gates}
        for name, threshold in gates.items():
            at = f"{path}:{line_of_toml(lines, ('gates', stage_name, name))}: gates.{stage_name}.{name}"
            if name not in known:
                wrong.append(f"{at}: there is no such gate{did_you_mean(name, known)}")
                continue
            rule = known[name].rule
            if isinstance(rule, Retained) and not 0 < threshold <= 1:
                wrong.append(f"{at}: a retention of {threshold:g} will not do, it should be above 0 and at most 1")
                continue
            if isinstance(rule, Counted) and threshold < 0:
                wrong.append(f"{at}: a count of {threshold:g} will not do, it should be 0 or more")
                continue
            try:
                replace(rule, threshold=threshold)
            except UsageError as error:
                wrong.append(f"{at}: {error.message}: {error.fix}")
    if wrong:
        raise UsageError("\n".join(wrong), "docs/workflows/thresholds.md has every gate with its own threshold")
