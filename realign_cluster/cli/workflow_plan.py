"""What a workflow will take and what its gates can decide, before any hours are spent: reads what it is about, and
says it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from realign_cluster.cli.workflow_costs import Given, costs_of
from realign_cluster.coordinator.workflow_outside import pinned_retriever, reach_service
from realign_cluster.coordinator.workflow_record import data_files
from realign_cluster.workflows.config import read_config
from realign_cluster.workflows.gate_planning import plan_gates, plan_labels, too_few
from realign_cluster.workflows.harness_process import prepared_tasks
from realign_cluster.workflows.intake import check_data
from realign_cluster.workflows.job_costs import counted, minutes_by_stage, minutes_per_item
from realign_cluster.workflows.tables import workflow_named
from realign_cluster.workflows.thresholds import check_thresholds

TOO_FEW = (
    "too few rows, by what the gates that a run can stop at need if each item is at its best; with errors it is more"
)


async def plan_workflow(name: str, path: Path, hostfile: Path | None, *, discover: bool = False) -> dict[str, Any]:
    """Gates and jobs, as JSON; minutes and memory only of a cluster. Raises UsageError as `run` would."""
    config = read_config(path)
    workflow = workflow_named(name, config)
    check_thresholds(workflow, config, path)
    files = data_files(config, path)
    check_data(name, config, files)
    retriever = pinned_retriever(config, path)
    reach_service(config, path)
    tasks = prepared_tasks(config, path)
    given = Given(workflow=workflow, config=config, config_file=path, files=files, tasks=tasks, retriever=retriever)
    costs, stopped = await costs_of(given, hostfile, discover=discover)
    on_a_cluster = hostfile is not None or discover
    stages = minutes_by_stage(costs)
    return {
        "workflow": name,
        "gates": plan_gates(workflow, config, files, tasks, minutes_per_item(costs)),
        "labels": plan_labels(workflow, files),
        "costs": [cost.to_json() for cost in costs],
        "stopped": stopped,
        "stages": [
            {"stage": each.name, "title": each.title, "minutes": stages.get(each.name, 0.0) if on_a_cluster else None}
            for each in workflow.stages
        ],
        "attempts": config.attempts,
        "minutes": sum(stages.values()) if on_a_cluster else None,
    }


def plan_lines(plan: Mapping[str, Any]) -> list[str]:
    """For people."""
    return [*_gate_lines(plan), *_label_lines(plan), *_cost_lines(plan)]


def _gate_lines(plan: Mapping[str, Any]) -> Iterator[str]:
    yield f"{plan['workflow']}: what its gates can decide with the items that are there"
    stage = ""
    for gate in plan["gates"]:
        if gate["stage"] != stage:
            stage = gate["stage"]
            yield f"  {stage}"
        watched = " (watched)" if gate["guard"] else ""
        minutes = "" if gate.get("minutes") is None else f"; {gate['minutes']:.1f} minutes to measure"
        looks = "" if gate["looks"] == 1 else f", at each of {gate['looks']} looks"
        alpha = "" if gate["alpha_each"] is None else f"; alpha {gate['alpha_each']:.3g}{looks}"
        yield f"    {gate['title']}{watched}: {gate['text']}{alpha}{minutes}"
    if few := too_few(plan["gates"]):
        yield TOO_FEW
        yield from (f"    {name}: {have:,} of {needed:,}" for name, (have, needed) in few.items())


def _label_lines(plan: Mapping[str, Any]) -> Iterator[str]:
    labels = plan["labels"]
    if labels is None:
        return
    kinds = f"{labels['supported']:,} supported + {labels['not_supported']:,} not = {labels['rows']:,}"
    yield f"labels to hold the verifier against: {kinds} of {labels['needed']:,} at least, of both kinds"
    if labels["unusable"]:
        yield f"    warning: {labels['unusable']}; until then INSUFFICIENT: {', '.join(labels['gates'])}"


def _cost_lines(plan: Mapping[str, Any]) -> Iterator[str]:
    where = "" if plan["minutes"] is None else " on this cluster"
    yield f"what it takes{where} if every gate passes at once; each job that a run does, once"
    shown: set[tuple[str, ...]] = set()
    for stage in plan["stages"]:
        took = "" if stage["minutes"] is None else f": {stage['minutes']:.1f} minutes"
        yield f"  {stage['title']}{took}"
        for cost in plan["costs"]:
            if cost["stage"] != stage["stage"]:
                continue
            took = "" if cost["minutes"] is None else f"{cost['minutes']:.1f} minutes; "
            yield f"    {cost['title']} ({cost['what']}): {took}{cost['text']}"
            if (memory := tuple(cost["memory"])) not in shown:  # the same of many jobs
                shown.add(memory)
                yield from (f"        {line}" for line in memory)
    if plan["stopped"]:
        yield f"not seen further: {plan['stopped']}"
    if plan["attempts"] > 1:
        yield f"a stage whose gate fails is done again, {plan['attempts']} times in all at most: its minutes repeat"
    if plan["minutes"] is None:
        yield "name a cluster for what it takes: --hostfile FILE"
    else:
        unknown = sum(cost["minutes"] is None for cost in plan["costs"])
        without = f", and {counted(unknown, 'job')} of unknown length" if unknown else ""
        yield f"together {plan['minutes']:.0f} minutes of work, beside the start of each job{without}"
