"""The `why` lines of a plan: each a complete sentence a user can check against the numbers beside it. Decides
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from realign_cluster.domain.memory import ModelFacts, weights_text
from realign_cluster.domain.plan import GroupPlan, LeftOut, NodePlan
from realign_cluster.domain.plan_facts import NodeFacts, WorkFacts
from realign_cluster.domain.prior import CLAIMED_SPLIT, CONTRADICTION, M3_ULTRA, M4_MAX, choose_machine

COOL = ("", "nominal", "unknown")


def reasons(
    nodes: Sequence[NodeFacts],
    planned: Sequence[NodePlan],
    model: ModelFacts,
    work: WorkFacts,
    left_out: Sequence[LeftOut],
) -> tuple[str, ...]:
    """Why separate batches, why these shares, what is not known, and what other splits would cost."""
    lines = [
        *_approach(nodes, planned, model, left_out),
        *_speeds(planned),
        *_claimed_split(planned, work),
        *_other_splits(planned, work),
    ]
    if work.estimated_from:
        lines.append(f"rows and cost are estimated from {work.estimated_from}")
    return tuple(lines)


def group_reasons(group: GroupPlan, model: ModelFacts, work: WorkFacts, means: str) -> tuple[str, ...]:
    """Why one copy over several nodes, and what that costs. `means` is what joins them."""
    because = "as asked with --shard" if work.sharding != "auto" else "no node holds the model alone"
    lines = [
        f"{model.name}: {weights_text(model)}, counted from {model.parameters.source}",
        f"{group.text()}: {because}; these nodes hold one copy together, joined by {means}, and are given work as one "
        f"node, {group.leader}",
        f"when one of them is lost, all of them wait for it; batches have at most {group.batch_tokens} tokens, as the "
        "least of their memories takes",
    ]
    if model.architecture is not None and group.parallel == "pipeline":
        size = model.architecture.hidden * model.compute_bytes
        lines.append(f"{size / 1024:.0f} KiB of hidden states per token go from each node to the next")
    if work.estimated_from:
        lines.append(f"rows and cost are estimated from {work.estimated_from}")
    return tuple(lines)


def _approach(
    nodes: Sequence[NodeFacts], planned: Sequence[NodePlan], model: ModelFacts, left_out: Sequence[LeftOut]
) -> list[str]:
    if not model.weights_bytes:
        return []
    where = "each node" if not left_out else f"{len(planned)} of {len(planned) + len(left_out)} nodes"
    lines = [
        f"{model.name}: {weights_text(model)}, counted from {model.parameters.source}",
        f"separate batches: one copy of the model fits on {where}, and rows are independent, so nodes exchange nothing "
        "while they score",
    ]
    if any(node.device.backend == "metal" for node in nodes):
        needed = max(node.memory_needed_bytes for node in planned)
        lines.append(
            f"{choose_machine(model, needed)}; for independent scoring every node that holds the model adds its speed"
        )
    return lines


def _speeds(planned: Sequence[NodePlan]) -> list[str]:
    lines: list[str] = []
    named = {
        source: ", ".join(node.name for node in planned if node.source == source)
        for source in ("measured", "stale", "prior")
    }
    if named["measured"]:
        lines.append(f"shares follow measured speed on {named['measured']}")
    if named["stale"]:
        lines.append(
            f"{named['stale']}: the last measurement no longer holds; it is used as a guess and replaced at once"
        )
    if named["prior"]:
        lines.append(
            f"not measured for this model and task: {named['prior']}; `realign calibrate` measures, and a run measures "
            "at its start and corrects as it goes"
        )
    for node in planned:
        if node.measured_cost_per_second is not None:
            ratio = node.measured_cost_per_second / node.prior_cost_per_second
            lines.append(f"{node.name}: measured speed is {ratio:.3g} of the prior ({node.prior_text})")
        if node.thermal not in COOL:
            lines.append(f"{node.name} reports thermal pressure '{node.thermal}': expect less than its measured speed")
    return lines


def _claimed_split(planned: Sequence[NodePlan], work: WorkFacts) -> list[str]:
    """What the user's 65.5 / 34.5 would do at the speeds of this plan, where both of the user's machines take part."""
    fast = next((node for node in planned if node.chip.strip() == M4_MAX.chip), None)
    large = next((node for node in planned if node.chip.strip() == M3_ULTRA.chip), None)
    if fast is None or large is None:
        return []
    pair = fast.cost_per_second + large.cost_per_second
    claimed = max(
        work.cost * CLAIMED_SPLIT[0] / fast.cost_per_second, work.cost * CLAIMED_SPLIT[1] / large.cost_per_second
    )
    alone = work.cost / fast.cost_per_second
    verdict = "slower than" if claimed > alone else "against"
    right = f"{fast.cost_per_second / pair:.1%} / {large.cost_per_second / pair:.1%}"
    return [
        CONTRADICTION,
        f"at this plan's speeds the right split of the pair is {right} ({duration(work.cost / pair)}); 65.5 / 34.5 "
        f"would take {duration(claimed)}, {verdict} {duration(alone)} on {fast.name} alone",
    ]


def _other_splits(planned: Sequence[NodePlan], work: WorkFacts) -> list[str]:
    if len(planned) < 2:
        return []
    fastest = max(planned, key=lambda node: node.cost_per_second)
    proportional = work.cost / sum(node.cost_per_second for node in planned)
    equal = work.cost / len(planned) / min(node.cost_per_second for node in planned)
    return [
        f"proportional shares take {duration(proportional)}; equal shares would take {duration(equal)}, {fastest.name} "
        f"alone {duration(work.cost / fastest.cost_per_second)}"
    ]


def duration(seconds: float) -> str:
    """ "14 s", "3 min 20 s", "2 h 05 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
