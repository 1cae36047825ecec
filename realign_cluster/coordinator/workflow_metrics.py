"""metrics.prom: where a workflow's gates stand, in Prometheus' text format, written anew at every verdict.

A node exporter's textfile collector picks it up from there, and so nothing has to listen for days.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from realign_cluster.store.durable import write_durably
from realign_cluster.store.workflow_ledger import VerdictRecord, WorkflowLedgerReader

METRICS_NAME: Final = "metrics.prom"
OUTCOMES: Final = {"PASS": 1, "INSUFFICIENT": 0, "FAIL": -1}
GAUGES: Final = {
    "value": "What was measured for a gate.",
    "bound": "The one-sided bound that has to clear the threshold.",
    "threshold": "What the bound has to clear.",
    "items": "How many items it was measured on.",
}


def write_metrics(ledger: WorkflowLedgerReader, path: Path) -> None:
    """The newest verdict on every gate."""
    newest = {(each.stage, each.gate): each for each in ledger.verdicts()}
    lines = [*_lines(str(ledger.meta("workflow")), list(newest.values()))]
    write_durably(path, "".join(f"{line}\n" for line in lines).encode())


def _lines(workflow: str, verdicts: list[VerdictRecord]) -> Iterator[str]:
    for name, help in GAUGES.items():
        yield f"# HELP realign_gate_{name} {help}"
        yield f"# TYPE realign_gate_{name} gauge"
        for each in verdicts:
            if (value := each.body[name]) is not None:
                yield f"realign_gate_{name}{_labels(workflow, each)} {value}"
    yield "# HELP realign_gate_outcome 1 PASS, 0 INSUFFICIENT, -1 FAIL."
    yield "# TYPE realign_gate_outcome gauge"
    for each in verdicts:
        yield f"realign_gate_outcome{_labels(workflow, each)} {OUTCOMES[each.body['outcome']]}"


def _labels(workflow: str, verdict: VerdictRecord) -> str:
    pairs = {"workflow": workflow, "stage": str(verdict.stage), "gate": verdict.gate}
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs.items()) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
