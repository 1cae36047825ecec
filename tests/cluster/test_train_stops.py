"""A training stops, or loses something, for other reasons than a kill: it says why, and goes on from what is whole."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from realign_cluster.coordinator.planning import open_calibrations
from realign_cluster.domain.batch_order import rows_of_step
from realign_cluster.store.checkpoints import CheckpointManifest, CheckpointStore
from realign_cluster.store.state_part import Corrupt, verify_part
from tests.cluster.conftest import made_rows
from tests.cluster.kit import TINY_MODEL, summary, write_rows
from tests.cluster.train_kit import (
    NODES,
    SAME,
    TRAINING,
    Outcome,
    TrainCommands,
    damage,
    held,
    history_of,
    ledger_of,
    lives,
    outcome,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240), pytest.mark.soak]


def test_interrupted_and_gone_on_with_over_a_damaged_snapshot(
    commands: TrainCommands, train_rows: Path, calm_training: Outcome, tmp_path: Path
) -> None:
    out, own = tmp_path / "run", tmp_path / "rows.jsonl"
    own.write_bytes(train_rows.read_bytes())
    command = commands.command(own, out, *SAME)
    run = commands.start(command, out)
    run.reach(10)
    run.process.send_signal(signal.SIGINT)
    assert "run the same command again to go on" in run.finish(130)
    assert summary(out)["state"] == "incomplete"

    refused = commands.start([*command, "--learning-rate", "2e-3"], out).finish(2)
    assert "0.001" in refused
    assert "0.002" in refused
    own.write_bytes(train_rows.read_bytes().replace(b"Question 7:", b"Question 8:"))
    assert "data" in commands.start(command, out).finish(2)
    own.write_bytes(train_rows.read_bytes())

    [stopped_after] = {next(iter(commands.states(out, node))) for node in NODES}
    newest = [commands.states(out, node)[stopped_after] for node in NODES]
    newest += (out / "checkpoints" / f"step-{stopped_after:08d}").glob("*.safetensors")
    for path in newest:
        damage(path)
    said = commands.start(command, out).finish()
    assert outcome(out) == calm_training
    assert newest[0].name in said
    assert "damaged" in said
    starts = [generation.start_step for generation in history_of(out).generations]
    assert starts[0] == 0
    assert 0 < starts[-1] < stopped_after


def test_a_node_goes_and_joins_again_at_a_checkpoint(
    commands: TrainCommands, train_rows: Path, calm_training: Outcome, tmp_path: Path
) -> None:
    """The other one goes on alone, with the same batches, until it is back."""
    out, beta = tmp_path / "run", commands.cluster.daemons["beta"]
    run = commands.start(commands.command(train_rows, out, *TRAINING, "--min-nodes", "1"), out)
    run.reach(5)
    beta.kill()
    run.wait_for(lambda: run.generation == 2, "a generation without beta")
    with held(commands.rank("alpha")):
        beta.start()
        run.wait_for(lambda: "beta is there and joins after the next checkpoint" in run.notes(), "beta to be heard of")
    run.finish()

    alone, both = history_of(out).generations[1:]
    assert (alone.nodes, set(both.nodes)) == (("alpha",), {"alpha", "beta"})
    assert both.start_step == alone.last_step, "what was done alone was done again"
    spec = run.commands("StartRank")[-1][1]["spec"]
    assert {part["kind"] for part in spec["start"]} == {"checkpoint"}
    assert all(
        math.isclose(loss, expected, rel_tol=5e-3)
        for loss, expected in zip(outcome(out).losses, calm_training.losses, strict=True)
    )
    assert summary(out)["steps_lost"] <= 1


def test_a_node_that_was_missing_at_the_start_joins_at_a_checkpoint(
    commands: TrainCommands, train_rows: Path, calm_training: Outcome, tmp_path: Path
) -> None:
    out, beta = tmp_path / "run", commands.cluster.daemons["beta"]
    beta.kill()
    run = commands.start(commands.command(train_rows, out, *TRAINING, "--min-nodes", "1"), out)
    run.reach(2)
    with held(commands.rank("alpha")):
        beta.start()
        run.wait_for(lambda: "beta is there and joins after the next checkpoint" in run.notes(), "beta to be heard of")
    run.finish()
    with contextlib.closing(open_calibrations(commands.cluster.home)) as store:
        learned = {found.node_name: found.current.mode for found in store.everything(now=datetime.now(UTC))}
    assert learned["beta"] == "run", "what was measured of a late node is forgotten"
    alone, both = history_of(out).generations
    assert (alone.nodes, set(both.nodes)) == (("alpha",), {"alpha", "beta"})
    assert both.start_step == alone.last_step
    assert all(
        math.isclose(loss, expected, rel_tol=5e-3)
        for loss, expected in zip(outcome(out).losses, calm_training.losses, strict=True)
    )


def test_a_daemon_that_is_stopped_has_no_rank_when_another_node_goes_on(
    commands: TrainCommands, train_rows: Path, tmp_path: Path
) -> None:
    """Its rank waits for nobody and nobody can kill it: it ends by itself."""
    out = tmp_path / "run"
    asked = (*TRAINING, "--steps", "2000", "--parallel", "single", "--min-nodes", "1")
    run = commands.start(commands.command(train_rows, out, *asked), out)
    run.reach(5)
    [name] = history_of(out).generations[0].nodes
    daemon, rank = commands.cluster.daemons[name], commands.rank(name)
    daemon.signal(signal.SIGSTOP)
    try:
        run.wait_for(lambda: run.generation == 2, "a generation on the other node")
        assert not lives(rank)
    finally:
        daemon.signal(signal.SIGCONT)
    run.process.send_signal(signal.SIGINT)
    run.finish(130)
    assert history_of(out).generations[1].nodes != (name,)


def test_a_model_in_parts_is_gone_on_with_once_a_node_that_is_away_is_back(
    commands: TrainCommands, train_rows: Path, tmp_path: Path
) -> None:
    """The coordinator and a node went together: one node is enough for the command, but not for the model in parts."""
    out, beta = tmp_path / "run", commands.cluster.daemons["beta"]
    command = commands.command(train_rows, out, *TRAINING, "--parallel", "pipeline", "--min-nodes", "1")
    run = commands.start(command, out)
    run.reach(10)
    run.kill()
    beta.kill()
    again = commands.start(command, out)
    again.wait_for(lambda: any("waiting for beta" in note for note in again.notes()), "word of the wait")
    beta.start()
    again.finish()
    before, after = history_of(out).generations
    assert (before.parallel, after.parallel) == ("pipeline", "pipeline")
    assert set(after.nodes) == {"alpha", "beta"}
    assert after.start_step >= 8


def test_a_nodes_disk_is_full(
    commands: TrainCommands, train_rows: Path, calm_training: Outcome, tmp_path: Path
) -> None:
    """It can keep nothing more: that is said, training goes on, what it had stays whole, the other one's is stored."""
    out = tmp_path / "run"
    with disk_of_its_own(commands.cluster.folder / "gamma") as disk:
        gamma = commands.cluster.start("gamma")
        try:
            hosts = commands.cluster.hostfile("alpha", "gamma")
            run = commands.start(commands.command(train_rows, out, *SAME, hosts=hosts), out)
            run.reach(4)
            ballast = fill(disk)
            full_at = run.last_step()
            had = commands.states(out, "gamma")
            run.wait_for(
                lambda: "gamma could not keep the checkpoint of step" in run.said(), "a checkpoint that failed"
            )
            intact = {step: verify_part(path) for step, path in had.items() if path.exists()}
            stored = run.wait_for(
                lambda: [m for m in CheckpointStore(out / "checkpoints").manifests() if m.step > full_at + 1],
                "a checkpoint in the run folder meanwhile",
            )
            ballast.unlink()
            said = run.finish()
        finally:
            gamma.kill()
            del commands.cluster.daemons["gamma"]
    assert intact
    assert not any(isinstance(found, Corrupt) for found in intact.values())
    assert isinstance(stored[0], CheckpointManifest)
    assert "gamma could not keep the snapshot of step" in said
    assert "training goes on" in said
    assert len(history_of(out).generations) == 1
    assert outcome(out) == calm_training


def test_no_node_has_room_for_the_model(commands: TrainCommands, train_rows: Path, tmp_path: Path) -> None:
    with disk_of_its_own(commands.cluster.folder / "delta", megabytes=60) as disk:
        delta = commands.cluster.start("delta")
        try:
            out, hosts = tmp_path / "run", commands.cluster.hostfile("delta")
            said = commands.start(commands.command(train_rows, out, *TRAINING, hosts=hosts), out).finish(3, seconds=60)
        finally:
            delta.kill()
            del commands.cluster.daemons["delta"]
    assert "no room for model tiny-model" in said
    assert f"free some disk there, or delete models that are no longer needed from {disk}" in said


def test_the_run_folders_disk_is_full(
    commands: TrainCommands, train_rows: Path, calm_training: Outcome, tmp_path: Path
) -> None:
    """Nothing can be recorded: that is said, ranks train on meanwhile, and all of it is recorded once there is room."""
    with disk_of_its_own(tmp_path / "disk") as disk:
        out = disk / "run"
        run = commands.start(commands.command(train_rows, out, *SAME), out)
        run.reach(4)
        ballast = fill(disk)
        run.wait_for(lambda: "the ledger cannot be written" in run.said(), "word that the disk is full")
        recorded = run.last_step()
        run.wait_for(lambda: next(iter(commands.states(out, "alpha"))) > recorded + 2, "steps that are not recorded")
        ballast.unlink()
        said = run.finish()
        assert "waiting for room" in said
        assert len(history_of(out).generations) == 1
        assert outcome(out) == calm_training
        assert not CheckpointStore(out / "checkpoints").newest_intact().skipped


def test_interrupted_while_the_run_folders_disk_is_full(
    commands: TrainCommands, train_rows: Path, calm_training: Outcome, tmp_path: Path
) -> None:
    """It ends, though not even that can be recorded, and is gone on with once there is room."""
    with disk_of_its_own(tmp_path / "disk") as disk:
        out = disk / "run"
        command = commands.command(train_rows, out, *SAME)
        run = commands.start(command, out)
        run.reach(4)
        ballast = fill(disk)
        run.wait_for(lambda: "the ledger cannot be written" in run.said(), "word that the disk is full")
        run.process.send_signal(signal.SIGINT)
        assert "run the same command again to go on" in run.finish(130, seconds=15)
        ballast.unlink()
        commands.start(command, out).finish()
        assert history_of(out).generations[-1].start_step >= 3
        with ledger_of(out) as ledger:
            assert {end.body["digest"] for end in ledger.measurements("ended")} == {calm_training.digest}


def test_the_loss_is_no_number(commands: TrainCommands, tmp_path: Path) -> None:
    """Of one row, for one word that the model has no number for: its batch is named, what was before is kept."""
    steps_before = 5
    rows = made_rows(100)
    batch = rows_of_step(0, steps_before, len(rows), 8)
    rows[batch[3]]["prompt"] += " \N{SNOWMAN}"
    data = write_rows(tmp_path / "rows.jsonl", rows)
    out, hosts = tmp_path / "run", commands.cluster.hostfile("alpha")
    training = ("--steps", "20", "--global-batch", "8", "--checkpoint-every", "2", "--parallel", "single")
    command = commands.command(
        data, out, *training, hosts=hosts, model=model_without("\N{SNOWMAN}", tmp_path / "model")
    )
    run = commands.start(command, out)
    said = run.finish(1)
    assert summary(out)["state"] == "failed"
    assert f"step {steps_before + 1}: the loss is nan" in said
    assert all(f"rows.jsonl:{row + 1}" in said for row in batch)
    assert "the last good checkpoint is kept" in said
    intact = CheckpointStore(out / "checkpoints").newest_intact()
    assert intact.manifest is not None
    assert intact.manifest.step == 4
    assert not intact.skipped


def model_without(word: str, folder: Path) -> Path:
    """The tiny model with an output layer of its own, and NaN where it looks up what no made row has but this word."""
    shutil.copytree(TINY_MODEL, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    tensors = load_file(folder / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = embedding.copy()
    vocabulary = Tokenizer.from_file(str(folder / "tokenizer.json"))
    embedding[vocabulary.encode(word, add_special_tokens=False).ids] = np.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "mlx"})
    return folder


@contextlib.contextmanager
def disk_of_its_own(folder: Path, megabytes: int = 200) -> Iterator[Path]:
    """A folder that is a file system."""
    if os.geteuid() != 0 or not Path("/proc/mounts").exists():
        pytest.skip("a disk of its own needs root on Linux")
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=False)


def fill(disk: Path) -> Path:
    """The file that takes all that is left."""
    path = disk / "ballast"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(64 * 1024))
    return path
