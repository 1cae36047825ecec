"""From what a run measured to what is wrong with it: causes first, then the symptoms that nothing before explains.

A cause is a rate of faulty rows, or of cut answers, whose lower bound at 95 % is above what is tolerated, or a gate on
the model that the run began with; a symptom is a gate that FAILED. What cannot be decided is no finding. Reads no
files and runs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from realign_cluster.domain.exact_bounds import clopper_pearson_lower
from realign_cluster.domain.gate import Measurement
from realign_cluster.workflows.findings import REMEDIES, Evidence, Finding, Issue
from realign_cluster.workflows.measured import value_of

ALPHA: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A measurement with the attempt of the stage that made it; stages count from 1."""

    stage: int
    attempt: int
    measurement: Measurement

    @property
    def where(self) -> str:
        return _where(self.stage, self.attempt)

    def rate_above(self) -> float:
        """What the rate of yes/no items is at least, at 95 %: exact (Clopper-Pearson)."""
        there, items = round(sum(self.measurement.values)), len(self.measurement.values)
        return float(clopper_pearson_lower(there, items, ALPHA))


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedGate:
    """A verdict as it was recorded. `bound` is the one that had to clear the threshold, `opposite` the other one."""

    stage: int
    attempt: int
    gate: str
    title: str
    outcome: str
    threshold: float
    value: float | None
    opposite: float | None
    items: int
    dataset: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What is known of a run: of each stage its last attempt. `settings`: the configuration as JSON. `mixes`: by stage,
    how many rows of each kind were trained on. `examples`: rows that checks of the data found.
    """

    measured: tuple[Measured, ...] = ()
    gates: tuple[JudgedGate, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    mixes: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    examples: tuple[Mapping[str, Any], ...] = ()
    not_done: Mapping[int, str] = field(default_factory=dict)  # stages that could not be measured, with why


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRule:
    """A check whose rate of faulty rows is a cause when its lower bound is above `tolerated`. `verified`: a verifier
    says which they are, so that as many as it misses are tolerated too.
    """

    check: str
    issue: Issue
    tolerated: float
    title: str
    leads_to: tuple[Issue, ...]
    verified: bool = False


CITING: Final[tuple[Issue, ...]] = ("low citation accuracy", "low attribution coverage")
EVERYTHING: Final[tuple[Issue, ...]] = (
    *CITING, "high hallucination", "over-hedging", "model drift", "capability loss", "stage not done",
)  # fmt: skip
# In the order in which they are to be looked at: what makes other checks and measurements wrong comes first.
# Tolerated is what a careful user's data may have.
DATA_RULES: Final = (
    DataRule(
        check="special_tokens",
        issue="pad token scored",
        tolerated=0.002,
        title="completions hold special tokens as text",
        leads_to=(*CITING, "high hallucination", "unending answers"),
    ),
    DataRule(
        check="unknown_ids",
        issue="wrong ids",
        tolerated=0.01,
        title="completions cite ids that no source has",
        leads_to=CITING,
    ),
    DataRule(
        check="passages_differ",
        issue="mixed-up sources",
        tolerated=0.02,
        title="the sources file has other texts under the ids of the questions' passages",
        leads_to=("poor source retrieval", *CITING),
    ),
    DataRule(
        check="cites_another_source",
        issue="swapped sources",
        tolerated=0.05,
        title="completions cite a source that does not say it, and another one does",
        leads_to=CITING,
        verified=True,
    ),
    DataRule(
        check="answers_unanswerable",
        issue="invented examples",
        tolerated=0.05,
        title="completions answer questions that their sources do not",
        leads_to=("high hallucination", "low citation accuracy"),
    ),
    DataRule(
        check="unsupported",
        issue="invented examples",
        tolerated=0.15,
        title="completions claim what no source says",
        leads_to=("high hallucination", "low citation accuracy"),
        verified=True,
    ),
    DataRule(
        check="uncited",
        issue="examples without citations",
        tolerated=0.05,
        title="completions answer without a citation",
        leads_to=CITING,
    ),
    DataRule(
        check="abstains_on_answerable",
        issue="abstaining examples",
        tolerated=0.03,
        title="completions abstain where the sources answer",
        leads_to=("over-hedging", "low attribution coverage"),
    ),
    DataRule(
        check="cut_short",
        issue="examples cut short",
        tolerated=0.05,
        title="completions stop within a sentence",
        leads_to=CITING,
    ),
    DataRule(
        check="leaked",
        issue="evaluation leak",
        tolerated=0.01,
        title="training rows repeat evaluation questions almost word for word",
        leads_to=(),
    ),
    DataRule(
        check="not_found_by_itself",
        issue="poor index",
        tolerated=0.10,
        title="sources are not found by their own text",
        leads_to=("poor source retrieval",),
    ),
)
SYMPTOMS: Final[Mapping[str, Issue]] = {
    "retrieval_r_precision": "poor source retrieval",
    "kl": "model drift",
    "citation_precision": "low citation accuracy",
    "citation_recall": "low citation accuracy",
    "citation_format": "low citation accuracy",
    "attribution_coverage": "low attribution coverage",
    "hallucination_rate": "high hallucination",
    "factuality": "high hallucination",
    "factuality_change": "high hallucination",
    "over_abstention": "over-hedging",
    "citation_precision_change": "low citation accuracy",
    "citation_recall_change": "low citation accuracy",
    "coverage_change": "low attribution coverage",
}
RETENTION: Final = "retention_"
CUT_OFF: Final = "answers_cut_off"
CUT_TOLERATED: Final = 0.10
FIRST_TRAINED: Final = 3  # the stage that trains on the data: a base model need not end its answers
CUT_SHORTER: Final = 0.9  # of the completions' mean length: a cut answer that is shorter was not given the room
MISSED_SUPPORT: Final = "support_missed"  # by the verifier, of the claims that people say are supported


def diagnose(run: RunRecord) -> list[Finding]:
    """The findings, causes first, each symptom with the findings before it that explain it."""
    found = [*_damaged_base(run), *_data(run), *_symptoms(run), *_cut_answers(run), *_not_done(run)]
    found.sort(key=lambda each: each.kind == "symptom")
    return [
        replace(
            each,
            explained_by=tuple(dict.fromkeys(other.issue for other in found[:at] if each.issue in other.leads_to)),
        )
        for at, each in enumerate(found)
    ]


# --- causes ---


def _damaged_base(run: RunRecord) -> Iterator[Finding]:
    """Also where too few texts were measured for a FAIL: all that comes after stands on this model."""
    missed = [gate for gate in run.gates if gate.gate == "perplexity" and _misses(gate)]
    if missed:
        yield Finding(
            issue="damaged base",
            kind="weights",
            title="the model that the run began with does not predict the validation texts",
            evidence=tuple(map(_of_gate, missed)),
            remedies=REMEDIES["damaged base"],
            leads_to=(*EVERYTHING, "unending answers", "truncated answers"),
        )


def _misses(perplexity: JudgedGate) -> bool:
    above = perplexity.value is not None and perplexity.value > perplexity.threshold
    return perplexity.outcome == "FAIL" or (perplexity.outcome == "INSUFFICIENT" and above)


def _data(run: RunRecord) -> Iterator[Finding]:
    """One finding for an issue, with every set in which it is."""
    misses = _verifier_misses(run)
    found: dict[Issue, Finding] = {}
    for rule in DATA_RULES:
        tolerated = max(rule.tolerated, misses) if rule.verified else rule.tolerated
        evidence = tuple(_above(rule, tolerated, run.measured))
        if not evidence:
            continue
        rows = tuple(row for row in run.examples if row["check"] == rule.check)
        if (known := found.get(rule.issue)) is not None:
            found[rule.issue] = replace(known, evidence=(*known.evidence, *evidence), examples=(*known.examples, *rows))
            continue
        found[rule.issue] = Finding(
            issue=rule.issue,
            kind="data",
            title=rule.title,
            evidence=evidence,
            remedies=REMEDIES[rule.issue],
            leads_to=rule.leads_to,
            examples=rows,
        )
    yield from found.values()


def _above(rule: DataRule, tolerated: float, measured: Iterable[Measured]) -> Iterator[Evidence]:
    for each in measured:
        if each.measurement.metric == f"{rule.check} in {each.measurement.dataset}":
            lower = each.rate_above()
            if lower > tolerated:
                yield _rate(each, f"share of rows: {rule.title}", lower, tolerated)


def _verifier_misses(run: RunRecord) -> float:
    """How often the verifier does not see support that people see: its own examples may be right that often."""
    rates = (value_of(each.measurement) for each in run.measured if each.measurement.metric == MISSED_SUPPORT)
    return max((rate for rate in rates if rate is not None), default=0.0)


def _cut_answers(run: RunRecord) -> Iterator[Finding]:
    """Of the newest answers: cut off short of what is taught; or never ending, by a model that was taught to end."""
    cut = _newest(run, CUT_OFF)
    if cut is None or (lower := cut.rate_above()) <= CUT_TOLERATED:
        return
    written = [_newest(run, f"completion_characters in {name}") for name in ("practice", "citation")]
    taught = [value for each in written if each is not None and (value := value_of(each.measurement)) is not None]
    lengths = _newest(run, "characters_of_cut_answers")
    length = value_of(lengths.measurement) if lengths is not None else None
    limit = run.settings.get("generation", {}).get("max_new_tokens")
    evidence = [_rate(cut, "share of answers that reached generation.max_new_tokens", lower, CUT_TOLERATED)]
    evidence.append(Evidence(what="generation.max_new_tokens", where="configuration", text=str(limit)))
    if length is not None and lengths is not None:
        evidence.append(
            Evidence(
                what="mean characters of the answers cut off",
                where=lengths.where,
                value=length,
                items=len(lengths.measurement.items),
                dataset=lengths.measurement.dataset,
            )
        )
    if taught:
        evidence.append(Evidence(what="mean characters of the completions", where="data", value=max(taught)))
    short = bool(taught) and length is not None and length < CUT_SHORTER * max(taught)
    if not short and cut.stage < FIRST_TRAINED:
        return
    issue: Issue = "truncated answers" if short else "unending answers"
    first = min(
        (each for each in run.measured if each.measurement.metric == CUT_OFF and each.stage >= FIRST_TRAINED),
        key=lambda each: each.stage,
        default=cut,
    )
    ended_once = first.rate_above() <= CUT_TOLERATED  # a later training undid it
    yield Finding(
        issue=issue,
        kind="configuration" if short else "symptom" if ended_once else "weights",
        title="answers are cut off before they can be complete" if short else "answers do not end by themselves",
        evidence=tuple(evidence),
        remedies=REMEDIES[issue],
        leads_to=EVERYTHING,
    )


# --- symptoms ---


def _symptoms(run: RunRecord) -> Iterator[Finding]:
    """By the stage where each was first seen; of one stage, drift before what it brings with it."""
    failed = [gate for gate in run.gates if gate.outcome == "FAIL" and _issue_of(gate.gate) is not None]
    failed.sort(key=lambda gate: (gate.stage, gate.gate != "kl", gate.gate))
    by_issue: dict[Issue, list[JudgedGate]] = {}
    for gate in failed:
        issue = _issue_of(gate.gate)
        assert issue is not None
        by_issue.setdefault(issue, []).append(gate)
    for issue, gates in by_issue.items():
        yield Finding(
            issue=issue,
            kind="symptom",
            title=", ".join(dict.fromkeys(gate.title for gate in gates)),
            evidence=(*map(_of_gate, gates), *_settings_behind(issue, gates[0].stage, run)),
            remedies=REMEDIES[issue],
            leads_to=_brought_by_drift(run, gates[0].stage) if issue == "model drift" else (),
        )


def _not_done(run: RunRecord) -> Iterator[Finding]:
    for stage, reason in run.not_done.items():
        yield Finding(
            issue="stage not done",
            kind="symptom",
            title=reason,
            evidence=(Evidence(what="it ended with", where=f"stage {stage}", text=reason),),
            remedies=REMEDIES["stage not done"],
        )


def _issue_of(gate: str) -> Issue | None:
    return "capability loss" if gate.startswith(RETENTION) else SYMPTOMS.get(gate)


def _brought_by_drift(run: RunRecord, stage: int) -> tuple[Issue, ...]:
    """What had not failed before the stage in which the model went too far."""
    before = {_issue_of(gate.gate) for gate in run.gates if gate.stage < stage and gate.outcome == "FAIL"}
    return tuple(issue for issue in (*EVERYTHING, "unending answers") if issue not in before | {"model drift"})


def _settings_behind(issue: Issue, stage: int, run: RunRecord) -> Iterator[Evidence]:
    """What was set where the symptom began, that its remedies change."""
    training = run.settings.get("training", {})
    if issue == "model drift":
        for name in ("preference", "iteration") if stage >= 6 else ("preference",):
            if (asked := training.get(name)) is not None:
                rate = f"{asked['optimizer']['learning_rate']:g}"
                key = f"training.{name}"
                yield Evidence(what=f"{key}.optimizer.learning_rate", where="configuration", text=rate)
                yield Evidence(what=f"{key}.loss.beta", where="configuration", text=f"{asked['loss']['beta']:g}")
    if issue == "capability loss" and (mix := run.mixes.get(stage)) is not None:
        general, task = mix.get("general", 0), mix.get("task", 0)
        text = f"{general} of {general + task} rows" if general else f"none of {task} rows"
        yield Evidence(what="general data in the training", where=f"stage {stage}", text=text)


# --- evidence ---


def _newest(run: RunRecord, metric: str) -> Measured | None:
    found = [each for each in run.measured if each.measurement.metric == metric and each.measurement.items]
    return max(found, key=lambda each: (each.stage, each.attempt), default=None)


def _rate(each: Measured, what: str, lower: float, tolerated: float) -> Evidence:
    return Evidence(
        what=what,
        where=each.where,
        value=value_of(each.measurement),
        bound=lower,
        limit=tolerated,
        items=len(each.measurement.items),
        dataset=each.measurement.dataset,
    )


def _of_gate(gate: JudgedGate) -> Evidence:
    return Evidence(
        what=gate.title,
        where=_where(gate.stage, gate.attempt),
        value=gate.value,
        bound=gate.opposite,
        limit=gate.threshold,
        items=gate.items,
        dataset=gate.dataset,
    )


def _where(stage: int, attempt: int) -> str:
    return f"stage {stage}" + (f", attempt {attempt + 1}" if attempt else "")
