"""What a workflow will take and what its gates can decide, before any hours are spent."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import orjson

from realign_cluster.cli.plan_train import plan_of
from realign_cluster.cli.train_asked import TrainAsked
from realign_cluster.coordinator.cluster_plan import plan_on_cluster
from realign_cluster.coordinator.request import CurateRequest
from realign_cluster.coordinator.workflow_outside import pinned_retriever, reach_service
from realign_cluster.coordinator.workflow_record import data_files, model_path
from realign_cluster.domain.gate import Gate
from realign_cluster.domain.gate_plan import GatePlan, plan_gate
from realign_cluster.domain.job import Sampling
from realign_cluster.domain.retention import BenchmarkPair, judge_benchmark
from realign_cluster.domain.training import TrainSettings
from realign_cluster.workflows.config import TrainingConfig, WorkflowConfig, read_config
from realign_cluster.workflows.distance import PROBED, count_probes
from realign_cluster.workflows.harness_process import TaskRequests, prepared_tasks
from realign_cluster.workflows.intake import check_data, read_rows
from realign_cluster.workflows.judging import alpha_each, rule_as_judged
from realign_cluster.workflows.stage import Counted, Retained
from realign_cluster.workflows.tables import workflow_named
from realign_cluster.workflows.thresholds import check_thresholds

# metric -> (data file, which of its rows are items)
ITEMS_OF: Mapping[str, tuple[str, str]] = {
    "perplexity": ("valid", "all"),
    "retrieval_r_precision": ("queries", "all"),
    "pairs_supported": ("pairs", "all"),
    "citation_precision": ("items", "answerable"),
    "citation_recall": ("items", "answerable"),
    "citation_format": ("items", "answerable"),
    "attribution_coverage": ("items", "answerable"),
    "factuality": ("items", "answerable"),
    "factuality_change": ("items", "all"),
    "hallucination_rate": ("items", "all"),
    "over_abstention": ("items", "answerable"),
    "citation_precision_change": ("items", "answerable"),
    "citation_recall_change": ("items", "answerable"),
    "coverage_change": ("items", "answerable"),
    "progress": ("items", "answerable"),
}
TOO_FEW = (
    "too few rows, by what the gates that a run can stop at need if each item is at its best; with errors it is more"
)
MINUTE = 60.0
MOST_ITEMS = 5_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One job as it would run on this cluster. `minutes` None where the cluster cannot do it: `text` says why."""

    title: str
    minutes: float | None
    memory: tuple[str, ...]
    text: str


async def plan_workflow(name: str, path: Path, hostfile: Path | None, *, discover: bool = False) -> dict[str, Any]:
    """Gates and costs, as JSON. Without a cluster only the gates. Raises UsageError as `run` would."""
    config = read_config(path)
    workflow = workflow_named(name, config)
    check_thresholds(workflow, config, path)
    files = data_files(config, path)
    check_data(name, config, files)
    pinned_retriever(config, path)
    reach_service(config, path)
    tasks = prepared_tasks(config, path)
    costs = [] if hostfile is None and not discover else await _costs(config, path, files, hostfile, discover)
    measuring = next((cost.minutes for cost in costs if cost.title == "answers of one model"), None)
    items = _count(files, "items", "all")
    per_item = None if measuring is None else measuring / max(1, items)
    gates = []
    for stage in workflow.stages:
        for gate in stage.gates:
            rule = rule_as_judged(gate, stage, config)
            alpha = None if isinstance(rule, Counted) else alpha_each(stage, config)
            found = {
                "stage": stage.name,
                "gate": gate.name,
                "title": gate.title,
                "guard": gate.guard,
                "alpha_each": alpha,
                "looks": config.looks,
            }
            decidable = _decidable(rule, stage.name, alpha, config, files, tasks, per_item)
            gates.append(found | {"measured_on": _measured_on(rule, stage.name)} | decidable)
    return {
        "workflow": name,
        "gates": gates,
        "costs": [{"title": c.title, "minutes": c.minutes, "memory": list(c.memory), "text": c.text} for c in costs],
        "minutes": sum(cost.minutes or 0.0 for cost in costs) if costs else None,
    }


def plan_lines(plan: Mapping[str, Any]) -> list[str]:
    """For people."""
    lines = [f"{plan['workflow']}: what its gates can decide with the items that are there"]
    stage = ""
    for gate in plan["gates"]:
        if gate["stage"] != stage:
            stage = gate["stage"]
            lines.append(f"  {stage}")
        watched = " (watched)" if gate["guard"] else ""
        minutes = "" if gate.get("minutes") is None else f"; {gate['minutes']:.1f} minutes to measure"
        looks = "" if gate["looks"] == 1 else f", at each of {gate['looks']} looks"
        alpha = "" if gate["alpha_each"] is None else f"; alpha {gate['alpha_each']:.3g}{looks}"
        lines.append(f"    {gate['title']}{watched}: {gate['text']}{alpha}{minutes}")
    lines += _too_few(plan["gates"])
    if not plan["costs"]:
        return [*lines, "name a cluster for what it takes: --hostfile FILE"]
    lines.append("what it takes on this cluster, each job once; attempts and rounds repeat them")
    for cost in plan["costs"]:
        took = "" if cost["minutes"] is None else f"{cost['minutes']:.1f} minutes; "
        lines.append(f"    {cost['title']}: {took}{cost['text']}")
        lines += [f"        {line}" for line in cost["memory"]]
    return [*lines, f"together {plan['minutes']:.0f} minutes of work, beside the start of each job"]


def _too_few(gates: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of each file the most that a gate needs, where it has less; not of gates that are only watched."""
    have: dict[str, int] = {}
    needed: dict[str, int] = {}
    for gate in gates:
        if not gate["guard"] and gate.get("items_if_perfect"):
            have[gate["measured_on"]] = gate["items"]
            needed[gate["measured_on"]] = max(needed.get(gate["measured_on"], 0), gate["items_if_perfect"])
    few = [f"    {name}: {have[name]:,} of {most:,}" for name, most in needed.items() if have[name] < most]
    return [TOO_FEW, *few] if few else []


def _measured_on(rule: Gate | Counted | Retained, stage: str) -> str | None:
    """What more rows are to be added to."""
    match rule:
        case Counted():
            return None
        case Retained():
            return f"benchmark {rule.benchmark}"
        case Gate(metric="kl"):
            return "prompts of practice and general, preference.probe_prompts at most"
        case Gate(metric="verifier_false_positives"):
            return f"labels, {_labelled(stage)}"
        case Gate():
            name, which = ITEMS_OF[rule.metric]
            name = "sealed" if name == "items" and stage == "evaluation" else name
            return f"{name}, {which}" if which == "answerable" else name


def _labelled(stage: str) -> str:
    return "supported" if stage == "detection" else "not supported"


def _decidable(
    rule: Gate | Counted | Retained,
    stage: str,
    alpha: float | None,
    config: WorkflowConfig,
    files: Mapping[str, Path],
    tasks: Mapping[str, TaskRequests],
    per_item: float | None,
) -> dict[str, Any]:
    match rule:
        case Counted():
            return {
                "items": None,
                "text": f"{rule.fact} {rule.direction} {rule.threshold:g}: a count, compared as it is",
            }
        case Retained():
            assert alpha is not None
            return _retention(rule, alpha, _chances(rule.benchmark, files, tasks))
        case Gate():
            count = _items(rule.metric, stage, config, files)
            found = _planned(rule, count)
            minutes = None if per_item is None or rule.metric not in ITEMS_OF else per_item * count
            return {
                "items": count,
                "can_pass": found.can_pass,
                "items_if_perfect": found.items_if_perfect,
                "passes_from": found.passes_from,
                "fails_from": found.fails_from,
                "minutes": minutes,
                "text": found.text,
            }


@cache
def _planned(rule: Gate, count: int) -> GatePlan:
    """Several stages have gates alike, and each takes a while to look through."""
    return plan_gate(rule, count, units_per_item=_usual_units(rule))


def _usual_units(rule: Gate) -> float | None:
    """Of a ratio: an answer of one claim, a completion half as long as it may be; of given texts, as long as any."""
    if rule.evidence != "ratio" or rule.scale == "exp":
        return None
    return rule.most_units / 2 if rule.metric == "kl" else 1.0


def _retention(rule: Retained, alpha: float, chances: Sequence[float]) -> dict[str, Any]:
    count = len(chances)
    needed = _needed(rule.threshold, sum(chances) / count, alpha)
    enough = needed is not None and count >= needed
    said = f"{count:,} items {'can' if enough else 'cannot'} show that {rule.threshold:.0%} is kept"
    wanted = "no number of items can" if needed is None else f"{needed:,} can, if all was right and nothing is lost"
    return {"items": count, "can_pass": enough, "items_if_perfect": needed, "text": f"{said}; {wanted}"}


def _chances(benchmark: str, files: Mapping[str, Path], tasks: Mapping[str, TaskRequests]) -> list[float]:
    """Of guessing each item of a benchmark."""
    if benchmark in tasks:
        return list({row["item"]: float(row["chance"]) for row in tasks[benchmark].rows}.values())
    name = f"benchmark {benchmark}"
    return [1 / len(row["choices"]) if "choices" in row else 0.0 for _, row in read_rows(name, files[name])]


@cache
def _needed(threshold: float, chance: float, alpha: float) -> int | None:
    """The fewest items (by steps of a tenth) on which a model that was right on all and still is passes."""
    items = 20
    while items <= MOST_ITEMS:
        all_right = (1.0,) * items
        names = tuple(map(str, range(items)))
        pair = BenchmarkPair(benchmark="", items=names, before=all_right, after=all_right, chance=chance)
        if judge_benchmark(pair, threshold=threshold, alpha=alpha).outcome == "PASS":
            return items
        items += max(1, items // 10)
    return None


def _items(metric: str, stage: str, config: WorkflowConfig, files: Mapping[str, Path]) -> int:
    if metric == "kl":
        rows = {name: _count(files, name, "all") for name in PROBED if name in files}
        return count_probes(rows, config.preference.probe_prompts)
    if metric == "verifier_false_positives":
        return _count(files, "labels", _labelled(stage))
    name, which = ITEMS_OF[metric]
    return _count(files, "sealed" if name == "items" and stage == "evaluation" else name, which)


def _count(files: Mapping[str, Path], name: str, which: str) -> int:
    keep: Mapping[str, Callable[[dict[str, Any]], bool]] = {
        "all": lambda row: True,
        "answerable": lambda row: bool(row.get("answerable", True)),
        "supported": lambda row: bool(row["label"] == "supported"),
        "not supported": lambda row: bool(row["label"] != "supported"),
    }
    return sum(keep[which](row) for _, row in read_rows(name, files[name]))


async def _costs(
    config: WorkflowConfig, path: Path, files: Mapping[str, Path], hostfile: Path | None, discover: bool
) -> list[Cost]:
    model = model_path(config, path)
    wanted = config.generation.max_new_tokens
    costs = [
        await _scoring(
            "answers of one model",
            model,
            files["items"],
            config,
            Sampling(max_new_tokens=wanted, temperature=0.0),
            hostfile,
            discover,
        ),
        await _scoring(
            "samples for preference pairs",
            model,
            files["practice"],
            config,
            Sampling(
                max_new_tokens=wanted, samples=config.preference.samples, temperature=config.preference.temperature
            ),
            hostfile,
            discover,
        ),
    ]
    data = {"preparation": "preparation", "citation": "citation", "iteration": "citation"}
    for name in TrainingConfig.model_fields:
        settings: TrainSettings | None = getattr(config.training, name)
        if settings is not None and name in data:
            costs.append(await _training(name, model, data[name], files[data[name]], settings, hostfile, discover))
    with tempfile.TemporaryDirectory() as folder:
        pairs = Path(folder) / "pairs.jsonl"
        pairs.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in _pairs_alike(files["practice"])))
        preference = config.training.preference
        costs.append(await _training("preference", model, "practice", pairs, preference, hostfile, discover))
    return costs


def _pairs_alike(practice: Path) -> Iterator[dict[str, Any]]:
    """Pairs as long as those that stage 5 will make of the practice questions."""
    for _, row in read_rows("practice", practice):
        yield {"prompt": row["prompt"], "chosen": row["completion"], "rejected": f"{row['completion']} "}


async def _scoring(
    title: str,
    model: str,
    rows: Path,
    config: WorkflowConfig,
    sampling: Sampling,
    hostfile: Path | None,
    discover: bool,
) -> Cost:
    request = CurateRequest(
        inputs=(str(rows),),
        out=Path("-"),
        model=model,
        kinds=("generate",),
        sampling=sampling,
        chat=config.model.chat,
        max_tokens=config.model.max_tokens,
    )
    plan, _ = await plan_on_cluster(request, hostfile, discover=discover, min_nodes=None, allow_skew=frozenset())
    seconds = plan.expected_seconds
    return Cost(
        title=title,
        minutes=None if seconds is None else seconds / MINUTE,
        memory=tuple(f"{node.name}: {node.memory}" for node in plan.nodes),
        text=_refused(plan.refusal) or f"{plan.rows:,} rows over {len(plan.nodes)} nodes",
    )


def _refused(why: str | None) -> str:
    return f"cannot run; {why}" if why else ""


async def _training(
    name: str,
    model: str,
    data: str,
    rows: Path,
    settings: TrainSettings,
    hostfile: Path | None,
    discover: bool,
) -> Cost:
    """`rows` stand for the run's own, which are made of `data` and others: of too few nothing can be said."""
    title = f"{name} training"
    with rows.open("rb") as file:
        count = sum(1 for line in file if line.strip())
    if count < settings.global_batch:
        text = f"not planned: data.{data} has {count} rows, training.{name}.global_batch is {settings.global_batch}"
        return Cost(title=title, minutes=None, memory=(), text=text)
    asked = TrainAsked(
        model=model,
        data=(str(rows),),
        valid=(),
        benchmarks=(),
        parallel="auto",
        backend="auto",
        track="none",
        settings=settings,
    )
    plan = await plan_of(asked, hostfile, discover=discover, min_nodes=None, allow_skew=frozenset())
    seconds = plan.expected_seconds
    return Cost(
        title=title,
        minutes=None if seconds is None else seconds / MINUTE,
        memory=tuple(f"{node.name}: {node.memory}" for node in plan.nodes),
        text=_refused(plan.refusal)
        or "; ".join(
            (
                f"{settings.steps:,} steps of {settings.global_batch}, {plan.approach} over {len(plan.nodes)} nodes",
                *plan.cautions,
            )
        ),
    )
