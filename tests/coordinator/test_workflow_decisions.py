"""What is kept of a workflow's run between sittings: what people decided, what they took back, what gates looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from realign_cluster.coordinator.workflow_decisions import override_gate, withdraw_override
from realign_cluster.coordinator.workflow_history import read_workflow_history
from realign_cluster.coordinator.workflow_report import render_workflow_report
from realign_cluster.coordinator.workflow_status import gate_lines, gate_rows, status_lines, workflow_status
from realign_cluster.domain.errors import UsageError

from .made_workflow import MadeWorkflow

BY: dict[str, str] = {"by": "A. Name", "reason": "one row is enough"}
GATES = {"preparation": {"perplexity": 900000}, "sources": {"types_missing": 2, "retrieval_r_precision": 0.01}}


def verdict(run: Path, gate: str) -> dict[str, Any]:
    [found] = [each for each in gate_rows(run) if f"{each['stage']}.{each['gate']}" == gate]
    return found


def stages(run: Path) -> dict[str, str]:
    return {each["name"]: each["turn"] for each in workflow_status(run)["stages"]}


def test_an_override_that_was_taken_back_stands_in_the_record_and_counts_no_more(tmp_path: Path) -> None:
    made = MadeWorkflow(tmp_path / "made", mode="strict", gates={"preparation": {"perplexity": 900000}})
    assert made.sit() == 1
    assert stages(made.run) == {"preparation": "stop"}
    override_gate(made.run, "preparation.perplexity", **BY)
    made.sit()
    assert stages(made.run)["preparation"] == "pass"
    assert len(stages(made.run)) > 1
    withdraw_override(made.run, "preparation.perplexity", by="B. Name", reason="it was not")
    said = render_workflow_report(made.run)
    assert "decided (withdrawal): the next run acts on it" in said
    made.sit()
    assert stages(made.run) == {"preparation": "stop"}
    assert not verdict(made.run, "preparation.perplexity")["overridden"]
    status = workflow_status(made.run)
    assert [(each["by"], each["reason"]) for each in status["withdrawals"]] == [("B. Name", "it was not")]
    assert [each["by"] for each in status["overrides"]] == ["A. Name"]
    assert any(line.startswith("  withdrawal: ") for line in status_lines(status))
    for page in (render_workflow_report(made.run), (made.run / "model-card.md").read_text()):
        assert "B. Name" in page
        assert "it was not" in page
    assert orjson.loads((made.run / "report.json").read_bytes())["withdrawals"][0]["by"] == "B. Name"
    override_gate(made.run, "preparation.perplexity", **BY)  # and once more: the last word counts
    made.sit()
    assert stages(made.run)["preparation"] == "pass"


def test_only_what_is_overridden_is_taken_back_and_by_name(tmp_path: Path) -> None:
    made = MadeWorkflow(tmp_path / "made", mode="strict")
    made.sit()
    with pytest.raises(UsageError, match=r"preparation\.perplexity is not overridden"):
        withdraw_override(made.run, "preparation.perplexity", **BY)
    with pytest.raises(UsageError, match="a withdrawal has a name and a reason"):
        withdraw_override(made.run, "preparation.perplexity", by="A. Name", reason=" ")
    with pytest.raises(UsageError, match=r"did you mean 'preparation\.perplexity'"):
        withdraw_override(made.run, "preparation.perplexty", **BY)
    override_gate(made.run, "preparation.perplexity", **BY)
    withdraw_override(made.run, "preparation.perplexity", **BY)
    with pytest.raises(UsageError, match="not overridden"):
        withdraw_override(made.run, "preparation.perplexity", **BY)


def test_an_overridden_gate_is_not_among_those_gone_on_from(tmp_path: Path) -> None:
    made = MadeWorkflow(tmp_path / "made", gates=GATES)
    made.sit()
    before = read_workflow_history(made.run).went_on
    assert [each.gate for attempt, each in before if attempt.stage == 1] == ["perplexity"]
    override_gate(made.run, "preparation.perplexity", **BY)
    made.sit()
    after = read_workflow_history(made.run)
    assert [each.gate for attempt, each in after.went_on if attempt.stage == 1] == []
    assert "validation perplexity" not in after.reason


def more_queries(made: MadeWorkflow) -> None:
    """Three more: of the questions that only stage 7 has otherwise."""
    rows = [orjson.loads(line) for line in (made.folder / "data" / "sealed.jsonl").read_bytes().splitlines()][:3]
    with (made.folder / "data" / "queries.jsonl").open("ab") as file:
        for row in rows:
            file.write(orjson.dumps({"query": row["prompt"][-40:], "relevant": [row["sources"][1]["id"]]}) + b"\n")


def test_items_added_are_another_look_which_the_ledger_keeps(tmp_path: Path) -> None:
    made = MadeWorkflow(tmp_path / "made", gates=GATES)
    gate = "sources.retrieval_r_precision"
    made.sit()
    first = verdict(made.run, gate)
    assert (first["outcome"], first["look"], first["looks"], first["alpha_each"]) == ("PASS", 1, 1, 0.05)
    queries = made.folder / "data" / "queries.jsonl"
    few = queries.read_bytes()
    more_queries(made)
    made.sit()
    second = verdict(made.run, gate)
    assert (second["outcome"], second["look"], second["items"]) == ("INSUFFICIENT", 2, first["items"] + 3)
    assert "nothing is left of alpha" in second["reason"]
    assert f"n {second['items']}, alpha 0.05, look 2 of 1" in "\n".join(gate_lines(gate_rows(made.run)))
    assert "look 2 of 1" in render_workflow_report(made.run)
    queries.write_bytes(few)
    made.sit()
    assert verdict(made.run, gate) == first | {"attempt": 0}


def test_looks_are_declared_before_the_first(tmp_path: Path) -> None:
    made = MadeWorkflow(tmp_path / "made", gates=GATES)
    config = made.folder / "workflow.toml"
    config.write_text(f"looks = 2\n{config.read_text()}")
    made.sit(killed_at=2)  # before any verdict
    config.write_text(config.read_text().replace("looks = 2", "looks = 3"))
    made.sit()
    assert verdict(made.run, "sources.retrieval_r_precision")["alpha_each"] == pytest.approx(0.05 / 3)
    more_queries(made)
    made.sit()
    found = verdict(made.run, "sources.retrieval_r_precision")
    assert (found["outcome"], found["look"], found["looks"]) == ("PASS", 2, 3)
    config.write_text(config.read_text().replace("looks = 3", "looks = 4"))
    with pytest.raises(UsageError, match="looks: 4, but this run's gates have judged with 3 declared"):
        made.sit()
