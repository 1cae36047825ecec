"""What people decide of a workflow's run: a gate overridden or no longer, a stage taken back, an item signed. Each with
its name, time and reason.

Only written down here; the next `realign workflow run` acts on it. Raises UsageError for what cannot be meant.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.suggest import did_you_mean
from realign_cluster.store.run_folder import RunFolder
from realign_cluster.store.workflow_ledger import WorkflowLedger, WorkflowLedgerReader
from realign_cluster.workflows.checklists import SIGNED_ITEMS
from realign_cluster.workflows.config import recorded_config
from realign_cluster.workflows.course import Decisions
from realign_cluster.workflows.looks import Place
from realign_cluster.workflows.stage import Workflow
from realign_cluster.workflows.tables import workflow_named


@contextlib.contextmanager
def _open(run: Path) -> Iterator[tuple[WorkflowLedger, Workflow]]:
    """Locked: nobody decides under a run that is going on."""
    RunFolder.read(run)
    with RunFolder.hold(run) as folder, contextlib.closing(WorkflowLedger(folder.ledger)) as ledger:
        yield ledger, workflow_of(ledger)


def workflow_of(ledger: Any) -> Workflow:
    """The table that a run goes by, from its ledger."""
    return workflow_named(ledger.meta("workflow"), recorded_config(ledger.meta("config")))


def decisions_of(ledger: WorkflowLedgerReader, workflow: Workflow) -> Decisions:
    """What people have said so far, overrides that were not withdrawn and rollbacks; and what gates have looked at."""
    overridden: set[tuple[str, str]] = set()
    taken_back: Counter[str] = Counter()
    seen: dict[Place, list[str]] = {}
    for note in ledger.notes():
        match note.kind:
            case "override":
                overridden.add((note.body["stage"], note.body["gate"]))
            case "withdrawal":
                overridden.discard((note.body["stage"], note.body["gate"]))
            case "rollback":
                to = workflow.stage(note.body["to"]).number
                taken_back.update(stage.name for stage in workflow.stages if stage.number > to)
            case "look":
                place = (note.body["stage"], note.body["gate"], note.body["candidate"])
                seen.setdefault(place, []).append(note.body["items"])
    return Decisions(
        overridden=frozenset(overridden),
        taken_back=dict(taken_back),
        seen={place: tuple(sets) for place, sets in seen.items()},
    )


def override_gate(run: Path, gate: str, *, by: str, reason: str) -> None:
    """`gate`: STAGE.GATE. The verdict stays as it is; the next run goes on from it."""
    _check_named(by, reason, "an override")
    with _open(run) as (ledger, workflow):
        stage_name, gate_name = _found(gate, workflow)
        number = workflow.stage(stage_name).number
        found = [each for each in ledger.verdicts() if (each.stage, each.gate) == (number, gate_name)]
        if not found:
            raise UsageError(f"the gate {gate} was not judged yet", "a verdict can be overridden, not what comes later")
        verdict = found[-1].body["outcome"]
        body = {"stage": stage_name, "gate": gate_name, "by": by, "reason": reason, "verdict": verdict}
        ledger.add_note("override", time.time(), body)


def withdraw_override(run: Path, gate: str, *, by: str, reason: str) -> None:
    """`gate`: STAGE.GATE, overridden before: both stay on record. The next run stands where its gates put it."""
    _check_named(by, reason, "a withdrawal")
    with _open(run) as (ledger, workflow):
        stage_name, gate_name = _found(gate, workflow)
        if (stage_name, gate_name) not in decisions_of(ledger, workflow).overridden:
            raise UsageError(f"the gate {gate} is not overridden", "see: realign workflow status")
        ledger.add_note("withdrawal", time.time(), {"stage": stage_name, "gate": gate_name, "by": by, "reason": reason})


def _check_named(by: str, reason: str, what: str) -> None:
    if not by.strip() or not reason.strip():
        raise UsageError(f"{what} has a name and a reason", '--by "YOUR NAME" --reason "WHY"')


def _found(gate: str, workflow: Workflow) -> tuple[str, str]:
    """Stage and gate of STAGE.GATE."""
    known = [f"{stage.name}.{each.name}" for stage in workflow.stages for each in stage.gates]
    if gate not in known:
        raise UsageError(f"there is no gate {gate!r}{did_you_mean(gate, known)}", f"one of {', '.join(known)}")
    stage_name, _, gate_name = gate.partition(".")
    return stage_name, gate_name


def roll_back(run: Path, to: str, *, by: str, reason: str) -> dict[str, Any]:
    """What stage `to` left is where the next run goes on from; stages after it are done anew, with other seeds."""
    with _open(run) as (ledger, workflow):
        names = [stage.name for stage in workflow.stages]
        wanted = names[int(to) - 1] if to.isdigit() and 1 <= int(to) <= len(names) else to
        if wanted not in names:
            raise UsageError(f"there is no stage {to!r}{did_you_mean(to, names)}", f"one of {', '.join(names)}")
        number = workflow.stage(wanted).number
        ended = [each for each in ledger.stages() if each.stage == number and each.ended is not None]
        if not ended:
            raise UsageError(f"stage {wanted} has not ended in this run", "see: realign workflow status")
        ledger.add_note("rollback", time.time(), {"to": wanted, "by": by, "reason": reason})
        before = [each for each in ledger.stages() if each.stage <= number and (each.body.get("model"))]
        model = before[-1].body["model"] if before else {}
        return {"to": wanted, "model": model.get("artifact") or model.get("path") or "the one it began with"}


def sign_item(run: Path, item: str, *, by: str) -> None:
    """One of the items of the checklists that only a person can tick."""
    if not by.strip():
        raise UsageError("a signature has a name", '--by "YOUR NAME"')
    if item not in SIGNED_ITEMS:
        raise UsageError(
            f"{item!r} is not signed{did_you_mean(item, SIGNED_ITEMS)}", f"one of {', '.join(SIGNED_ITEMS)}"
        )
    with _open(run) as (ledger, _):
        ledger.add_note("signature", time.time(), {"item": item, "by": by})
