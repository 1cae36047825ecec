"""A workflow on real daemons: killed and gone on with, judged again, decided on by people.

The model is a handful of random weights, so no gate is passed on its merit: what is tested is that every job is done
once, that a killed run ends as one that was left alone, and what the commands say and change.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

from realign_cluster.coordinator.roll_call import Register, RollCall, register_of_a_sitting
from realign_cluster.store.workflow_ledger import WorkflowLedgerReader
from tests.cluster.kit import CurateCluster, wait_until
from tests.workflows.answering import FEW, KNOWLEDGE, make_workflow
from tests.workflows.rehearsed import jobs_done

sys.path.insert(0, str(KNOWLEDGE))
import make_model

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

TRAINING = """
[training.{name}]
{method}
fine_tune = "full"
steps = 2
global_batch = 8
pad_to = 16
reproducible = true
[training.{name}.optimizer]
learning_rate = 1e-3
"""
EASY = """
[gates.preparation]
perplexity = 900000
[gates.sources]
retrieval_r_precision = 0.1
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with workflow.toml, data and model."""
    folder = tmp_path_factory.mktemp("workflow")
    rows = FEW | {"items": 16, "practice": 24, "benchmark": 8, "labels": 40, "valid": 12, "queries": 20}
    make_workflow.write_workflow("source-attribution", folder, rows=rows)
    make_model.write_model(folder / "model")
    text = (folder / "workflow.toml").read_text()
    text = text[: text.index("[training.preparation]")].replace("attempts = 2", 'attempts = 1\nmode = "permissive"')
    text = text.replace("probe_prompts = 480", "probe_prompts = 8").replace("prompts = 900", "prompts = 12")
    at, to = text.index("[benchmarks]"), text.index("[generation]")  # fewer jobs: each is a run of its own
    text = (text[:at] + text[to:]).replace('preparation = "data/preparation.jsonl"\n', "")
    text = text.replace('taught = ["closed-book"]', "taught = []")
    for name in ("citation", "preference", "iteration"):
        text += TRAINING.format(name=name, method='method = "dpo"' if name == "preference" else 'method = "sft"')
    (folder / "workflow.toml").write_text(text + EASY)
    return folder


def command(pair: CurateCluster, made: Path, out: Path, *more: str) -> list[str]:
    realign = (sys.executable, "-m", "realign_cluster.cli.main", "workflow", "run", "source-attribution")
    options = ("--config", str(made / "workflow.toml"), "--out", str(out), "--hostfile", str(pair.hostfile()))
    return [*realign, *options, "--reproducible", *more]


def realign(pair: CurateCluster, *arguments: str) -> dict[str, Any]:
    done = pair.run((sys.executable, "-m", "realign_cluster.cli.main", "workflow", *arguments, "--json"))
    assert done.returncode == 0, done.stderr
    last: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return last


def jobs_of(out: Path) -> dict[str, tuple[float, float | None]]:
    """When each job was begun and ended, by its key."""
    try:
        reader = WorkflowLedgerReader(out / "ledger.sqlite")
    except sqlite3.Error:
        return {}
    try:
        return {job.key: (job.begun, job.ended) for job in reader.jobs()}
    finally:
        reader.close()


def verdicts_of(out: Path) -> dict[tuple[int, int, str], tuple[str, float | None]]:
    reader = WorkflowLedgerReader(out / "ledger.sqlite")
    try:
        return {(v.stage, v.attempt, v.gate): (v.body["outcome"], v.body["value"]) for v in reader.verdicts()}
    finally:
        reader.close()


def summary_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "summary.json").read_bytes())
    return found


@pytest.fixture(scope="module")
def calm(cluster: CurateCluster, made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    out = tmp_path_factory.mktemp("calm") / "run"
    done = cluster.run(command(cluster, made, out), timeout=280)
    assert done.returncode == 1, done.stderr
    return out


def test_the_plan_says_what_each_job_takes_on_this_cluster(pair: CurateCluster, made: Path, calm: Path) -> None:
    """Minutes, and memory on each node; and they are the jobs that a run did, as far as it came."""
    config = ("--config", str(made / "workflow.toml"), "--hostfile", str(pair.hostfile()))
    plan = realign(pair, "plan", "source-attribution", *config)
    done = jobs_done(calm)
    assert [(each["stage"], each["title"]) for each in plan["costs"]][: len(done)] == [
        (each.stage, each.title) for each in done
    ]
    assert {"generate", "loglik", "kl", "sft", "dpo"} <= {each["what"] for each in plan["costs"]}
    for each in plan["costs"]:
        assert each["minutes"] > 0
        assert each["memory"]
        assert all(line.startswith(("alpha: ", "beta: ")) or "GB" in line for line in each["memory"])
    scored = [each for each in plan["costs"] if each["tokens"] is not None]
    for each in scored:
        (rows, a_row, tokens) = re.search(
            r"^([\d,]+) .* x ([\d,]+) = ([\d,]+) token equivalents", each["text"]
        ).groups()  # type: ignore[union-attr]
        assert int(rows.replace(",", "")) == each["units"]
        assert int(tokens.replace(",", "")) == round(each["tokens"])
        assert int(a_row.replace(",", "")) == pytest.approx(each["tokens"] / each["units"], abs=0.5)
    assert plan["minutes"] == pytest.approx(sum(each["minutes"] for each in plan["costs"]))
    assert plan["minutes"] == pytest.approx(sum(each["minutes"] for each in plan["stages"]))
    assert all(each["minutes"] for each in plan["gates"] if each["gate"] == "citation_recall")

    few = made / "few.toml"  # as of what `init` writes: the rest is planned all the same
    few.write_text((made / "workflow.toml").read_text().replace("global_batch = ", "global_batch = 999"))
    plan = realign(pair, "plan", "source-attribution", "--config", str(few), "--hostfile", str(pair.hostfile()))
    costs = {each["title"]: each for each in plan["costs"]}
    assert costs["baseline: answers"]["minutes"] > 0
    for training in ("citation training", "preference training", "round 1: training"):
        assert costs[training]["minutes"] is None
        assert re.fullmatch(r"not planned: it has \d+ rows of data, its global_batch is 9998", costs[training]["text"])


def test_killed_anywhere_it_ends_as_one_that_was_left_alone(
    pair: CurateCluster, made: Path, calm: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = pair.spawn(command(pair, made, out))
    wait_until(lambda: sum(end is not None for _, end in jobs_of(out).values()) >= 12, 200, "jobs")
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {key: each for key, each in jobs_of(out).items() if each[1] is not None}
    done = pair.run(command(pair, made, out), timeout=280)
    assert done.returncode == 1, done.stderr
    after = jobs_of(out)
    assert {key: after[key] for key in before} == before
    assert set(after) == set(jobs_of(calm))
    with contextlib.closing(WorkflowLedgerReader(out / "ledger.sqlite")) as ledger:
        assert ledger.meta("nodes there") == ["alpha", "beta"]  # who another sitting would wait for
    assert verdicts_of(out) == verdicts_of(calm)
    assert summary_of(out)["model"]["identity"] == summary_of(calm)["model"]["identity"]


def test_a_finished_run_is_only_judged_again(pair: CurateCluster, made: Path, calm: Path) -> None:
    """Also with another threshold, and with a gate overridden: nothing is computed again."""
    before = jobs_of(calm)
    config = (made / "workflow.toml").read_text()
    try:
        (made / "workflow.toml").write_text(config.replace("perplexity = 900000", "perplexity = 1.01"))
        assert pair.run(command(pair, made, calm)).returncode == 1
        assert verdicts_of(calm)[1, 0, "perplexity"][0] == "FAIL"
        assert summary_of(calm)["state"] == "failed"
        assert jobs_of(calm) == before
        by = ("--by", "A. Person", "--reason", "random weights")
        realign(pair, "gates", str(calm), "--override", "preparation.perplexity", *by)
        pair.run(command(pair, made, calm))
        assert jobs_of(calm) == before
        overrides = realign(pair, "status", str(calm))["overrides"]
        assert [(each["gate"], each["by"], each["verdict"]) for each in overrides] == [
            ("perplexity", "A. Person", "FAIL")
        ]
        realign(pair, "gates", str(calm), "--withdraw", "preparation.perplexity", *by)
        assert [each["gate"] for each in realign(pair, "status", str(calm))["withdrawals"]] == ["perplexity"]
        pair.run(command(pair, made, calm))
        assert summary_of(calm)["state"] == "failed"
    finally:
        (made / "workflow.toml").write_text(config)


@pytest.mark.soak
def test_what_was_taken_back_is_trained_anew(pair: CurateCluster, made: Path, calm: Path) -> None:
    """And what stands is not: the stages up to it keep their jobs."""
    before = jobs_of(calm)
    found = realign(pair, "rollback", str(calm), "--to", "sources", "--by", "A. Person", "--reason", "again")
    assert found["to"] == "sources"
    pair.run(command(pair, made, calm), timeout=280)
    after = jobs_of(calm)
    assert {key: after[key] for key in before} == before
    assert len(after) > len(before)


@pytest.mark.soak
def test_a_changed_input_is_named_and_only_what_depends_on_it_is_done(
    pair: CurateCluster, made: Path, calm: Path
) -> None:
    queries = made / "data" / "queries.jsonl"
    rows = queries.read_text()
    before = jobs_of(calm)
    try:
        queries.write_text("".join(rows.splitlines(keepends=True)[1:]))
        pair.run(command(pair, made, calm), timeout=280)
    finally:
        queries.write_text(rows)
    status = realign(pair, "status", str(calm))
    assert any("data queries" in each["changed"] for each in status["reruns"])
    assert len(set(jobs_of(calm)) - set(before)) == 1


def test_a_signature_needs_a_name(pair: CurateCluster, calm: Path) -> None:
    report = ("report", str(calm), "--sign", "thresholds understood")
    nobody = pair.run((sys.executable, "-m", "realign_cluster.cli.main", "workflow", *report))
    assert nobody.returncode == 2
    realign(pair, *report, "--by", "A. Person")
    signed = realign(pair, "status", str(calm))["signatures"]
    assert [(each["item"], each["by"]) for each in signed] == [("thresholds understood", "A. Person")]


def test_between_jobs_whoever_was_there_is_waited_for(pair: CurateCluster) -> None:
    said: list[str] = []
    beta = pair.daemons["beta"]

    kept = register_of_a_sitting()

    def roll_call(seconds: float, register: Register) -> RollCall:
        return RollCall(
            pair.hostfile(),
            discover=False,
            allow_skew=frozenset(),
            home=pair.home,
            wait_seconds=seconds,
            register=register,
            note=lambda message, level: said.append(message),
            look=lambda: None,
        )

    async def scenario() -> None:
        patient, impatient = roll_call(60.0, kept), roll_call(1.0, register_of_a_sitting())
        await patient.wait()
        await impatient.wait()
        await asyncio.to_thread(beta.kill)
        patient = roll_call(60.0, kept)  # of another sitting
        waiting = asyncio.create_task(patient.wait())
        await impatient.wait()
        assert not waiting.done()
        await impatient.wait()  # not for beta again: that would be said once more
        await asyncio.to_thread(beta.start)
        await asyncio.wait_for(waiting, 20.0)

    asyncio.run(scenario())
    assert sorted(said) == [f"beta is away: waiting up to {seconds} s for it" for seconds in (1, 60)]
