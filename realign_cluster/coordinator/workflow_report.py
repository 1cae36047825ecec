"""report.html of a workflow."""

from __future__ import annotations

from pathlib import Path


def write_workflow_report(run: Path) -> Path:
    return run / "report.html"
