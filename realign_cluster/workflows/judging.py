"""What a stage's gates say of what an attempt measured: with the user's thresholds, and the part of alpha that one
judgement has. Must not know what follows from it (`course`), or which look it is (`looks`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, assert_never

from realign_cluster.domain.gate import Gate, Measurement, Verdict
from realign_cluster.domain.gates import judge_gate
from realign_cluster.domain.judge_error import VerifierLabels
from realign_cluster.domain.multiplicity import split_alpha
from realign_cluster.domain.retention import BenchmarkPair, judge_benchmark
from realign_cluster.workflows.config import WorkflowConfig
from realign_cluster.workflows.stage import Counted, Outcome, Retained, Rule, Stage, StageGate, judgements_of

OF_THE_VERIFIER: Final = ("verifier_false_positives", "verifier_false_negatives")
COUNT_UNSUPPORTED: Final = ("hallucination_rate",)


def threshold_of(gate: StageGate, stage: str, config: WorkflowConfig) -> float:
    """The user's for the stage of that name where there is one, else the workflow's own."""
    return config.gates.get(stage, {}).get(gate.name, gate.rule.threshold)


def alpha_each(stage: Stage, config: WorkflowConfig) -> float:
    """What one attempt at one look may err by, each gate of the stage."""
    return split_alpha(config.alpha, judgements_of(stage, config))


def rule_as_judged(gate: StageGate, stage: Stage, config: WorkflowConfig) -> Rule:
    """With its threshold and with alpha divided by the attempts that the stage has, and by the looks at each."""
    rule = replace(gate.rule, threshold=threshold_of(gate, stage.name, config))
    if isinstance(rule, Gate):
        return replace(rule, alpha=config.alpha, attempts=judgements_of(stage, config))
    return rule


def judge_stage_gate(
    gate: StageGate, stage: Stage, outcome: Outcome, config: WorkflowConfig, labels: VerifierLabels | None = None
) -> Verdict:
    """The verdict on what an attempt measured. Rates that a verifier reported have its errors in their bounds."""
    rule = rule_as_judged(gate, stage, config)
    match rule:
        case Gate():
            nothing = Measurement(metric=rule.metric, items=(), values=(), verifier="", dataset="")
            measured = outcome.measurements.get(rule.metric, nothing)
            if gate.units_given and measured.units:
                rule = replace(rule, most_units=max(measured.units))
            known = labels_for(rule, measured, labels)
            return judge_gate(rule, measured, labels=known, minutes_per_item=outcome.minutes_per_item)
        case Retained():
            pair = outcome.benchmarks.get(rule.benchmark) or BenchmarkPair(
                benchmark=rule.benchmark, items=(), before=(), after=(), chance=0.0
            )
            alpha, minutes = alpha_each(stage, config), outcome.minutes_per_item
            return judge_benchmark(pair, threshold=rule.threshold, alpha=alpha, minutes_per_item=minutes)
        case Counted():
            return _compare(rule, outcome.facts.get(rule.fact))
        case _:
            assert_never(rule)


def labels_for(rule: Gate, measured: Measurement, labels: VerifierLabels | None) -> VerifierLabels | None:
    """Those that say how far a rate can be trusted: of the verifier that reported it, of what the rate counts. None for
    what no verifier reported, for differences of rates, and for the verifier's own quality.
    """
    if labels is None or measured.verifier != labels.verifier or rule.metric in OF_THE_VERIFIER:
        return None
    if (rule.lowest, rule.highest, rule.scale) != (0.0, 1.0, "plain"):
        return None
    if rule.metric not in COUNT_UNSUPPORTED:
        return labels
    return replace(
        labels,
        true_positives=labels.true_negatives,
        false_negatives=labels.false_positives,
        true_negatives=labels.true_positives,
        false_positives=labels.false_negatives,
    )


def _compare(rule: Counted, value: float | None) -> Verdict:
    """Of a count: there is nothing to infer, so it is its own bound."""
    clear = value is not None and (value >= rule.threshold if rule.direction == "at least" else value <= rule.threshold)
    said = "was not measured" if value is None else f"{value:g} is {rule.direction} {rule.threshold:g}"
    if value is not None and not clear:
        said = f"{value:g} is not {rule.direction} {rule.threshold:g}"
    return Verdict(
        metric=rule.fact,
        outcome="INSUFFICIENT" if value is None else "PASS" if clear else "FAIL",
        direction=rule.direction,
        threshold=rule.threshold,
        value=value,
        bound=value,
        opposite_bound=value,
        items=0,
        undefined=0,
        alpha_each=0.0,
        verifier="",
        dataset="",
        reason=said,
    )
