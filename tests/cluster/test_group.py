"""A model over two real daemons: planned when neither holds it alone, scored as by one, whole again after a kill."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from realign_cluster.domain.memory import memory_need, model_facts
from tests.cluster.conftest import Undisturbed, made_rows
from tests.cluster.kit import (
    CurateCluster,
    committed_units,
    ledger,
    output_bytes,
    summary,
    wait_until,
    write_rows,
)
from tests.fixtures.models import make_model

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

ROWS, MAX_TOKENS, BLOCKS = 200, 96, 12


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", made_rows(ROWS))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "deep", "llama-12")


@pytest.fixture(scope="module")
def scoring(model: Path) -> tuple[str, ...]:
    options = ("--score", "loglik,ifd", "--reproducible", "--plain", "--max-tokens", str(MAX_TOKENS))
    return ("--model", str(model), *options)


def outcomes(run: Path) -> dict[str, list[int]]:
    """How attempts ended, without the details, and which units they were of."""
    found: dict[str, list[int]] = {}
    reader = ledger(run)
    try:
        for attempt in reader.attempts():
            found.setdefault((attempt.outcome or "").partition(":")[0], []).append(attempt.unit)
    finally:
        reader.close()
    return found


@pytest.fixture
def small_nodes(pair: CurateCluster, model: Path) -> Path:
    """Two MiB less than the whole model needs on each."""
    weights = (model / "model.safetensors").stat().st_size
    facts = model_facts(json.loads((model / "config.json").read_text()), weights, name="deep")
    most = memory_need(facts, MAX_TOKENS, backend="cpu").total // 2**20 - 2
    return pair.hostfile("alpha", "beta", limits=dict.fromkeys(("alpha", "beta"), f"{most}MiB"))


def test_a_plan_shares_out_the_layers_of_a_model_that_no_node_holds(
    pair: CurateCluster, rows: Path, small_nodes: Path, scoring: tuple[str, ...]
) -> None:
    realign = [sys.executable, "-m", "realign_cluster.cli.main"]
    command = [*realign, "plan", str(rows), "--hostfile", str(small_nodes), *scoring]
    said = pair.run([*command, "--json"])
    assert said.returncode == 0, said.stderr
    lines = [json.loads(line) for line in said.stdout.splitlines()]
    plan, end = lines[-2], lines[-1]
    assert plan["approach"] == end["approach"] == "sharded"
    assert plan["group"]["parallel"] == "pipeline"
    first, last = plan["group"]["members"]
    assert (first["name"], last["name"]) == ("alpha", "beta")
    assert first["blocks"][0] == 0
    assert first["blocks"][1] == last["blocks"][0]
    assert last["blocks"][1] == BLOCKS
    assert all(member["memory_needed_bytes"] <= member["memory_limit_bytes"] for member in plan["group"]["members"])
    assert end["group"].startswith("pipeline over alpha (blocks 0 to ")
    text = pair.run(command).stdout
    assert "no node holds the model alone" in text
    assert text.count("the hostfile's limit") == 2  # each with its arithmetic
    refused = pair.run([*command, "--shard", "none"])
    assert refused.returncode == 2
    assert "it is not sharded: --shard none" in refused.stdout


@pytest.mark.soak
def test_a_worker_of_the_group_and_then_a_node_of_it_are_killed(
    pair: CurateCluster,
    rows: Path,
    small_nodes: Path,
    scoring: tuple[str, ...],
    undisturbed: Undisturbed,
    tmp_path: Path,
) -> None:
    """The output is that of nodes which each hold the model, to the byte: a pipeline computes the same."""
    expected = undisturbed.of(pair, rows, tmp_path / "calm", *scoring)
    run = tmp_path / "run"
    process = pair.spawn(pair.command(rows, run, *scoring, hosts=small_nodes))
    member = pair.daemons["alpha"]
    wait_until(lambda: committed_units(run) >= 1, 60, "a committed unit")
    [pid] = member.worker_pids()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: committed_units(run) >= 3, 60, "the group at work again")
    member.kill()
    wait_until(lambda: "node lost" in outcomes(run), 30, "the loss of the group's node")
    member.start()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "the worker is gone" in errors
    assert output_bytes(run) == expected
    found = summary(run)
    assert found["rows"]["in"] == found["rows"]["kept"] == ROWS
    assert found["nodes"].keys() == {"beta"}
    assert found["plan"]["group"]["parallel"] == "pipeline"
    ended = outcomes(run)
    assert "worker exited" in ended, "nothing was in the group's hands"
    assert len(ended["committed"]) == len(set(ended["committed"])), "a unit was committed twice"
    wait_until(lambda: not any(daemon.worker_pids() for daemon in pair.daemons.values()), 10, "their workers' end")
