"""`realign workflow diagnose`: what a run's ledger and artifacts say is wrong with it; also of one that is going on."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from realign_cluster.coordinator.workflow_status import open_ledger
from realign_cluster.store.artifacts import ArtifactStore
from realign_cluster.store.workflow_ledger import StageRecord, VerdictRecord, WorkflowLedgerReader
from realign_cluster.workflows.checking import CHECKS, EXAMPLES
from realign_cluster.workflows.diagnosis import JudgedGate, Measured, RunRecord, diagnose
from realign_cluster.workflows.measured import from_row

# artifacts that hold a stage's measurements, item by item
MEASUREMENTS = ("measurements", "baseline measurements", "verifier measurements", CHECKS)
SHOWN_ROWS = 2  # examples of a finding, for people; JSON has them all
WIDTH = 110


def diagnosis_of(run: Path) -> list[dict[str, Any]]:
    """The findings as JSON, what is to be done first at the head. Raises UsageError for what is no workflow's run."""
    with open_ledger(run) as ledger:
        return [asdict(each) for each in diagnose(record_of(run, ledger))]


def record_of(run: Path, ledger: WorkflowLedgerReader) -> RunRecord:
    """What the rules look at: of each stage its last attempt that ended."""
    artifacts = ArtifactStore(run / "artifacts")
    stages = _last_ended(ledger.stages())
    known = {each.stage: each.attempt for each in stages}
    return RunRecord(
        measured=tuple(each for stage in stages for each in _measured(stage, artifacts)),
        gates=tuple(_gate(each) for each in ledger.verdicts() if known.get(each.stage) == each.attempt),
        settings=ledger.meta("config") or {},
        mixes={stage.stage: _mix(stage.body["facts"]) for stage in stages if _mix(stage.body["facts"])},
        not_done={stage.stage: stage.body["failed"] for stage in stages if stage.body.get("failed")},
        examples=tuple(
            row
            for stage in stages
            if (name := stage.body["artifacts"].get(EXAMPLES)) is not None and artifacts.holds(name)
            for row in artifacts.rows(name)
        ),
    )


def diagnosis_lines(found: list[dict[str, Any]]) -> list[str]:
    """For people."""
    if not found:
        return ["nothing is found to be wrong with what was measured so far"]
    lines: list[str] = []
    for number, each in enumerate(found, 1):
        lines.append(f"{number}. {each['issue']} ({each['kind']}): {each['title']}")
        if each["explained_by"]:
            lines.append(f"   explained by: {', '.join(each['explained_by'])}")
        lines += [f"   {_evidence_line(evidence)}" for evidence in each["evidence"]]
        for row in each["examples"][:SHOWN_ROWS]:
            said = "; ".join(f"{name}: {value}" for name, value in row.items() if name not in ("check",))
            lines += textwrap.wrap(f"e.g. {said}", WIDTH, initial_indent="     ", subsequent_indent="       ")
        lines += [f"   -> {remedy}" for remedy in each["remedies"]]
    return lines


def undecided_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Of verdicts as `gate_rows` gives them: those of last attempts that are no finding and yet stop a strict run."""
    last = {(row["stage"], row["gate"]): row for row in rows}
    return [
        f"undecided: {stage}.{gate}: {row['reason']}"
        for (stage, gate), row in last.items()
        if row["outcome"] == "INSUFFICIENT" and not row["guard"] and not row["overridden"]
    ]


def _evidence_line(evidence: Mapping[str, Any]) -> str:
    line = f"{evidence['what']}: "
    if evidence["value"] is None:
        return f"{line}{evidence['text']} ({evidence['where']})"
    line += f"{evidence['value']:.4g}"
    if evidence["bound"] is not None:
        line += f", bound {evidence['bound']:.4g}"
    if evidence["limit"] is not None:
        line += f", limit {evidence['limit']:g}"
    counted = f", n {evidence['items']}" if evidence["items"] else ""
    of = f", {evidence['dataset']}" if evidence["dataset"] else ""
    return f"{line} ({evidence['where']}{of}{counted})"


def _last_ended(records: list[StageRecord]) -> list[StageRecord]:
    last = {each.stage: each for each in records if each.ended is not None}
    return [last[number] for number in sorted(last)]


def _measured(stage: StageRecord, artifacts: ArtifactStore) -> Iterator[Measured]:
    for name in MEASUREMENTS:
        artifact = stage.body["artifacts"].get(name)
        if artifact is not None and artifacts.holds(artifact):
            for row in artifacts.rows(artifact):
                yield Measured(stage=stage.stage, attempt=stage.attempt, measurement=from_row(row))


def _gate(record: VerdictRecord) -> JudgedGate:
    body = record.body
    return JudgedGate(
        stage=record.stage,
        attempt=record.attempt,
        gate=record.gate,
        title=body["title"],
        outcome=body["outcome"],
        threshold=body["threshold"],
        value=body["value"],
        opposite=body["opposite_bound"],
        items=body["items"],
        dataset=body["dataset"],
    )


def _mix(facts: Mapping[str, Any]) -> dict[str, int]:
    """How many rows of each kind a stage trained on, {} if it trained none or did not say."""
    mix = (facts.get("training") or {}).get("mix") or {}
    return {name: int(count) for name, count in mix.items() if name in ("task", "general")}
