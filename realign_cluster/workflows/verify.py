"""Who says what is supported: a workflow's verifier, asked on the coordinator (rules, a fact service) or on the cluster
(a judge); or several of them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Any, Final, assert_never

from realign_cluster.domain.job import JUDGE_LABELS, JUDGE_TEMPLATE
from realign_cluster.metrics.detector import Labelled, detector_quality
from realign_cluster.metrics.measured import ItemId
from realign_cluster.metrics.verifiers.ensemble import MEAN_VERSION, mean_verdict
from realign_cluster.metrics.verifiers.evidence import CHUNKS_VERSION
from realign_cluster.metrics.verifiers.fact_service import fact_service_facts
from realign_cluster.metrics.verifiers.judge import Chunking, judge_rows, judge_verdicts
from realign_cluster.metrics.verifiers.lexical import LexicalVerifier
from realign_cluster.metrics.verifiers.report import report_of
from realign_cluster.metrics.verifiers.verdict import Pair, Span, Verdict, fingerprint_of
from realign_cluster.workflows.config import VerifierConfig
from realign_cluster.workflows.derive import Derived, Inputs, derivation, derive
from realign_cluster.workflows.jobs import ArtifactId, Ask, Consult, JobResult, Score
from realign_cluster.workflows.measured import measurement_of, to_row
from realign_cluster.workflows.stage import Context

CHARACTERS_PER_TOKEN = 4  # of evidence, when chunks are cut without a tokenizer


def verdicts_on(context: Context, pairs: ArtifactId, title: str) -> Generator[Ask, JobResult, ArtifactId]:
    """Verdicts for rows of pairs: {"pair", "supported", "label", "span"}, by the workflow's verifier."""
    said: dict[str, ArtifactId] = {}
    for member in members_of(context.config.verifier):
        said[member] = yield from MEMBERS[member](context, pairs, title)
    if len(said) == 1:
        return next(iter(said.values()))
    done = yield derive(verdicts_together, f"{title}: the verdicts together", inputs={"pairs": pairs, **said})
    return done.outputs["verdicts"]


def members_of(verifier: VerifierConfig) -> tuple[str, ...]:
    """Names of those that have a say: of an ensemble the rules, and what else is configured."""
    match verifier.kind:
        case "lexical":
            return ("rules",)
        case "judge":
            return ("judge",)
        case "service":
            return ("service",)
        case "ensemble":
            return ("rules", *(("judge",) if verifier.model else ()), *(("service",) if verifier.service else ()))
        case _:
            assert_never(verifier.kind)


def _by_rules(context: Context, pairs: ArtifactId, title: str) -> Generator[Ask, JobResult, ArtifactId]:
    del context
    done = yield derive(lexical_verdicts, f"{title}: verification by rules", inputs={"pairs": pairs})
    return done.outputs["verdicts"]


def _by_judge(context: Context, pairs: ArtifactId, title: str) -> Generator[Ask, JobResult, ArtifactId]:
    assert context.judge is not None
    chunking = _chunking(context)
    asked = yield derive(
        rows_for_judge, f"{title}: what the judge is asked", inputs={"pairs": pairs}, chunking=chunking
    )
    scored = yield Score(
        title=f"{title}: verification by the judge",
        rows=asked.outputs["rows"],
        model=context.judge,
        kinds=("judge",),
        template=context.config.verifier.template or JUDGE_TEMPLATE,
        labels=JUDGE_LABELS,
        max_tokens=context.config.model.max_tokens,
    )
    done = yield derive(
        verdicts_of_judge,
        f"{title}: the judge's verdicts",
        inputs={"pairs": pairs, "scored": scored.outputs["rows"]},
    )
    return done.outputs["verdicts"]


def _by_service(context: Context, pairs: ArtifactId, title: str) -> Generator[Ask, JobResult, ArtifactId]:
    service = context.config.verifier.service
    assert service is not None
    done = yield Consult(title=f"{title}: verification by the fact service", pairs=pairs, service=service)
    return done.outputs["verdicts"]


MEMBERS: Final[Mapping[str, Callable[[Context, ArtifactId, str], Generator[Ask, JobResult, ArtifactId]]]] = {
    "rules": _by_rules,
    "judge": _by_judge,
    "service": _by_service,
}


def measured_on_labels(context: Context, positive: str, title: str) -> Generator[Ask, JobResult, JobResult]:
    """The verifier held against the labelled claims: the result of `verifier_quality`."""
    labels = context.state.data["labels"]
    pairs = yield derive(label_pairs, f"{title}: labelled pairs", inputs={"labels": labels})
    verdicts = yield from verdicts_on(context, pairs.outputs["pairs"], f"{title}: labelled pairs")
    return (
        yield derive(
            verifier_quality,
            f"{title}: verifier's own quality",
            inputs={"labels": labels, "verdicts": verdicts},
            supported=context.config.verifier.supported,
            verifier=verifier_fingerprint(context),
            positive=positive,
        )
    )


def verifier_fingerprint(context: Context) -> str:
    """Of everything that verdicts depend on besides the pair."""
    verifier = context.config.verifier
    facts: dict[str, Any] = {"kind": verifier.kind, "supported": verifier.supported}
    members = members_of(verifier)
    if "rules" in members:
        facts["rules"] = dict(LexicalVerifier().facts())
    if context.judge is not None:
        facts |= {"judge": context.judge.identity, "template": verifier.template, "chunking": _chunking(context)}
        facts["chunks"] = CHUNKS_VERSION
    if "service" in members and verifier.service is not None:
        facts["service"] = fact_service_facts(verifier.service)
    if len(members) > 1:
        facts["mean"] = MEAN_VERSION
    return fingerprint_of(facts)


@derivation(version=2)
def lexical_verdicts(inputs: Inputs, parameters: Mapping[str, Any]) -> Derived:
    """By rules, without a model."""
    del parameters
    pairs = [pair_of(row) for row in inputs.rows("pairs")]
    return Derived(
        rows={
            "verdicts": [
                verdict_row(pair, each) for pair, each in zip(pairs, LexicalVerifier().score(pairs), strict=True)
            ]
        }
    )


@derivation(version=2)
def rows_for_judge(inputs: Inputs, parameters: Mapping[str, Any]) -> Derived:
    return Derived(
        rows={"rows": judge_rows([pair_of(row) for row in inputs.rows("pairs")], Chunking(**parameters["chunking"]))}
    )


@derivation(version=2)
def verdicts_of_judge(inputs: Inputs, parameters: Mapping[str, Any]) -> Derived:
    del parameters
    pairs = [pair_of(row) for row in inputs.rows("pairs")]
    verdicts = judge_verdicts(pairs, inputs.rows("scored"))
    return Derived(rows={"verdicts": [verdict_row(pair, each) for pair, each in zip(pairs, verdicts, strict=True)]})


@derivation(version=1)
def verdicts_together(inputs: Inputs, parameters: Mapping[str, Any]) -> Derived:
    """Of an ensemble's members, each an input beside the pairs: their mean."""
    del parameters
    members = [name for name in inputs.names() if name in MEMBERS]
    said = [{row["pair"]: _verdict(row) for row in inputs.rows(name)} for name in members]
    pairs = [pair_of(row) for row in inputs.rows("pairs")]
    return Derived(
        rows={"verdicts": [verdict_row(pair, mean_verdict([each[pair.key] for each in said])) for pair in pairs]}
    )


@derivation(version=1)
def label_pairs(inputs: Inputs, parameters: Mapping[str, Any]) -> Derived:
    """The labelled rows as pairs."""
    del parameters
    pairs = {pair.key: pair for pair in (pair_of(row) for row in inputs.rows("labels"))}
    return Derived(rows={"pairs": [{"pair": key, "claim": p.claim, "evidence": [p.text]} for key, p in pairs.items()]})


@derivation(version=3)
def verifier_quality(inputs: Inputs, parameters: Mapping[str, Any]) -> Derived:
    """The verifier held against labels: "measurements" with its false positives, and its report as the value.

    `positive`: what it raises an alarm for: "supported" for attribution, "hallucinated" for a detector.
    """
    verdicts = {row["pair"]: row for row in inputs.rows("verdicts")}
    rows = list(inputs.rows("labels"))
    found = [verdicts[pair_of(row).key] for row in rows]
    threshold, verifier = parameters["supported"], parameters["verifier"]
    said = [label_at(each, threshold) for each in found]
    hallucinated = parameters["positive"] == "hallucinated"
    labelled = []
    for number, (row, each, label) in enumerate(zip(rows, found, said, strict=True)):
        score = each["supported"] or 0.0
        labelled.append(
            Labelled(
                item=ItemId(str(row.get("id", number))),
                positive=(row["label"] != "supported") if hallucinated else row["label"] == "supported",
                alarm=(label != "supported") if hallucinated else label == "supported",
                score=1.0 - score if hallucinated else score,
            )
        )
    measured = detector_quality(labelled)
    report = report_of(
        verifier=verifier,
        dataset="labels",
        threshold=threshold,
        scores=[each["supported"] for each in found],
        said=said,
        human=[row["label"] for row in rows],
        supported=[row["label"] == "supported" for row in rows],
    )
    rates = {
        "verifier_false_positives": measured.false_positives,
        "verifier_false_negatives": measured.false_negatives,
        "support_missed": measured.false_positives if hallucinated else measured.false_negatives,
    }
    return Derived(
        rows={
            "measurements": [
                to_row(measurement_of(name, each, verifier=verifier, dataset="labels")) for name, each in rates.items()
            ]
        },
        value=report.model_dump(mode="json"),
    )


def label_at(verdict: Mapping[str, Any], threshold: float) -> str | None:
    """Of a row of verdicts, as the verifier says, but what it calls supported below the threshold is unverifiable. None
    where it said nothing.
    """
    if verdict["label"] is None:
        return None
    if verdict["supported"] >= threshold:
        return "supported"
    return "unverifiable" if verdict["label"] == "supported" else str(verdict["label"])


def _chunking(context: Context) -> dict[str, Any]:
    return {"max_characters": context.config.verifier.evidence_tokens * CHARACTERS_PER_TOKEN}


def pair_of(row: Mapping[str, Any]) -> Pair:
    """Of a row with "claim" and "evidence", a text or a list of them."""
    evidence = row["evidence"]
    return Pair(claim=row["claim"], evidence=evidence if isinstance(evidence, str) else tuple(evidence))


def verdict_row(pair: Pair, verdict: Verdict) -> dict[str, Any]:
    span = None if verdict.span is None else [verdict.span.start, verdict.span.end]
    return {
        "pair": pair.key,
        "supported": verdict.supported,
        "label": verdict.label,
        "span": span,
        "reason": verdict.reason,
    }


def _verdict(row: Mapping[str, Any]) -> Verdict:
    span = None if row["span"] is None else Span(start=row["span"][0], end=row["span"][1])
    return Verdict(supported=row["supported"], label=row["label"], span=span, reason=row["reason"])
