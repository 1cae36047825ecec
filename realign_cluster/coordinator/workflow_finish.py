"""The end of a sitting of a workflow: the model that came out of it, summary.json, model card, report. Repeated whole
after a crash.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from realign_cluster import __version__
from realign_cluster.coordinator.workflow_record import WorkflowRun
from realign_cluster.coordinator.workflow_report import write_workflow_report
from realign_cluster.coordinator.workflow_status import workflow_status
from realign_cluster.store.artifacts import link_or_copy
from realign_cluster.store.durable import TEMPORARY_SUFFIX, sync_folder
from realign_cluster.workflows.course import End


def finish_workflow(run: WorkflowRun, end: End, model: str) -> dict[str, Any]:
    """The summary, as it is written to summary.json. `model`: the folder or hub id of the one that came out."""
    output = None
    if end.state != "incomplete" and Path(model).is_dir():
        output = _hand_over(Path(model), run.folder.output)
    else:  # what an earlier sitting ended with, and this one does not
        shutil.rmtree(run.folder.output, ignore_errors=True)
    body = {
        "state": end.state,
        "passed": end.passed,
        "reason": end.reason,
        "workflow": run.workflow.name,
        "mode": run.config.mode,
        "model": {"identity": end.model.identity, "from_stage": end.from_stage, "path": model},
        "output": str(output.relative_to(run.folder.path)) if output else None,
        "went_on": list(end.went_on),
        "version": __version__,
    }
    run.ledger.set_meta("end", body)
    status = workflow_status(run.folder.path)
    summary = {
        **body,
        **{name: status[name] for name in ("stages", "wall_seconds", "overrides", "withdrawals", "rollbacks")},
    }
    run.folder.write_json(run.folder.summary, summary)
    write_workflow_report(run.folder.path)
    return summary


def _hand_over(model: Path, output: Path) -> Path:
    """The model's files as `output`, by hard link where that can be: artifacts are never written to again."""
    making = output.with_name(output.name + TEMPORARY_SUFFIX)
    shutil.rmtree(making, ignore_errors=True)
    shutil.copytree(model, making, copy_function=link_or_copy)
    shutil.rmtree(output, ignore_errors=True)
    making.rename(output)
    sync_folder(output.parent)
    return output
