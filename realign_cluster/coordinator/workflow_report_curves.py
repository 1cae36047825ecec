"""The drawings of a workflow's report: losses of its trainings, measures over its stages with bounds and thresholds,
risk against coverage, and the rounds of the iteration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

from realign_cluster.coordinator.charts import number
from realign_cluster.coordinator.curves import Curve, curves, smoothed
from realign_cluster.coordinator.dashboard import duration_text
from realign_cluster.coordinator.intervals import Estimate, intervals
from realign_cluster.coordinator.markup import legend, note, table
from realign_cluster.coordinator.workflow_history import Attempt, WorkflowHistory
from realign_cluster.coordinator.workflow_report_items import Behind
from realign_cluster.domain.rank_report import BENCHMARK
from realign_cluster.metrics.hedging import risk_coverage
from realign_cluster.store.workflow_ledger import JobRecord, VerdictRecord
from realign_cluster.workflows.training_data import good_answer

STYLES: Final = {"PASS": "kept", "FAIL": "failed", "INSUFFICIENT": "tail"}
ALSO_DRAWN: Final = ("over_abstention", "answers_on_unanswerable", "hallucination_rate", "drift")


def losses_body(history: WorkflowHistory) -> str:
    """A drawing for each training, in the order in which they were begun."""
    parts = []
    for job in history.trainings:
        rows = history.rows(((job.result or {}).get("outputs") or {}).get("metrics"))
        points = [(float(row["step"]), float(row["loss"])) for row in rows]
        validation = [(float(row["step"]), row["validation_loss"]) for row in rows if "validation_loss" in row]
        kl = [(float(row["step"]), row["kl"]) for row in rows if "kl" in row]
        drawn = curves(
            [
                Curve(label="each step", points=points, style="faint"),
                Curve(label="smoothed", points=smoothed(points), style="n0"),
                Curve(label="validation", points=validation, style="n1", dots=True),
            ],
            unit="loss",
            height=170.0,
            logarithmic=True,
        )
        diverged = curves(
            [Curve(label="KL", points=kl, style="n3", dots=True)], unit="KL, nats per token", height=120.0
        )
        parts.append(
            f"<h3>{_where(job, history)}: {escape(job.request['title'])}</h3>{note(_took(job))}{drawn}{diverged}"
            f"{_benchmarks(rows)}"
        )
    return "".join(parts)


def _benchmarks(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the benchmarks gave on the way through a training: accuracy, or nats per token where nothing is chosen."""
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name.startswith(BENCHMARK):
                points.setdefault(name.removeprefix(BENCHMARK), []).append((float(row["step"]), value))
    found = [
        Curve(label=name, points=each, style=f"n{at % 8}", dots=True) for at, (name, each) in enumerate(points.items())
    ]
    entries = [(each.style, f"{each.label}: {number(each.points[-1][1])} at last") for each in found]
    return legend(entries) + curves(found, unit="benchmarks on the way", height=120.0) if found else ""


def measures_body(history: WorkflowHistory, behind: Behind) -> str:
    """Each measure that a gate asks for, over the attempts in the order in which they were begun."""
    attempts = [attempt for attempt in history.attempts if attempt.ended]
    slots = [f"{each.stage}" if each.number == 1 else f"{each.stage}/{each.number}" for each in attempts]
    names = dict.fromkeys(
        verdict.body["metric"]
        for each in attempts
        for verdict in each.verdicts
        if verdict.body["alpha_each"]  # what is only counted is counted in one stage
    )
    titles = {verdict.body["metric"]: verdict.body["title"] for each in attempts for verdict in each.verdicts}
    cards = []
    for name in [*names, *(each for each in ALSO_DRAWN if each not in names)]:
        drawn = intervals(slots, [*_estimates(name, attempts, behind)], label=f"{name} over the stages")
        if drawn:
            cards.append(f"<div><h3>{escape(titles.get(name, name.replace('_', ' ')))}</h3>{drawn}</div>")
    if not cards:
        return ""
    entries = [("kept", "PASS"), ("failed", "FAIL"), ("tail", "INSUFFICIENT"), ("n0", "measured, not judged")]
    words = note("By stage (stage/attempt). Whiskers are the one-sided bounds that the gate saw, the dashed line its "
                 "threshold; a click leads to the items.")  # fmt: skip
    return f'{legend(entries)}{words}<div class="pair">{"".join(cards)}</div>'


def rounds_body(history: WorkflowHistory) -> str:
    """Stage 6: what each round aimed at, what it was trained on, and what came of it."""
    parts = []
    for attempt in history.attempts:
        rounds: Sequence[Mapping[str, Any]] = attempt.facts.get("rounds") or ()
        if rounds:
            parts.append(_rounds(attempt, rounds, history))
    return "".join(parts)


def risk_body(history: WorkflowHistory, answers: Sequence[tuple[str, str]]) -> str:
    """Of (name, answers artifact): how much goes wrong if only the answers that a model is surest of are given."""
    found = []
    for at, (name, artifact) in enumerate(answers):
        maker = history.maker(artifact)
        generated = history.rows(maker.request["inputs_by_role"]["generated"]) if maker else []
        sure = {row["id"]: _confidence(row) for row in generated}
        given = [
            (sure[row["id"]], good_answer(row))
            for row in history.rows(artifact)
            if not row["abstains"] and row["id"] in sure
        ]
        curve = risk_coverage(given)
        points = [(100 * coverage, 100 * risk) for coverage, risk in curve.points]
        if curve.area is not None:
            found.append((f"{name}: area {number(curve.area)}", Curve(label=name, points=points, style=f"n{at}")))
    if not found:
        return ""
    drawn = curves([each for _, each in found], unit="% wrong among the surest answers, by % of answers", height=190.0)
    words = note("Sure: mean log probability per token of the answer. Abstentions are not among them; an answer is "
                 "right if every claim is supported and every sentence entailed by what it cites.")  # fmt: skip
    return legend([(each.style, said) for said, each in found]) + drawn + words


def _estimates(name: str, attempts: Sequence[Attempt], behind: Behind) -> list[Estimate]:
    found = []
    for slot, attempt in enumerate(attempts):
        verdict = next((each for each in attempt.verdicts if each.body["metric"] == name), None)
        anchor = behind.link(attempt, name)
        href = f"#{anchor}" if anchor else ""
        if verdict is not None and verdict.body["value"] is not None:
            found.append(_judged(slot, attempt, verdict, href))
        elif verdict is None and (value := attempt.measurements.get(name, {}).get("value")) is not None:
            title = f"{attempt.label}: {number(value)}, not judged here"
            found.append(Estimate(slot=slot, value=value, title=title, href=href))
    return found


def _judged(slot: int, attempt: Attempt, verdict: VerdictRecord, href: str) -> Estimate:
    body = verdict.body
    bounds = [each for each in (body["bound"], body["opposite_bound"]) if each is not None]
    return Estimate(
        slot=slot,
        value=body["value"],
        low=min(bounds, default=None),
        high=max(bounds, default=None),
        threshold=body["threshold"],
        style=STYLES[body["outcome"]],
        title=f"{attempt.label}: {number(body['value'])}, {body['outcome']}: {body['reason']}",
        href=href,
    )


def _rounds(attempt: Attempt, rounds: Sequence[Mapping[str, Any]], history: WorkflowHistory) -> str:
    primary = history.workflow.primary
    entered = _entered(attempt, history)
    values = [("entered", entered), *((f"round {each['round']}", each.get("value")) for each in rounds)]
    drawn = intervals(
        [name for name, _ in values],
        [
            Estimate(slot=at, value=value, title=f"{name}: {number(value)}")
            for at, (name, value) in enumerate(values)
            if value is not None
        ],
        label=f"{primary} over the rounds",
    )
    table_rows = [
        [
            f"{each['round']}",
            number(each["value"]) if each.get("value") is not None else "-",
            escape(str(each.get("trend", "-"))),
            escape(str(each.get("failed") or each.get("why", ""))),
        ]
        for each in rounds
    ]
    groups = sorted({group for each in rounds for group in each["gaps"]})
    gaps = [[escape(group), *(_gap(each, group) for each in rounds)] for group in groups]
    headings = ["group of questions", *(f"before round {each['round']}" for each in rounds)]
    chosen = note(f"{attempt.label}. The best within every limit: {attempt.facts.get('best', '-')}.")
    card = f"<div><h3>{escape(primary.replace('_', ' '))}</h3>{drawn}</div>" if drawn else ""
    return (
        f'{chosen}<div class="pair">{card}<div>{table(["round", ">value", "trend", "why"], table_rows)}</div></div>'
        f"<h3>Gaps, and the targeted rows made for them</h3>{table(headings, gaps)}"
    )


def _entered(attempt: Attempt, history: WorkflowHistory) -> float | None:
    """The first measure of the model that the rounds began with, as the stage before measured it."""
    before = [
        each for each in history.attempts if each.stage < attempt.stage and each.record.begun < attempt.record.begun
    ]
    found = [
        each.measurements[history.workflow.primary] for each in before if history.workflow.primary in each.measurements
    ]
    return found[-1]["value"] if found else None


def _gap(each: Mapping[str, Any], group: str) -> str:
    gap = each["gaps"].get(group)
    targeted = (each.get("targeted") or {}).get(group)
    said = "-" if gap is None else f"{gap['wrong']} of {gap['items']} wrong ({gap['rate']:.1%})"
    return said + (f'; <span class="dim">{targeted:,} rows</span>' if targeted is not None else "")


def _where(job: JobRecord, history: WorkflowHistory) -> str:
    label = next(
        (each.label for each in history.attempts if (each.stage, each.record.attempt) == (job.stage, job.attempt)), ""
    )
    return f"Stage {escape(label or str(job.stage))}"


def _took(job: JobRecord) -> str:
    if job.result is None:
        return "not ended"
    value = job.result.get("value") or {}
    said = [f"{job.request['settings']['method']}, {job.request['settings']['fine_tune']}"]
    if steps := value.get("steps"):
        said.append(f"{steps['done']} of {steps['asked']} steps")
    if value.get("tokens"):
        said.append(f"{value['tokens']:,} tokens")
    if job.ended is not None:
        said.append(duration_text(job.ended - job.begun))
    if value.get("steps_lost"):
        said.append(f"{value['steps_lost']} steps lost and done again")
    if nodes := job.result.get("nodes"):
        said.append(f"on {', '.join(nodes)}")
    return "; ".join(said) + (f"; failed: {job.result['failed']}" if job.result.get("failed") else "")


def _confidence(row: Mapping[str, Any]) -> float:
    """Mean log probability per token of the first answer."""
    sample = row["scores"]["generate"]["samples"][0]
    return float(sample["logprob_sum"] / max(1, sample["tokens"]))
