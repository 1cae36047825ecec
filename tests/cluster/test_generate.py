"""Answers drawn by a cluster: the same text of a row wherever, beside whatever and after whatever it was made."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from realign_cluster.domain.job import Sampling
from tests.cluster.conftest import made_rows
from tests.cluster.kit import (
    TINY_MODEL,
    CurateCluster,
    committed_units,
    output_bytes,
    summary,
    wait_until,
    write_rows,
)
from tests.fixtures.models import make_adapter, make_model

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

ROWS = 100
DRAWING = (
    *("--model", str(TINY_MODEL), "--score", "generate", "--plain", "--seed", "5"),
    *("--temperature", "0.9", "--top-p", "0.95", "--samples", "2", "--max-new-tokens", "5"),
)


def answers(run: Path) -> dict[str, dict[str, Any]]:
    """`scores.generate` by row id."""
    lines = [line for part in sorted((run / "output").glob("*.jsonl")) for line in part.read_bytes().splitlines()]
    return {row["row_id"]: row["scores"]["generate"] for row in map(json.loads, lines)}


def test_the_same_texts_with_a_worker_killed_and_by_one_node(pair: CurateCluster, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": row["prompt"]} for row in made_rows(ROWS)])
    alone = pair.run(pair.command(rows, tmp_path / "alone", *DRAWING, "--reproducible", hosts=pair.hostfile("alpha")))
    assert alone.returncode == 0, alone.stderr
    run = tmp_path / "killed"
    process = pair.spawn(pair.command(rows, run, *DRAWING, "--reproducible"))
    wait_until(lambda: committed_units(run) >= 1, 60, "a committed unit")
    [pid] = pair.daemons["beta"].worker_pids()
    os.kill(pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 0, errors
    assert summary(run)["rows"] == {"in": ROWS, "kept": ROWS, "dropped": 0, "failed": 0}
    assert output_bytes(run) == output_bytes(tmp_path / "alone")
    found = answers(run)
    assert len({sample["text"] for answer in found.values() for sample in answer["samples"]}) > ROWS
    for row_id, answer in found.items():
        assert answer["seed"] == Sampling(seed=5).row_seed(bytes.fromhex(row_id))
        assert [set(sample) for sample in answer["samples"]] == [{"text", "tokens", "finish", "logprob_sum"}] * 2


@pytest.mark.soak
def test_a_trained_model_is_sampled_and_compared(pair: CurateCluster, tmp_path: Path) -> None:
    """An adapter is brought to the nodes; batches beside other rows give what rows alone give."""
    adapter = make_adapter(tmp_path / "adapter", TINY_MODEL)
    rows = write_rows(tmp_path / "rows.jsonl", made_rows(24))
    scoring = ("--adapter", str(adapter), "--keep-if", 'scores.kl.mean > 0 and scores.generate.samples.0.finish != ""')
    options = (*DRAWING, *scoring)
    at = options.index("generate")
    options = (*options[:at], "kl,generate", *options[at + 1 :])
    done = pair.run(pair.command(rows, tmp_path / "run", *options))
    assert done.returncode == 0, done.stderr
    assert summary(tmp_path / "run")["rows"]["kept"] == 24
    changed = pair.run(pair.command(rows, tmp_path / "run", *options, "--seed", "6"))
    assert changed.returncode == 2
    assert "sampling" in changed.stderr


def test_an_adapter_of_another_model_is_refused(pair: CurateCluster, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", make_model(tmp_path / "other", "llama-deep"))
    rows = write_rows(tmp_path / "rows.jsonl", made_rows(4))
    asked = pair.command(
        rows, tmp_path / "run", "--model", str(TINY_MODEL), "--score", "loglik", "--adapter", str(adapter)
    )
    done = pair.run(asked)
    assert done.returncode == 2, done.stderr
    assert "does not fit the model tiny-model: model.layers.0.mlp.down_proj.lora_a: adapter shape" in done.stderr
    assert not (tmp_path / "run").exists()


def test_no_answers_by_a_model_in_parts(pair: CurateCluster, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", made_rows(4))
    done = pair.run(pair.command(rows, tmp_path / "run", *DRAWING, "--shard", "pipeline"))
    assert done.returncode == 2, done.stderr
    assert "cannot be sharded as asked: generate needs the whole model on a node" in done.stderr
