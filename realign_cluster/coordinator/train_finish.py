"""The end of a sitting of training: what was trained, metrics.jsonl, summary.json, events.jsonl, report.html.

Repeated whole after a crash. The trained weights are written of a run that is complete, and what was within the budget
of one that its divergence ended; everything else of any.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from realign_cluster.coordinator.progress import Level
from realign_cluster.coordinator.stop import Stop, StopAsked
from realign_cluster.coordinator.train_history import TrainHistory, read_train_history
from realign_cluster.coordinator.train_record import TrainRun
from realign_cluster.coordinator.train_report import write_train_report
from realign_cluster.domain.errors import RunFailed
from realign_cluster.domain.recovery_commands import Finish
from realign_cluster.domain.standing import result_of
from realign_cluster.rpc.versions import local_versions
from realign_cluster.store.checkpoints import CheckpointManifest
from realign_cluster.store.durable import durable_file
from realign_cluster.store.train_ledger import TrainLedgerReader

EXPORT_MODULE = "realign_cluster.training.export"


async def finish_training(
    run: TrainRun,
    finish: Finish,
    node_versions: Mapping[str, Mapping[str, str]],
    *,
    note: Callable[[str, Level], None],
    stop: Stop,
) -> dict[str, Any]:
    """The summary, as it is written to summary.json. Raises StopAsked when writing what was trained was interrupted."""
    output = None
    if finish.state == "complete":
        manifest = chosen_checkpoint(run)
        output = await _export(run, manifest, stop)
        note(f"step {manifest.step} is in {output}", "info")
    elif finish.state == "failed" and (within := last_within_budget(run)) is not None:
        try:
            output = await _export(run, within, stop)
            note(f"step {within.step}, which was within the KL budget, is in {output}", "info")
        except RunFailed as error:  # why the run failed is still to be written down
            note(str(error), "warning")
    history = await asyncio.to_thread(read_train_history, run.ledger)
    body = summary_of(run, history, finish, output, node_versions)
    run.folder.write_json(run.folder.summary, body)
    await asyncio.to_thread(_write_metrics, history, run.folder.metrics)
    await asyncio.to_thread(_write_events, run.ledger, run.folder.events)
    await asyncio.to_thread(write_train_report, run.folder.path, history)
    note(f"report: {run.folder.report}", "info")
    if finish.state == "complete":
        run.ledger.set_meta("finished", True)
    return body


def chosen_checkpoint(run: TrainRun) -> CheckpointManifest:
    """The best one where early stopping was asked for, else the last. Raises RunFailed if there is none."""
    chosen = _chosen(run, run.checkpoints.manifests())
    if chosen is None:
        raise RunFailed(
            f"the run {run.folder.path} is complete, but its checkpoints are gone", "start it again in a new folder"
        )
    return chosen


def last_within_budget(run: TrainRun) -> CheckpointManifest | None:
    """Of a run that failed: None unless it was over its KL budget at last and had not been before."""
    budget, kl = run.job.kl_budget, None
    for measured in run.ledger.measurements("divergence"):
        kl = measured.body["kl"]
    if budget is None or kl is None or kl <= budget:
        return None
    until = run.memory.within_budget_step
    return _chosen(run, [manifest for manifest in run.checkpoints.manifests() if manifest.step <= until])


def _chosen(run: TrainRun, among: Sequence[CheckpointManifest]) -> CheckpointManifest | None:
    manifests = {manifest.step: manifest for manifest in among}
    judged = [manifest.judged for manifest in among]
    chosen = result_of(judged, best=run.job.evaluation.patience is not None, kl_budget=run.job.kl_budget)
    return manifests[chosen.step] if chosen is not None else None


async def _export(run: TrainRun, manifest: CheckpointManifest, stop: Stop) -> Path:
    job = run.folder.path / "job.json"
    run.folder.write_json(job, run.job.model_dump(mode="json"))
    command = [
        *(sys.executable, "-m", EXPORT_MODULE, "--checkpoint", str(run.checkpoints.path(manifest.step))),
        *("--job", str(job), "--model", str(run.model.folder), "--out", str(run.folder.output)),
    ]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    if process.returncode and stop.asked:
        raise StopAsked  # Ctrl-C at a terminal reaches that process too
    if process.returncode:
        raise RunFailed(
            f"what was trained could not be written: {said.decode(errors='replace').strip()[-2000:]}",
            "run the same command again: only this is repeated",
        )
    return run.folder.output


def summary_of(
    run: TrainRun,
    history: TrainHistory,
    finish: Finish,
    output: Path | None,
    node_versions: Mapping[str, Mapping[str, str]],
) -> dict[str, Any]:
    steps = history.steps
    own = local_versions()
    return {
        "state": finish.state,
        "reason": finish.reason if finish.state != "complete" else "",
        "steps": {"asked": run.job.steps, "done": steps[-1].step if steps else 0},
        "method": run.job.method,
        "fine_tune": run.job.fine_tune,
        "loss": {"first": steps[0].loss, "last": steps[-1].loss} if steps else None,
        "validation": history.validation_summary(),
        "benchmarks": history.benchmark_summary(),
        "kl": history.divergences[-1].kl if history.divergences else None,
        "tokens": sum(step.tokens for step in steps),
        "rows": {"train": run.prepared.rows, "valid": run.prepared.valid_rows, **_cut_rows(run.ledger)},
        "nodes": history.nodes_summary(),
        "wall_seconds": history.seconds,
        "tokens_per_second": history.tokens_per_second,
        "generations": len(history.generations),
        "steps_lost": history.steps_lost,
        "resumed": max(0, history.sittings - 1),
        "output": str(output.relative_to(run.folder.path)) if output is not None else None,
        "versions": {
            "coordinator": {"project": own.project, "python": own.python, "platform": own.platform},
            "nodes": {name: dict(versions) for name, versions in node_versions.items()},
        },
        "plan": orjson.loads(run.folder.plan.read_bytes()) if run.folder.plan.exists() else {},
    }


def _cut_rows(ledger: TrainLedgerReader) -> dict[str, int]:
    """Of the training rows, as ranks counted them: cut at the length limit, and left with nothing to learn."""
    counted = {"truncated": 0, "empty": 0}
    for each in ledger.measurements("loaded"):
        counted = {name: each.body.get(f"{name}_rows", 0) for name in counted}
    return counted


def _write_metrics(history: TrainHistory, path: Path) -> None:
    """One JSON object a line, by step: what the run as it stands was trained with. A step that was computed again is
    there once.
    """
    with durable_file(path) as file:
        for line in history.metric_lines():
            file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))


def _write_events(ledger: TrainLedgerReader, path: Path) -> None:
    """What happened and what was decided on it, one JSON object a line; derived from the ledger."""
    with durable_file(path) as file:
        for event in ledger.events():
            when = datetime.fromtimestamp(event.wall, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            line = {"seq": event.seq, "epoch": event.epoch, "time": when, **event.body["event"]}
            line["commands"] = event.body["commands"]
            file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
