"""Judges every gate of a workflow's run again from what it stored: nothing here is of the project or the generator.

    python examples/knowledge_base/recompute_run.py RUN

From answers, likelihoods, divergences, rankings, labels and the verifier's verdicts to measures (`recompute_reading`),
from these to bounds (`recompute_bounds`), and from bounds to PASS, FAIL or INSUFFICIENT: value, bounds, outcome,
threshold, items, share of alpha and look have to be those of the ledger. What is supported is read a second time, word
for word: there the value has to be the same but for the verifier's errors, and PASS and FAIL have to follow from exact
bounds too. Rankings are made a second time, likewise. Prints a line for each verdict; exit status 1 if one differs, or
is of a gate that is not known here.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import recompute_reading as reading
from recompute_bounds import Items, Judged, Rule, change, judge, judge_retention, outcome_of, wholly
from recompute_stored import Stage, Stored

SAME = 0.02  # a verifier goes by rules, and errs now and then
EQUAL = 1e-6
RETENTION = "retention_"
ONCE = ("facts", "iteration", "evaluation")  # stages without another attempt
RATES: dict[str, reading.Metric] = {
    "citation_precision": reading.precision,
    "citation_recall": reading.recall,
    "citation_format": reading.in_one_format,
    "attribution_coverage": reading.coverage,
    "factuality": reading.factual,
    "hallucination_rate": reading.made_up,
    "over_abstention": reading.over_abstention,
}
CHANGES: dict[str, reading.Metric] = {
    "citation_precision_change": reading.precision,
    "citation_recall_change": reading.recall,
    "coverage_change": reading.coverage_by_answer,
    "factuality_change": reading.supported_or_silent,
}
PROGRESS: dict[str, reading.Metric] = {"source-attribution": reading.recall, "antihallucination": reading.factual}
CORRECTED = ("citation_precision", "citation_recall", "factuality", "hallucination_rate", "pairs_supported")
VERIFIED = (*CORRECTED, "citation_precision_change", "citation_recall_change", "factuality_change", "progress")


def rule_of(gate: str, stage: Stage, stored: Stored) -> Rule | None:
    """A gate's own threshold, and what its bound is made from. None: it is not known here."""
    config = stored.config
    claims, tokens = config["generation"]["most_claims"], config["generation"]["max_new_tokens"]
    flat = config["iteration"]["flat"]
    accuracy = 0.85 if (stored.workflow, stage.name) == ("antihallucination", "evaluation") else 0.90
    paired = Rule(least=True, threshold=-flat, evidence="scores", low=-1.0)
    rules = {
        "perplexity": Rule(
            least=False, threshold=20.0, evidence="ratio", high=math.log(1e6), most_units=None, exp=True
        ),
        "baseline_recorded": Rule(least=True, threshold=1.0, evidence="items"),
        "retrieval_r_precision": Rule(least=True, threshold=0.85, evidence="scores"),
        "largest_share_of_a_type": Rule(least=False, threshold=0.60, evidence="items"),
        "types_missing": Rule(least=False, threshold=0.0, evidence="items"),
        "pairs_supported": Rule(least=True, threshold=0.85, evidence="items"),
        "citation_precision": Rule(least=True, threshold=accuracy, evidence="scores"),
        "citation_recall": Rule(least=True, threshold=accuracy, evidence="scores"),
        "citation_format": Rule(least=True, threshold=0.99, evidence="scores"),
        "attribution_coverage": Rule(least=True, threshold=0.80, evidence="ratio", most_units=claims),
        "factuality": Rule(least=True, threshold=0.90, evidence="scores"),
        "hallucination_rate": Rule(least=False, threshold=0.10, evidence="ratio", most_units=claims),
        "over_abstention": Rule(least=False, threshold=0.10, evidence="items"),
        "verifier_false_positives": Rule(least=False, threshold=0.05, evidence="items"),
        "kl": Rule(least=False, threshold=0.1, evidence="ratio", high=2.0, most_units=tokens),
        "factuality_change": replace(paired, threshold=0.0),
        **dict.fromkeys(("citation_precision_change", "citation_recall_change", "coverage_change", "progress"), paired),
    }
    if gate.startswith(RETENTION):
        return Rule(least=True, threshold=0.95, evidence="scores")
    return rules.get(gate)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A verdict of the run's, and what it is of."""

    gate: str
    rule: Rule
    stage: Stage
    stored: Stored
    verdict: dict[str, Any]

    @property
    def questions(self) -> str:
        """Which the model is asked."""
        return "sealed" if self.stage.name == "evaluation" else "items"

    @property
    def alpha(self) -> float:
        """What is left of it for one judgement, being divided by attempts and looks."""
        config, name = self.stored.config, self.stage.name
        repeats = {
            "preparation": config["training"]["preparation"] is not None,
            "sources": config["retrieval"]["kind"] == "bm25",
            **dict.fromkeys(ONCE, False),
        }.get(name, True)
        return float(config["alpha"] / (config["looks"] * (config["attempts"] if repeats else 1)))

    @property
    def candidate(self) -> str:
        """What a gate looks at."""
        looked_at = {
            "verifier_false_positives": self.verdict["verifier"],
            "retrieval_r_precision": self.stage.artifacts.get("index", ""),
            "pairs_supported": self.stage.data.get("pairs", ""),
        }
        return str(looked_at.get(self.gate, self.stage.model))


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """What is judged again: `items` as they were measured, None for a count; `second` from the texts alone."""

    judged: Judged
    items: Items | None
    second: Items | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Of one verdict. "not recomputed" has its reason."""

    status: Literal["agrees", "DIFFERS", "NOT KNOWN", "not recomputed"]
    said: str


def judge_again(run: Path) -> Iterator[Line]:
    """A line for each verdict of the ledger."""
    stored = Stored(run)
    attempts = {(stage.number, stage.attempt): stage for stage in stored.stages}
    for number, attempt, gate, verdict in stored.verdicts():
        line = _line(stored, attempts.get((number, attempt)), gate, verdict)
        yield replace(line, said=f"stage {number} attempt {attempt + 1} {gate}: {line.said}")


def _line(stored: Stored, stage: Stage | None, gate: str, verdict: dict[str, Any]) -> Line:
    if stage is None:
        return Line(status="not recomputed", said="the stage has not ended")
    rule = rule_of(gate, stage, stored)
    if rule is None:
        return Line(status="NOT KNOWN", said="there is no rule for it here")
    if gate.startswith(RETENTION) and f"harness {gate.removeprefix(RETENTION)}" in stage.data:
        return Line(status="not recomputed", said="a task of lm-evaluation-harness, scored by code of its own")
    threshold = stored.config["gates"].get(stage.name, {}).get(gate, rule.threshold)
    if (later := stored.done_again(stage)) is not None:
        if later.settings != stage.settings:
            return Line(
                status="not recomputed",
                said="the stage was done again, with other settings: those of before are not kept",
            )
        threshold = verdict["threshold"]  # the run does not judge such an attempt again when thresholds change
    case = Case(gate=gate, rule=replace(rule, threshold=threshold), stage=stage, stored=stored, verdict=verdict)
    try:
        again = _judged_again(case)
    except LookupError as gone:
        return Line(status="DIFFERS", said=f"not stored: {gone}")
    differences = [*_differences(case, again), *_differences_of_second(case, again)]
    return Line(status="DIFFERS" if differences else "agrees", said="; ".join([_shown(case, again), *differences]))


def _judged_again(case: Case) -> Again:
    gate, rule = case.gate, case.rule
    if gate.startswith(RETENTION):
        before, after = _benchmark(case, case.stored.baseline(case.stage), "items"), _benchmark(case, case.stage)
        judged = judge_retention(before.items, after.items, after.chance, rule.threshold, case.alpha)
        return Again(judged=judged, items=after.items)
    if gate in COUNTED:
        value = COUNTED[gate](case)
        if value is None:
            return Again(judged=Judged(outcome="INSUFFICIENT"), items=None)
        judged = Judged(outcome=outcome_of(rule, value, value), value=value, lower=value, upper=value)
        return Again(judged=judged, items=None)
    items = MEASURED[gate](case) if gate in MEASURED else _of_answers(case, case.stored.supports)
    labels = case.stored.labels(case.stage, case.verdict["verifier"]) if gate in CORRECTED else None
    if labels is not None and gate == "hallucination_rate":
        labels = labels.of_the_rest()
    second = None
    if gate in SECOND:
        second = SECOND[gate](case)
    elif gate in VERIFIED:
        second = _of_answers(case, lambda stage, model, questions: reading.word_for_word)
    return Again(judged=judge(rule, items, case.alpha, labels), items=items, second=second)


# --- what is measured ---


def _of_answers(case: Case, supports_of: Callable[[Stage, str, str], reading.Supports]) -> Items:
    def of(metric: reading.Metric, model: str) -> Items:
        place = (case.stage, model, case.questions)
        return metric(case.stored.answers(*place), supports_of(*place))

    if case.gate in RATES:
        return of(RATES[case.gate], case.stage.model)
    metric = PROGRESS[case.stored.workflow] if case.gate == "progress" else CHANGES[case.gate]
    return change(of(metric, case.stage.model), of(metric, case.stage.entered))


def _perplexity(case: Case) -> Items:
    rows = case.stored.likelihoods(case.stage, valid=True)
    return {
        row["id"]: (-row["scores"]["loglik"]["sum"], row["scores"]["loglik"]["tokens"])
        for row in rows
        if row["set"] == "valid"
    }


def _divergence(case: Case) -> Items:
    """Of a prompt's completions together; the reference is what stage 5 began with."""
    first = case.stage.name == "optimisation"
    reference = case.stage.entered if first else case.stored.entered_optimisation(case.stage)
    found: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for row in case.stored.divergences(case.stage, reference):
        nats, tokens = found[row["id"]]
        found[row["id"]] = (nats + row["scores"]["kl"]["sum"], tokens + row["scores"]["kl"]["tokens"])
    return dict(found)


def _retrieval(case: Case) -> Items:
    rankings, _ = case.stored.retrieval(case.stage)
    return reading.r_precision(case.stored.of(case.stage, "queries"), [row["ranked"] for row in rankings])


def _retrieval_by_words(case: Case) -> Items | None:
    """Searched anew. None where the retriever is the user's."""
    _, retriever = case.stored.retrieval(case.stage)
    if "code" in retriever:
        return None
    sources, queries = (case.stored.of(case.stage, name) for name in ("sources", "queries"))
    return reading.r_precision(queries, reading.ranked_by_words(sources, queries, retriever["k1"], retriever["b"]))


def _pairs(case: Case, supports: reading.Supports) -> Items:
    """Collected pairs that are supported."""
    return {
        str(at): (float(supports([source["text"] for source in row["sources"]], reading.plain(row["claim"]))), 1.0)
        for at, row in enumerate(case.stored.of(case.stage, "pairs"))
    }


def _false_positives(case: Case) -> Items:
    """Of a detector: what is supported and said not to be. Of a verifier: what is not and is said to be."""
    found = case.stored.labelled(case.stage, case.verdict["verifier"])
    detector = case.stage.name == "detection"
    return {item: (float(said != right), 1.0) for item, right, said in found if right == detector}


def _benchmark(case: Case, stage: Stage, questions: str | None = None) -> reading.Scored:
    """What the stage's model can do."""
    place = f"benchmark {case.gate.removeprefix(RETENTION)}"
    said: dict[str, str] = {}
    likely: dict[str, dict[int, float]] = defaultdict(dict)
    for row in case.stored.rows(case.stored.generated(stage, stage.model, questions or case.questions)):
        if row["set"] == place:
            said[row["id"]] = row["scores"]["generate"]["samples"][0]["text"]
    items = case.stored.of(stage, place)
    if any("choices" in row for row in items):
        for row in case.stored.likelihoods(stage, valid=stage.name == "preparation"):
            if row["set"] == place:
                likely[row["id"]][row["choice"]] = row["scores"]["loglik"]["sum"]
    return reading.benchmark_scores(items, said, likely)


def _types(case: Case) -> tuple[float | None, int]:
    sources, practice = (case.stored.of(case.stage, name) for name in ("sources", "practice"))
    return reading.types_of_sources(sources, practice)


def _recorded(case: Case) -> float:
    place = (case.stage, case.stage.model, case.questions)
    return reading.recorded(case.stored.answers(*place), case.stored.supports(*place))


MEASURED: dict[str, Callable[[Case], Items]] = {
    "perplexity": _perplexity,
    "kl": _divergence,
    "retrieval_r_precision": _retrieval,
    "pairs_supported": lambda case: _pairs(case, case.stored.supports_collected(case.stage)),
    "verifier_false_positives": _false_positives,
}
SECOND: dict[str, Callable[[Case], Items | None]] = {
    "retrieval_r_precision": _retrieval_by_words,
    "pairs_supported": lambda case: _pairs(case, reading.word_for_word),
}
COUNTED: dict[str, Callable[[Case], float | None]] = {
    "baseline_recorded": _recorded,
    "largest_share_of_a_type": lambda case: _types(case)[0],
    "types_missing": lambda case: _types(case)[1],
}


# --- beside what the run said ---


def _differences(case: Case, again: Again) -> Iterator[str]:
    judged, least = again.judged, case.rule.least
    defined = [name for name, (_, of) in (again.items or {}).items() if of > 0]
    expected: dict[str, Any] = {
        "direction": "at least" if least else "at most",
        "threshold": case.rule.threshold,
        "value": judged.value,
        "bound": judged.lower if least else judged.upper,
        "opposite_bound": judged.upper if least else judged.lower,
        "items": len(defined),
        "undefined": len(again.items or {}) - len(defined),
        "alpha_each": 0.0 if again.items is None else case.alpha,
        "outcome": judged.outcome,
    }
    if defined:
        looks = case.stored.config["looks"]
        look = case.stored.number_of_look((case.stage.name, case.gate, case.candidate), defined)
        expected |= {"look": look, "looks": looks}
        if judged.outcome == "PASS" and (look is None or look > looks):
            expected["outcome"] = "INSUFFICIENT"  # nothing is left of alpha
    for name, mine in expected.items():
        if not _equal(mine, case.verdict.get(name)):
            yield f"{name} is {mine}, the run says {case.verdict.get(name)}"


def _differences_of_second(case: Case, again: Again) -> Iterator[str]:
    """Near the first, and the outcome follows from it too."""
    if again.second is None or again.items is None:
        return
    first, second = _ratio(again.items), _ratio(again.second)
    if first is None or second is None:
        if first != second:
            yield f"{second} from the texts alone"
        return
    if abs(first - second) > SAME:
        yield f"{first:.4f} is not {second:.4f}, from the texts alone, to {SAME}"
    if case.rule.low == 0.0 and (outcome := case.verdict["outcome"]) != "INSUFFICIENT":
        found = outcome_of(case.rule, *wholly(again.second, case.alpha))
        if found != outcome:
            yield f"{outcome} does not follow from the texts alone, but {found}"


def _ratio(items: Items) -> float | None:
    units = math.fsum(of for _, of in items.values())
    return math.fsum(value for value, _ in items.values()) / units if units else None


def _equal(mine: Any, said: Any) -> bool:
    if isinstance(mine, float) and isinstance(said, float | int):
        return abs(mine - said) <= EQUAL * max(1.0, abs(mine))
    return bool(mine == said)


def _shown(case: Case, again: Again) -> str:
    value, lower, upper = (
        "-" if x is None else f"{x:.4f}" for x in (again.judged.value, again.judged.lower, again.judged.upper)
    )
    direction = "at least" if case.rule.least else "at most"
    said = f"{value}, bounds {lower} and {upper}, {direction} {case.rule.threshold:g}: {again.judged.outcome}"
    if again.second is not None and (second := _ratio(again.second)) is not None:
        said += f", {second:.4f} from the texts alone"
    return said


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    lines = list(judge_again(parser.parse_args(arguments).run))
    for line in lines:
        print(f"{line.status:<8}", line.said)
    return 0 if lines and all(line.status in ("agrees", "not recomputed") for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
