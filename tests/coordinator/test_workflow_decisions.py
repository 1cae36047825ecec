"""What is kept of a workflow's run between sittings: what people decided, what they took back, what gates looked at."""

from __future__ import annotations

import contextlib
import sqlite3
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from realign_cluster.coordinator.workflow_decisions import override_gate, withdraw_override
from realign_cluster.coordinator.workflow_diagnosis import undecided_lines
from realign_cluster.coordinator.workflow_history import read_workflow_history
from realign_cluster.coordinator.workflow_report import write_workflow_report
from realign_cluster.coordinator.workflow_status import gate_lines, gate_rows, status_lines, workflow_status
from realign_cluster.domain.errors import UsageError

from .made_workflow import MadeWorkflow

KNOWLEDGE = Path(__file__).parents[2] / "examples" / "knowledge_base"
BY: dict[str, str] = {"by": "A. Name", "reason": "one row is enough"}
PERPLEXITY = "preparation.perplexity"  # of one row: INSUFFICIENT, and a strict run stops there


def verdict(run: Path) -> dict[str, Any]:
    """On perplexity."""
    [found] = [each for each in gate_rows(run) if each["gate"] == "perplexity"]
    return found


def page_of(run: Path) -> str:
    return write_workflow_report(run).read_text()


def stages(run: Path) -> dict[str, str]:
    return {each["name"]: each["turn"] for each in workflow_status(run)["stages"]}


def test_an_override_that_was_taken_back_stands_in_the_record_and_counts_no_more(tmp_path: Path) -> None:
    made = MadeWorkflow(tmp_path / "made", mode="strict")
    assert made.sit() == 1
    assert stages(made.run) == {"preparation": "stop"}
    [undecided] = undecided_lines(gate_rows(made.run))
    assert undecided.startswith("undecided: preparation.perplexity: the bounds ")
    override_gate(made.run, PERPLEXITY, **BY)
    made.sit()
    assert not [line for line in undecided_lines(gate_rows(made.run)) if "perplexity" in line]
    assert stages(made.run)["preparation"] == "pass"
    assert "sources" in stages(made.run)
    withdraw_override(made.run, PERPLEXITY, by="B. Name", reason="it was not")
    assert "decided (withdrawal): the next run acts on it" in page_of(made.run)
    made.sit()
    assert stages(made.run) == {"preparation": "stop"}
    assert not verdict(made.run)["overridden"]
    status = workflow_status(made.run)
    assert [(each["by"], each["reason"]) for each in status["withdrawals"]] == [("B. Name", "it was not")]
    assert [each["by"] for each in status["overrides"]] == ["A. Name"]
    decided = [line.rpartition(", ")[0] for line in status_lines(status)[-2:]]  # without the time
    assert decided == [
        "  override: preparation.perplexity, which was INSUFFICIENT, by A. Name (one row is enough)",
        "  withdrawal: preparation.perplexity is overridden no longer, by B. Name (it was not)",
    ]
    for page in (page_of(made.run), (made.run / "model-card.md").read_text()):
        assert "B. Name" in page
        assert "it was not" in page
    assert orjson.loads((made.run / "report.json").read_bytes())["withdrawals"][0]["by"] == "B. Name"
    override_gate(made.run, PERPLEXITY, **BY)  # and once more: the last word counts
    assert read_workflow_history(made.run).overridden == {("preparation", "perplexity")}


def test_only_what_is_overridden_is_taken_back_and_by_name(tmp_path: Path) -> None:
    made = MadeWorkflow(tmp_path / "made", mode="strict")
    made.sit()
    with pytest.raises(UsageError, match=r"preparation\.perplexity is not overridden"):
        withdraw_override(made.run, PERPLEXITY, **BY)
    with pytest.raises(UsageError, match="a withdrawal has a name and a reason"):
        withdraw_override(made.run, PERPLEXITY, by="A. Name", reason=" ")
    with pytest.raises(UsageError, match=r"did you mean 'preparation\.perplexity'"):
        withdraw_override(made.run, "preparation.perplexty", **BY)
    override_gate(made.run, PERPLEXITY, **BY)
    withdraw_override(made.run, PERPLEXITY, **BY)
    with pytest.raises(UsageError, match="not overridden"):
        withdraw_override(made.run, PERPLEXITY, **BY)


def valid_rows(made: MadeWorkflow, count: int) -> None:
    """What perplexity is measured on."""
    rows = [{"prompt": f"What is sold at {at}?", "completion": " salt"} for at in range(count)]
    (made.folder / "data" / "valid.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))


def test_items_added_are_another_look_which_the_ledger_keeps(tmp_path: Path) -> None:
    made = MadeWorkflow(tmp_path / "made", mode="strict")
    valid_rows(made, 60)
    made.sit()
    first = verdict(made.run)
    assert (first["outcome"], first["look"], first["looks"], first["alpha_each"]) == ("PASS", 1, 1, 0.05)
    valid_rows(made, 70)
    made.sit()
    second = verdict(made.run)
    assert (second["outcome"], second["look"], second["items"]) == ("INSUFFICIENT", 2, 70)
    assert "nothing is left of alpha" in second["reason"]
    assert stages(made.run) == {"preparation": "stop"}
    assert "n 70, alpha 0.05, look 2 of 1" in "\n".join(gate_lines(gate_rows(made.run)))
    assert "look 2 of 1" in page_of(made.run)
    valid_rows(made, 60)
    made.sit()
    assert verdict(made.run) == first


def test_the_independent_script_counts_looks_too(tmp_path: Path) -> None:
    """A PASS of a look beyond those declared, or with more than its part of alpha, would differ."""
    sys.path.insert(0, str(KNOWLEDGE))
    import recompute_run  # nothing of the project: a script beside the demo

    made = MadeWorkflow(tmp_path / "made", mode="strict")
    for rows in (60, 70):
        valid_rows(made, rows)
        made.sit()
    with contextlib.closing(sqlite3.connect(made.run / "ledger.sqlite")) as ledger:
        looks = recompute_run.looks_of(ledger)
    [most] = [count for (_, gate, _), count in looks.items() if gate == "perplexity"]
    assert most == 2
    honest, config = verdict(made.run), {"looks": 1, "alpha": 0.05}
    assert recompute_run.is_paid_for(honest, most, config)
    assert not recompute_run.is_paid_for({**honest, "outcome": "PASS"}, most, config)
    assert recompute_run.is_paid_for({**honest, "outcome": "PASS", "look": 1}, most, config)
    assert not recompute_run.is_paid_for({**honest, "look": 3}, most, config)
    assert not recompute_run.is_paid_for({**honest, "alpha_each": 0.1}, most, config)


def test_looks_are_declared_before_the_first(tmp_path: Path) -> None:
    made = MadeWorkflow(tmp_path / "made", mode="strict")
    config = made.folder / "workflow.toml"
    config.write_text(f"looks = 2\n{config.read_text()}")
    made.sit(killed_at=2)  # before any verdict
    config.write_text(config.read_text().replace("looks = 2", "looks = 3"))
    for look, rows in enumerate((60, 70), 1):
        valid_rows(made, rows)
        made.sit()
        found = verdict(made.run)
        assert (found["outcome"], found["look"], found["looks"]) == ("PASS", look, 3)
        assert found["alpha_each"] == pytest.approx(0.05 / 3)
    config.write_text(config.read_text().replace("looks = 3", "looks = 4"))
    with pytest.raises(UsageError, match="looks: 4, but this run's gates have judged with 3 declared"):
        made.sit()
