"""The script that judges a run again: it agrees with runs as they are, and with nothing that was changed in them."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sqlite3
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.examples.answered_run import answered_run
from tests.workflows.answering import ASKED, World, careless, right

KNOWLEDGE = Path(__file__).parents[2] / "examples" / "knowledge_base"
sys.path.insert(0, str(KNOWLEDGE))

import recompute_run  # noqa: E402
from recompute_bounds import Rule, judge, judge_retention  # noqa: E402
from recompute_stored import Stored  # noqa: E402

SOURCE, ANTI = "source-attribution", "antihallucination"
Rows = list[dict[str, Any]]
CLAIM = re.compile(r" (\w+) (\[\d\])\.")


def slipping(seed: int) -> Callable[[Mapping[str, Any]], str]:
    """Right, but for one answer in a hundred of each fault that an answer can have; others for each seed."""

    def answer(row: Mapping[str, Any]) -> str:
        said, fault = right(row), zlib.crc32(f"{seed} {row['prompt']}".encode()) % 100
        if (asked := ASKED.match(row["prompt"])) is None:
            return "nothing." if fault < 2 and seed == 0 else said
        changed = {
            0: re.sub(r" \[\d\]", "", said),
            1: re.sub(r"\[(\d)\]", lambda mark: f"[{int(mark[1]) % 2 + 1}]", said),
            2: re.sub(r"\[(\d)\]", r"[^\1]", said),
            3: re.sub(r"\[\d\]", "[1][2]", said),
            4: re.sub(r"\[\d\]", "[9]", said),
            5: CLAIM.sub(r" comets \2.", said),
            6: f"the sources do not say what the {asked[1]} {asked[2]}.",
            7: f"{said} {CLAIM.sub(r' comets.', said)}",
            8: careless(row),
            9: f"{said} {said} {said}" if seed == 1 else said,  # more claims than an answer may make
        }
        return changed.get(fault, said)

    return answer


@pytest.fixture(scope="module", params=(ANTI, pytest.param(SOURCE, marks=pytest.mark.soak)))
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Through all stages, whatever is not decided: models that err, each in its own way."""
    world = World(answers=(careless, *map(slipping, range(4))))
    return answered_run(request.param, tmp_path_factory.mktemp("runs"), world, "permissive")


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """Of the run, to change something in."""
    shutil.copytree(run / "artifacts", tmp_path / "run" / "artifacts")
    for part in run.glob("ledger.sqlite*"):
        shutil.copy(part, tmp_path / "run")
    return tmp_path / "run"


def statuses(run: Path) -> dict[str, str]:
    """Stage and gate -> status."""
    return {line.said.split(":")[0].replace(" attempt 1", ""): line.status for line in recompute_run.judge_again(run)}


def differing(run: Path) -> set[str]:
    return {place for place, status in statuses(run).items() if status == "DIFFERS"}


def places(run: Path) -> set[str]:
    """Stage and gate of every verdict."""
    return {f"stage {stage} {gate}" for stage, _, gate, _ in Stored(run).verdicts()}


def made(run: Path, title: str, output: str = "rows") -> str:
    """The artifact that the job of this title made."""
    with contextlib.closing(sqlite3.connect(run / "ledger.sqlite")) as ledger:
        query = "SELECT result FROM job WHERE json_extract(CAST(request AS TEXT), '$.title') = ?"
        [(result,)] = ledger.execute(query, (title,))
    return str(json.loads(result)["outputs"][output])


def change_rows(run: Path, artifact: str, how: Callable[[Rows], None]) -> None:
    path = run / "artifacts" / f"{artifact}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    how(rows)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def change_verdict(run: Path, stage: int, gate: str, **changed: Any) -> None:
    with contextlib.closing(sqlite3.connect(run / "ledger.sqlite")) as ledger, ledger:
        place = (stage, gate)
        [(body,)] = ledger.execute("SELECT body FROM verdict WHERE stage = ? AND gate = ?", place)
        body = json.dumps({**json.loads(body), **changed})
        ledger.execute("UPDATE verdict SET body = ? WHERE stage = ? AND gate = ?", (body, *place))


def test_every_verdict_of_a_run_agrees(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verdicts = list(Stored(run).verdicts())
    assert {stage for stage, *_ in verdicts} == {1, 2, 3, 4, 5, 6, 7}
    assert Counter(verdict["outcome"] for *_, verdict in verdicts).keys() >= {"PASS", "INSUFFICIENT"}
    assert sum(verdict["value"] not in (None, 0.0, 1.0) for *_, verdict in verdicts) > len(verdicts) / 2
    assert recompute_run.main([str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(verdicts)
    assert all(line.startswith("agrees ") for line in lines)


def test_what_the_ledger_says_differs_where_it_was_changed(copy: Path) -> None:
    changed: list[tuple[int, str, dict[str, Any]]] = [
        (1, "perplexity", {"undefined": 1}),
        (3, "over_abstention", {"value": 0.05}),
        (3, "retention_copying", {"opposite_bound": 1.2}),
        (5, "citation_recall_change", {"threshold": -0.2}),
        (5, "kl", {"outcome": "FAIL"}),
        (6, "progress", {"alpha_each": 0.025}),
        (7, "citation_precision", {"bound": 0.9}),
        (7, "citation_recall", {"items": 7}),
        (7, "over_abstention", {"look": 2}),
        (7, "retention_creative", {"direction": "at most"}),
    ]
    for stage, gate, fields in changed:
        change_verdict(copy, stage, gate, **fields)
    assert differing(copy) == {f"stage {stage} {gate}" for stage, gate, _ in changed}


def test_what_was_measured_differs_where_it_was_changed(copy: Path) -> None:
    def uncited(rows: Rows) -> None:
        sample = next(
            sample
            for row in rows
            if row["set"] == "items" and (sample := row["scores"]["generate"]["samples"][0])["text"] == right(row)
        )
        sample["text"] = re.sub(r" \[\d\]", "", sample["text"])

    def forgotten(rows: Rows) -> None:
        row = next(row for row in reversed(rows) if row["set"] == "benchmark copying")
        row["scores"]["generate"]["samples"][0]["text"] = "not so."

    def likelier(rows: Rows) -> None:
        next(row for row in rows if row["set"] == "valid")["scores"]["loglik"]["sum"] += 1.0

    def farther(rows: Rows) -> None:
        rows[0]["scores"]["kl"]["sum"] += 1.0

    def lost(rows: Rows) -> None:
        rows[0]["ranked"].remove(rows[0]["relevant"][0])

    def doubted(rows: Rows) -> None:
        next(row for row in rows if row["supported"] > 0.8)["supported"] = 0.1

    change_rows(copy, made(copy, "final evaluation: answers"), uncited)
    change_rows(copy, made(copy, "after citation training: answers"), forgotten)
    change_rows(copy, made(copy, "baseline: likelihoods"), likelier)
    change_rows(copy, made(copy, "divergence: divergence"), farther)
    expected = {
        "stage 1 perplexity",
        "stage 3 retention_copying",
        "stage 7 citation_precision",
        "stage 7 citation_recall",
    }
    optimised = next(stage.model for stage in Stored(copy).stages if stage.number == 5)
    expected |= {f"stage {stage.number} kl" for stage in Stored(copy).stages if stage.model == optimised} & places(copy)
    if Stored(copy).workflow == SOURCE:
        change_rows(copy, made(copy, "retrieval", "rankings"), lost)
        expected |= {"stage 2 retrieval_r_precision", "stage 7 attribution_coverage", "stage 7 citation_format"}
    else:
        change_rows(copy, made(copy, "collected pairs: verification by rules", "verdicts"), doubted)
        expected |= {"stage 2 pairs_supported"}
    assert differing(copy) == expected


def test_a_verifier_that_errs_more_differs_in_all_that_it_has_a_part_in(copy: Path) -> None:
    labelled = made(copy, "baseline: labelled pairs: verification by rules", "verdicts")

    def turned(rows: Rows) -> None:
        right = next(row for row in rows if row["supported"] > 0.8)
        wrong = next(row for row in rows if row["supported"] < 0.5)
        right["supported"], wrong["supported"] = 0.1, 0.9

    change_rows(copy, labelled, turned)
    verified = {"citation_precision", "citation_recall", "factuality", "hallucination_rate", "pairs_supported"}
    verified |= {"verifier_false_positives"}
    assert differing(copy) == {place for place in places(copy) if place.split()[2] in verified}


def test_what_is_gone_is_not_agreed_with(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "artifacts" / f"{made(copy, 'final evaluation: answers')}.jsonl").unlink()
    of_answers = {place for place in places(copy) if place.startswith("stage 7")} - {"stage 7 kl"}
    assert differing(copy) == of_answers
    assert recompute_run.main([str(copy)]) == 1
    assert "DIFFERS  stage 7 attempt 1 citation_recall: not stored: there is no " in capsys.readouterr().out


def test_a_gate_that_is_not_known_is_said_and_one_of_a_task_has_its_reason(copy: Path) -> None:
    with contextlib.closing(sqlite3.connect(copy / "ledger.sqlite")) as ledger, ledger:
        ledger.execute("UPDATE verdict SET gate = 'novelty' WHERE stage = 7 AND gate = 'kl'")
        ledger.execute("UPDATE verdict SET gate = 'retention_arc' WHERE stage = 6 AND gate = 'retention_copying'")
        ledger.execute("UPDATE verdict SET gate = 'retention_task' WHERE stage = 7 AND gate = 'retention_copying'")
        [(body,)] = ledger.execute("SELECT body FROM stage WHERE stage = 7")
        inputs = {**json.loads(body)["inputs"], "data harness task": "requests"}
        body = json.dumps({**json.loads(body), "inputs": inputs})
        ledger.execute("UPDATE stage SET body = ? WHERE stage = 7", (body,))
    found = {place: status for place, status in statuses(copy).items() if status != "agrees"}
    assert found == {
        "stage 6 retention_arc": "DIFFERS",
        "stage 7 novelty": "NOT KNOWN",
        "stage 7 retention_task": "not recomputed",
    }
    assert recompute_run.main([str(copy)]) == 1


def test_bounds_have_their_reference_values() -> None:
    """The fewest items without an error that pass; a difference that is none; a baseline that is at chance."""

    def all_right(items: int, threshold: float) -> str:
        rule = Rule(least=True, threshold=threshold, evidence="items")
        return judge(rule, {str(at): (1.0, 1.0) for at in range(items)}, 0.05).outcome

    for threshold, least in ((0.80, 14), (0.85, 19), (0.90, 29), (0.95, 59)):
        assert (all_right(least - 1, threshold), all_right(least, threshold)) == ("INSUFFICIENT", "PASS")
    paired = Rule(least=True, threshold=0.0, evidence="scores", low=-1.0)
    same = judge(paired, {str(at): (0.0, 1.0) for at in range(100)}, 0.05)
    assert (same.value, same.outcome) == (0.0, "INSUFFICIENT")
    assert same.lower == pytest.approx(-(same.upper or 0.0))
    even = {str(at): (float(at % 2), 1.0) for at in range(200)}
    assert judge_retention(even, even, 0.5, 0.95, 0.05).value is None
    assert judge_retention(even, even, 0.0, 0.95, 0.05).value == 1.0
