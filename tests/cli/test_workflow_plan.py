"""What `realign workflow plan` says of a gate's share of alpha."""

from __future__ import annotations

import asyncio
from pathlib import Path

from realign_cluster.cli.workflow_plan import plan_lines, plan_workflow
from realign_cluster.workflows.template import write_template


def test_alpha_is_shared_by_attempts_and_looks(tmp_path: Path) -> None:
    list(write_template("source-attribution", tmp_path / "made"))
    config = tmp_path / "made" / "workflow.toml"
    config.write_text(config.read_text().replace("\nlooks = 1 ", "\nlooks = 2 "))
    found = asyncio.run(plan_workflow("source-attribution", config, None))
    alphas = {f"{each['stage']}.{each['gate']}": (each["alpha_each"], each["looks"]) for each in found["gates"]}
    assert alphas["citation.citation_recall"] == (0.0125, 2)
    assert alphas["evaluation.citation_recall"] == (0.025, 2)  # one attempt
    assert alphas["sources.types_missing"] == (None, 2)  # counted
    recalls = [line for line in plan_lines(found) if line.strip().startswith("citation recall: ")]
    assert recalls[0].endswith("; alpha 0.0125, at each of 2 looks")
    assert recalls[-1].endswith("; alpha 0.025, at each of 2 looks")
    once = {**found, "gates": [{**each, "looks": 1} for each in found["gates"]]}
    assert any(line.endswith("; alpha 0.025") for line in plan_lines(once))
