"""The `why` lines of a training plan: each a complete sentence that can be checked against the numbers beside it.

Decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from realign_cluster.domain.memory import ModelFacts, weights_text
from realign_cluster.domain.plan_facts import NodeFacts
from realign_cluster.domain.plan_reasons import COOL, duration
from realign_cluster.domain.prior import CONTRADICTION, M3_ULTRA, M4_MAX, choose_machine
from realign_cluster.domain.train_candidates import Candidate, Facts, Out
from realign_cluster.domain.train_shapes import FLOAT32_BYTES, compute_bytes
from realign_cluster.domain.training import ParallelMode

CALLED: dict[ParallelMode, str] = {
    "single": "alone",
    "data": "replicas",
    "tensor": "tensor parallel",
    "pipeline": "pipeline",
    "sharded": "fully sharded",
}


def reasons(facts: Facts, chosen: Candidate, ways: Sequence[Candidate | Out], asked: str) -> tuple[str, ...]:
    """What is trained, why this way, what the others would take, what is measured and what assumed."""
    model, settings = facts.model, facts.work.settings
    trains = f"{facts.trained_parameters:,} of {model.parameters.total:,} parameters are trained ({settings.fine_tune})"
    lines = [
        f"{model.name}: {weights_text(model)}, counted from {model.parameters.source}",
        f"{trains}; a step has {settings.global_batch} rows, {facts.work.step_tokens:,.0f} tokens, worth "
        f"{facts.passes.whole:.2f} forward passes",
        _chosen(chosen, ways, asked),
        *(f"instead, {alternative_text(way, chosen)}" for way in ways if way is not chosen),
        *_matrix(facts, chosen),
        *_speeds(facts, chosen.nodes),
    ]
    if chosen.network is not None:
        lines.append(f"ranks are joined by {chosen.network.source}")
        if chosen.network.backend == "mpi":
            lines.append("over mpi the loss of a rank ends the run: recovery is promised for ring and jaccl only")
    if facts.work.too_long:
        lines.append(_too_long(facts))
    if facts.work.estimated_from:
        lines.append(f"rows and lengths are estimated from {facts.work.estimated_from}")
    return tuple(lines)


def _too_long(facts: Facts) -> str:
    settings, count = facts.work.settings, facts.work.too_long
    what = (
        f"{count:,} sequence{'s' if count > 1 else ''} of those looked at: longer than {settings.max_tokens:,} tokens"
    )
    if settings.truncate == "refuse":
        return f"{what}; the run would not begin: a larger --max-tokens, or --truncate left or right"
    return f"{what}, cut on the {settings.truncate}"


def cautions(facts: Facts, chosen: Candidate) -> tuple[str, ...]:
    """CPUs hardly have 16-bit arithmetic: a training that only follows its model's dtype may not know it."""
    model, settings = facts.model, facts.work.settings
    names = [node.name for node in chosen.nodes if node.device.backend == "cpu"]
    if not names or settings.dtype != "auto" or compute_bytes(model, settings) == FLOAT32_BYTES:
        return ()
    what = "in 16 bits" if model.dtype.endswith("-bit") else f"in {model.dtype}"
    return (
        f"{', '.join(names)} would compute {what}, as the model is, and a CPU takes several times as long for it as "
        "in float32: --dtype float32 (dtype in a file), if the memory is there",
    )


def called(parallel: ParallelMode, nodes: Sequence[NodeFacts]) -> str:
    """ "m4max alone", "pipeline over m4max, m3ultra"."""
    names = ", ".join(node.name for node in nodes)
    return f"{names} alone" if parallel == "single" else f"{CALLED[parallel]} over {names}"


def seconds(count: float) -> str:
    return f"{count * 1e3:.3g} ms" if count < 1 else duration(count)


def alternative_text(way: Candidate | Out, chosen: Candidate | None) -> str:
    """What another way would take, against the chosen one, or why it is out."""
    name = called(way.parallel, way.nodes)
    if isinstance(way, Out):
        return f"{name}: {way.reason}"
    text = f"{name}: {seconds(way.step_seconds)} a step"
    if way.network is not None:
        text += f" ({seconds(way.compute_seconds)} of computing, {seconds(way.communication_seconds)} of exchange)"
    if chosen is not None:
        text += f", {way.step_seconds / chosen.step_seconds:.3g} x as long"
    return text


def blocks_text(chosen: Candidate) -> str:
    """ "76 + 50 blocks"."""
    return " + ".join(str(end - start) for start, end in chosen.blocks) + " blocks"


def _chosen(chosen: Candidate, ways: Sequence[Candidate | Out], asked: str) -> str:
    parts = [f"{seconds(chosen.compute_seconds)} of computing"]
    if chosen.network is not None:
        parts.append(f"{seconds(chosen.communication_seconds)} of exchange ({chosen.note})")
    parts.append(f"{seconds(chosen.update_seconds)} of update")
    split = f" ({blocks_text(chosen)}, as memory and speed allow)" if chosen.blocks else ""
    shortest = min((way for way in ways if isinstance(way, Candidate)), key=lambda way: way.step_seconds)
    why = "as asked" if asked != "auto" else "the shortest step of all that fit"
    if asked == "auto" and shortest.step_seconds < chosen.step_seconds:
        spared = 1 - shortest.step_seconds / chosen.step_seconds
        why = f"simpler than {called(shortest.parallel, shortest.nodes)}, which would be only {spared:.1%} faster"
    name = called(chosen.parallel, chosen.nodes)
    return f"{name}{split}, {why}: {seconds(chosen.step_seconds)} = {' + '.join(parts)}"


def _matrix(facts: Facts, chosen: Candidate) -> list[str]:
    """The user's decision matrix, where it speaks of machines that are here, and what came before it."""
    chips = {node.device.chip.strip() for node in chosen.nodes}
    every = {name: speed for name, speed in facts.speeds.items() if speed.source != "prior"}
    if not chips & {M4_MAX.chip, M3_ULTRA.chip}:
        return []
    line = choose_machine(facts.model, _whole(facts.model, chosen))
    if every:
        return [f"{line}; measurements go first: {', '.join(sorted(every))}"]
    lines = [f"{line}; nothing is measured yet, so the speeds are the user's figures"]
    return [*lines, CONTRADICTION] if {M4_MAX.chip, M3_ULTRA.chip} <= chips else lines


def _whole(model: ModelFacts, chosen: Candidate) -> int:
    """What one machine would have to hold."""
    return max(model.weights_bytes, max(need.total for need in chosen.needs))


def _speeds(facts: Facts, nodes: Sequence[NodeFacts]) -> list[str]:
    lines: list[str] = []
    named = {
        source: ", ".join(node.name for node in nodes if facts.speeds[node.name].source == source)
        for source in ("measured", "stale", "prior")
    }
    if named["measured"]:
        lines.append(f"measured: {named['measured']}; a run corrects it from its own step times")
    if named["stale"]:
        lines.append(f"{named['stale']}: the last measurement no longer holds; it is used as a guess")
    if named["prior"]:
        lines.append(
            f"not measured with this model: {named['prior']}; `realign calibrate` measures, and a run moves its shares "
            "by its own step times"
        )
    lines += [
        f"{node.name} reports thermal pressure '{node.thermal}': expect less than its measured speed"
        for node in nodes
        if node.thermal not in COOL
    ]
    return lines
