"""What is kept of a workflow's run between sittings: what people decided, what they took back, what gates looked at."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from realign_cluster.cli.main import run as realign
from realign_cluster.coordinator.workflow_decisions import override_gate, withdraw_override
from realign_cluster.coordinator.workflow_diagnosis import undecided_lines
from realign_cluster.coordinator.workflow_history import read_workflow_history
from realign_cluster.coordinator.workflow_report import write_workflow_report
from realign_cluster.coordinator.workflow_status import gate_lines, gate_rows, status_lines, workflow_status
from realign_cluster.domain.errors import UsageError
from realign_cluster.store.workflow_ledger import WorkflowLedger

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


def test_a_rollback_stands_in_the_record_with_the_name_and_the_reason_that_were_given(tmp_path: Path) -> None:
    made = MadeWorkflow(tmp_path / "made", mode="strict")
    made.sit()
    command = ["workflow", "rollback", str(made.run), "--to", "preparation"]
    assert realign([*command, "--by", "A. <Name>", "--reason", "the rate was too high"]) == 0
    assert realign(command) == 0
    named, unnamed = [line for line in status_lines(workflow_status(made.run)) if "rollback: " in line]
    assert "rollback: back to stage preparation, by A. <Name> (the rate was too high), " in named
    assert " by " not in unnamed
    found = [(each["to"], each["by"], each["reason"]) for each in workflow_status(made.run)["rollbacks"]]
    assert found == [("preparation", "A. <Name>", "the rate was too high"), ("preparation", "", "")]
    page = page_of(made.run)
    assert re.search(
        r"<td>back to stage preparation[^<]*</td><td>A\. &lt;Name&gt;</td><td>the rate was too high</td>", page
    )
    written = orjson.loads((made.run / "report.json").read_bytes())["rollbacks"]
    assert [(each["by"], each["reason"]) for each in written] == [("A. <Name>", "the rate was too high"), ("", "")]


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


def test_a_run_that_ended_and_does_not_any_more_hands_no_model_over(tmp_path: Path) -> None:
    made = MadeWorkflow(tmp_path / "made", mode="permissive")
    assert made.sit() == 0
    assert (made.run / "output" / "skill").exists()
    config = made.folder / "workflow.toml"
    config.write_text(config.read_text().replace('mode = "permissive"', 'mode = "strict"'))
    assert made.sit() == 1
    assert stages(made.run) == {"preparation": "stop"}
    assert not (made.run / "output").exists()
    assert orjson.loads((made.run / "summary.json").read_bytes())["output"] is None


def test_a_run_that_ended_and_is_killed_while_it_is_judged_again_is_incomplete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = MadeWorkflow(tmp_path / "made", mode="permissive")
    made.sit()
    assert workflow_status(made.run)["state"] == "complete"
    with monkeypatch.context() as dying:
        dying.setattr(WorkflowLedger, "put_verdict", _dies)
        with pytest.raises(KeyboardInterrupt):
            made.sit()
    assert workflow_status(made.run)["state"] == "incomplete"
    assert page_of(made.run)
    assert made.sit() == 0
    assert workflow_status(made.run)["state"] == "complete"


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


def test_killed_between_a_look_and_its_verdict_it_is_no_other_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = MadeWorkflow(tmp_path / "made", mode="strict")
    valid_rows(made, 60)
    with monkeypatch.context() as dying:
        dying.setattr(WorkflowLedger, "put_verdict", _dies)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                made.sit()
    assert gate_rows(made.run) == []
    made.sit()
    assert (verdict(made.run)["outcome"], verdict(made.run)["look"]) == ("PASS", 1)
    with contextlib.closing(sqlite3.connect(made.run / "ledger.sqlite")) as ledger:
        [looks] = ledger.execute("SELECT count(*) FROM note WHERE kind = 'look'").fetchone()
    assert looks == len([each for each in gate_rows(made.run) if each["alpha_each"]])


def _dies(*_: object) -> None:
    raise KeyboardInterrupt


def test_the_independent_script_counts_looks_too(tmp_path: Path) -> None:
    """A PASS of a look beyond those declared, or with more than its part of alpha, differs."""
    sys.path.insert(0, str(KNOWLEDGE))
    import recompute_run  # nothing of the project: a script beside the demo

    made = MadeWorkflow(tmp_path / "made", mode="strict")
    for rows in (60, 70):
        valid_rows(made, rows)
        made.sit()

    def status(**changed: Any) -> str:
        with contextlib.closing(sqlite3.connect(made.run / "ledger.sqlite")) as ledger, ledger:
            body = orjson.dumps({**honest, **changed})
            ledger.execute("UPDATE verdict SET body = ? WHERE gate = 'perplexity'", (body,))
        [line] = [each for each in recompute_run.judge_again(made.run) if "perplexity" in each.said]
        return str(line.status)

    honest = verdict(made.run)
    assert (honest["look"], honest["outcome"]) == (2, "INSUFFICIENT")
    assert status() == "agrees"
    assert status(outcome="PASS") == "DIFFERS"
    assert status(outcome="PASS", look=1) == "DIFFERS"
    assert status(look=3) == "DIFFERS"
    assert status(looks=2) == "DIFFERS"
    assert status(alpha_each=0.1) == "DIFFERS"


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


def test_a_run_from_before_looks_were_counted_is_shown_and_gone_on_with(tmp_path: Path) -> None:
    made = MadeWorkflow(tmp_path / "made", mode="strict")
    made.sit()
    with contextlib.closing(sqlite3.connect(made.run / "ledger.sqlite")) as ledger, ledger:
        for gate, body in ledger.execute("SELECT gate, body FROM verdict").fetchall():
            before = {key: value for key, value in orjson.loads(body).items() if key not in ("look", "looks")}
            ledger.execute("UPDATE verdict SET body = ? WHERE gate = ?", (orjson.dumps(before), gate))
        ledger.execute("DELETE FROM note WHERE kind = 'look'")
        [config] = ledger.execute("SELECT value FROM meta WHERE key = 'config'").fetchone()
        before = {key: value for key, value in orjson.loads(config).items() if key != "looks"}
        ledger.execute("UPDATE meta SET value = ? WHERE key = 'config'", (orjson.dumps(before).decode(),))
    (line,) = [each for each in gate_lines(gate_rows(made.run)) if "preparation.perplexity" in each]
    assert "alpha 0.05" in line
    assert "look" not in line
    assert ">look " not in page_of(made.run)
    assert workflow_status(made.run)["state"] == "incomplete"
    made.sit()
    assert (verdict(made.run)["look"], verdict(made.run)["looks"]) == (1, 1)
