"""How a workflow stands, from its folder alone: read-only, so that no run is disturbed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from realign_cluster.domain.retention import METRIC as RETENTION
from realign_cluster.domain.retention import Overall, overall
from realign_cluster.store.run_folder import RunFolder
from realign_cluster.store.workflow_ledger import StageRecord, WorkflowLedgerReader

TURNS: Mapping[str, str] = {  # what followed from a stage, for people
    "pass": "passed",
    "go on": "gone on from, without a decision",
    "remedy": "done again",
    "roll back": "rolled back",
    "stop": "stopped",
}


@contextlib.contextmanager
def open_ledger(run: Path) -> Iterator[WorkflowLedgerReader]:
    """Raises UsageError when `run` is not the folder of a workflow."""
    with contextlib.closing(WorkflowLedgerReader(RunFolder.read(run).ledger)) as ledger:
        yield ledger


def workflow_status(run: Path) -> dict[str, Any]:
    """Stages with their attempts and verdicts, as JSON."""
    with open_ledger(run) as ledger:
        verdicts = ledger.verdicts()
        jobs = ledger.jobs()
        stages = [
            {
                "stage": each.stage,
                "name": each.body["name"],
                "title": each.body["title"],
                "attempt": each.attempt,
                "state": _state(each),
                "turn": each.body.get("turn"),
                "reason": each.body.get("reason", ""),
                "seconds": sum(
                    job.ended - job.begun
                    for job in jobs
                    if (job.stage, job.attempt) == (each.stage, each.attempt) and job.ended
                ),
                "gates": {
                    verdict.gate: verdict.body["outcome"]
                    for verdict in verdicts
                    if (verdict.stage, verdict.attempt) == (each.stage, each.attempt)
                },
            }
            for each in ledger.stages()
        ]
        end = ledger.meta("end") or {}
        return {
            "folder": str(run.absolute()),
            "workflow": ledger.meta("workflow"),
            "state": end.get("state", "incomplete"),
            "reason": end.get("reason", ""),
            "stages": stages,
            "jobs": len(jobs),
            "open_jobs": [job.request["title"] for job in jobs if job.result is None],
            "wall_seconds": sum(job.ended - job.begun for job in jobs if job.ended),
            "begun": _time(jobs[0].begun) if jobs else None,
            "overrides": [{**note.body, "time": _time(note.wall)} for note in ledger.notes("override")],
            "withdrawals": [{**note.body, "time": _time(note.wall)} for note in ledger.notes("withdrawal")],
            "rollbacks": [{**note.body, "time": _time(note.wall)} for note in ledger.notes("rollback")],
            "signatures": [{**note.body, "time": _time(note.wall)} for note in ledger.notes("signature")],
            "reruns": [{**note.body, "time": _time(note.wall)} for note in ledger.notes("rerun")],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowStatus:
    """A workflow in a list of runs. `state` is "running" while a process holds the run, else how it ended."""

    name: str
    folder: Path
    state: str
    holder: str
    command: str
    request: dict[str, Any]
    summary: dict[str, Any]
    body: dict[str, Any]  # as workflow_status gives it

    @property
    def begun(self) -> datetime | None:
        return datetime.fromisoformat(self.body["begun"]) if self.body["begun"] else None

    @property
    def stages_passed(self) -> int:
        return len({each["stage"] for each in self.body["stages"] if each["turn"] in ("pass", "go on")})

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "holder": self.holder,
            **self.body,
            "folder": str(self.folder),
            "state": self.state,
            "stages_passed": self.stages_passed,
        }


def status_lines(status: dict[str, Any]) -> list[str]:
    """For people."""
    lines = [f"{status['folder']}  {status['workflow']}  {status['state']}"]
    if status["reason"]:
        lines.append(f"  {status['reason']}")
    for each in status["stages"]:
        again = f" (attempt {each['attempt'] + 1})" if each["attempt"] else ""
        lines.append(f"  {each['stage']}  {each['title']}{again}: {each['state']}, {each['seconds']:.0f} s of jobs")
        lines += [f"       {outcome:12}  {gate}" for gate, outcome in each["gates"].items()]
    lines += [f"  going on: {title}" for title in status["open_jobs"]]
    kinds = ("overrides", "withdrawals", "rollbacks", "signatures", "reruns")
    notes = [(each["time"], kind[:-1], each) for kind in kinds for each in status[kind]]
    lines += [f"  {kind}: {_note_line(kind, note)}, {when}" for when, kind, note in sorted(notes, key=lambda of: of[0])]
    return lines


def _note_line(kind: str, note: dict[str, Any]) -> str:
    match kind:
        case "override":
            said = f"{note['stage']}.{note['gate']}, which was {note['verdict']}"
        case "withdrawal":
            said = f"{note['stage']}.{note['gate']} is overridden no longer"
        case "rollback":
            said = f"back to stage {note['to']}"
        case "signature":
            said = note["item"]
        case _:
            said = f"stage {note['stage']}, attempt {note['attempt'] + 1}: {', '.join(note['changed'])} changed"
    reason = f" ({note['reason']})" if note.get("reason") else ""
    by = f", by {note['by']}" if note.get("by") else ""
    return f"{said}{by}{reason}"


def gate_rows(run: Path) -> list[dict[str, Any]]:
    """Every verdict with what it was made from."""
    with open_ledger(run) as ledger:
        names = {each.stage: each.body["name"] for each in ledger.stages()}
        return [
            {"stage": names[each.stage], "attempt": each.attempt, "gate": each.gate, **each.body}
            for each in ledger.verdicts()
        ]


def retention_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of rows of `gate_rows`: retention over the benchmarks of each attempt, with "minimum" and "mean"."""
    attempts = dict.fromkeys((row["stage"], row["attempt"]) for row in rows)
    found = []
    for stage, attempt in attempts:
        together = retention_of(row for row in rows if (row["stage"], row["attempt"]) == (stage, attempt))
        if together is not None:
            found.append({"stage": stage, "attempt": attempt, **asdict(together), "text": together.text()})
    return found


def retention_of(verdicts: Iterable[Mapping[str, Any]]) -> Overall | None:
    """Of one attempt's verdicts, as they are written down; None where no benchmark was judged."""
    return overall({v["dataset"]: v["value"] for v in verdicts if v["metric"].startswith(RETENTION)})


def gate_lines(rows: list[dict[str, Any]]) -> list[str]:
    lines = []
    for row in rows:
        value = "-" if row["value"] is None else f"{row['value']:.4f}"
        bound = "-" if row["bound"] is None else f"{row['bound']:.4f}"
        lines.append(
            f"{row['outcome']:12} {row['stage']}.{row['gate']} (attempt {row['attempt'] + 1}): {value}, bound {bound}, "
            f"{row['direction']} {row['threshold']:g}, n {row['items']}"
            + (f", alpha {row['alpha_each']:.3g}" if row["alpha_each"] else "")
            + (f", look {row['look']} of {row['looks']}" if row["alpha_each"] and row["look"] else "")
            + (f", verifier {row['verifier'][:12]}" if row["verifier"] else "")
            + (", overridden" if row["overridden"] else "")
        )
        lines.append(f"             {row['reason']}")
    for each in retention_rows(rows):
        lines.append(f"retention    {each['stage']} (attempt {each['attempt'] + 1}), {each['text']}; gated on each")
    return lines


def _state(stage: StageRecord) -> str:
    if stage.ended is None:
        return "going on"
    turn = str(stage.body.get("turn"))
    return TURNS.get(turn, turn)


def _time(wall: float) -> str:
    return datetime.fromtimestamp(wall, UTC).isoformat(timespec="seconds")
