"""Where the gates stand, as Prometheus reads it."""

from __future__ import annotations

from pathlib import Path

from realign_cluster.coordinator.workflow_metrics import write_metrics
from realign_cluster.store.workflow_ledger import WorkflowLedger


def test_the_newest_verdict_of_each_gate(tmp_path: Path) -> None:
    ledger = WorkflowLedger.create(tmp_path / "ledger.sqlite", {"workflow": "source-attribution"})
    body = {"value": 0.5, "bound": 0.4, "threshold": 0.9, "items": 20, "outcome": "FAIL"}
    ledger.put_verdict(3, 0, "citation_recall", 1.0, body)
    ledger.put_verdict(3, 1, "citation_recall", 2.0, {**body, "value": 0.95, "bound": 0.91, "outcome": "PASS"})
    ledger.put_verdict(5, 0, "kl", 3.0, {**body, "value": None, "bound": None, "items": 0, "outcome": "INSUFFICIENT"})
    write_metrics(ledger, tmp_path / "metrics.prom")
    ledger.close()
    lines = (tmp_path / "metrics.prom").read_text().splitlines()
    recall = '{workflow="source-attribution",stage="3",gate="citation_recall"}'
    assert f"realign_gate_value{recall} 0.95" in lines
    assert f"realign_gate_outcome{recall} 1" in lines
    assert 'realign_gate_outcome{workflow="source-attribution",stage="5",gate="kl"} 0' in lines
    assert not [line for line in lines if line.startswith("realign_gate_value") and 'gate="kl"' in line]
    names = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(names) == len(set(names)) == 5
