"""A training plan that says no: with the sum that does not work out, and with changes under which it would.

Every change that is offered was planned through: it is no rule of thumb.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from realign_cluster.domain.memory import GIB, MemoryLimit, bits_per_weight, gib, quantised, weights_text
from realign_cluster.domain.plan import LeftOut
from realign_cluster.domain.plan_facts import NodeFacts
from realign_cluster.domain.prior import choose_machine
from realign_cluster.domain.train_candidates import Candidate, Facts, Out
from realign_cluster.domain.train_memory import RankPart
from realign_cluster.domain.train_plan import Alternative, TrainPlan
from realign_cluster.domain.train_reasons import alternative_text, blocks_text, called
from realign_cluster.domain.training import TrainSettings

SYSTEM_BYTES = 8 * GIB  # what a Mac needs for itself when Metal may wire the rest

Explore = Callable[[Facts, Any], Candidate | None]  # the way that is taken under these facts, asked for or "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    """`text` is what a user would do about it."""

    text: str
    facts: Facts


def refuse(
    facts: Facts,
    nodes: Sequence[NodeFacts],
    ways: Sequence[Candidate | Out],
    parallel: str,
    left_out: tuple[LeftOut, ...],
    explore: Explore,
) -> TrainPlan:
    """None of `ways` is open. `parallel` is what was asked for."""
    if not nodes:
        refusal = "no node can take part"
        fixes = ["start them with `realign-launch --hostfile FILE up` and look at the reasons of those left out"]
    elif facts.quantised_full:
        refusal = f"{facts.model.name} has weights of {facts.model.dtype}, which have no gradients: full is out"
        fixes = ["--fine-tune lora", "the model without quantisation"]
    else:
        refusal = _refusal(facts, nodes, ways, parallel)
        fixes = [*_own_fixes(ways, parallel), *_ways_out(facts, nodes, parallel, explore)] or ["use a smaller model"]
    work, model = facts.work, facts.model
    settings = work.settings
    return TrainPlan(
        approach="refused",
        backend="ring",
        model=model.name,
        model_hash=model.model_hash,
        dtype=model.dtype,
        parameters=model.parameters.total,
        weights_bytes=model.weights_bytes,
        method=settings.method,
        fine_tune=settings.fine_tune,
        trained_parameters=facts.trained_parameters,
        steps=settings.steps,
        global_batch=settings.global_batch,
        rows=work.rows,
        step_tokens=work.step_tokens,
        left_out=left_out,
        alternatives=tuple(
            Alternative(
                parallel=way.parallel,
                nodes=tuple(node.name for node in way.nodes),
                step_seconds=None,
                text=alternative_text(way, None),
            )
            for way in ways
        ),
        why=(choose_machine(model, _needed(facts, nodes)), *fixes) if nodes else (),
        refusal=refusal,
        fix="; or ".join(fixes),
    )


def _needed(facts: Facts, nodes: Sequence[NodeFacts]) -> int:
    return facts.need(nodes[0], float(facts.work.settings.global_batch), RankPart()).total


def _refusal(facts: Facts, nodes: Sequence[NodeFacts], ways: Sequence[Candidate | Out], parallel: str) -> str:
    reasons = [way.reason for way in ways if isinstance(way, Out)]
    if parallel not in ("auto", "single"):
        return f"--parallel {parallel}: {reasons[-1]}"
    needed, held = _needed(facts, nodes), sum(facts.limits[node.name].bytes for node in nodes)
    ram = " + ".join(f"{node.memory_bytes / GIB:.0f}" for node in nodes)
    text = f"training {facts.model.name} needs {gib(needed)} on one node ({weights_text(facts.model)})"
    if parallel == "single":
        return f"{text}: {'; '.join(reasons)}"
    if needed > held:
        short = f"{gib(needed - held)} too little even for a model in parts"
        return f"{text}; {ram} GiB of memory hold {gib(held)} together, {short}"
    parts = [f"{called(way.parallel, way.nodes)}: {way.reason}" for way in ways if isinstance(way, Out)]
    return f"{text}; {ram} GiB of memory hold {gib(held)} together, but no way works: {'; '.join(parts)}"


def _own_fixes(ways: Sequence[Candidate | Out], parallel: str) -> list[str]:
    if parallel == "auto":
        return []
    return list(dict.fromkeys(way.fix for way in ways if isinstance(way, Out) and way.fix))


def _ways_out(facts: Facts, nodes: Sequence[NodeFacts], parallel: str, explore: Explore) -> Iterator[str]:
    if parallel != "auto" and (best := explore(facts, "auto")) is not None:
        yield f"--parallel auto: {_where(best)}"
        return
    for group in _changes(facts, nodes):
        for change in group:
            if (best := explore(change.facts, parallel)) is not None:
                yield f"{change.text}: {_where(best)}"
                break
    largest = max(nodes, key=lambda node: facts.limits[node.name].bytes)
    each, held = facts.limits[largest.name].bytes, sum(facts.limits[node.name].bytes for node in nodes)
    if (missing := _needed(facts, nodes) - held) > 0 and each > 0:
        yield (f"more nodes: {-(-missing // each)} more like {largest.name} ({gib(each)} each) would hold it in parts")


def _where(best: Candidate) -> str:
    split = f" ({blocks_text(best)})" if best.blocks else ""
    return f"fits, {called(best.parallel, best.nodes)}{split}"


def _changes(facts: Facts, nodes: Sequence[NodeFacts]) -> Iterator[list[_Change]]:
    """Groups, of which the first change that helps is offered: the mildest first, fewer bits last."""
    settings = facts.work.settings
    least = facts.work.sequences_per_row * facts.work.padded_longest
    small = {"micro_batch_tokens": least} if settings.micro_batch_tokens > least else {}
    again = {} if settings.grad_checkpoint else {"grad_checkpoint": True}
    frugal = [update for update in (small, again, small | again) if update]
    yield [_change(facts, update) for update in frugal]
    yield list(_more_wired(facts, nodes))
    if settings.fine_tune == "full":
        yield [_change(facts, {"fine_tune": "lora"} | update) for update in ({}, *frugal)]
        return
    for bits in (8, 4):
        if bits < bits_per_weight(facts.model.dtype) - 1:
            yield [_quantised(facts, bits, update) for update in ({}, *frugal)]


def _change(facts: Facts, update: dict[str, Any]) -> _Change:
    settings: TrainSettings = facts.work.settings.model_copy(update=update)
    options = " ".join(
        f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}") for name, value in update.items()
    )
    return _Change(text=options, facts=replace(facts, work=replace(facts.work, settings=settings)))


def _quantised(facts: Facts, bits: int, update: dict[str, Any]) -> _Change:
    model = quantised(facts.model, bits)
    config = {**facts.config, "quantization": {"group_size": 64, "bits": bits}}
    changed = replace(_change(facts, update).facts, model=model, config=config)
    command = f"mlx_lm.convert --hf-path {facts.model.name} -q --q-bits {bits}"
    also = f" and {_change(facts, update).text}" if update else ""
    size = f"{model.weights_bytes / 1e9:.1f} GB ({gib(model.weights_bytes)})"
    return _Change(text=f"{bits}-bit weights, {size} ({command}){also}", facts=changed)


def _more_wired(facts: Facts, nodes: Sequence[NodeFacts]) -> Iterator[_Change]:
    """Metal wires three quarters of the memory by default; the rest can be had until the next start."""
    limits = dict(facts.limits)
    commands = []
    for node in nodes:
        raised = node.memory_bytes - SYSTEM_BYTES
        if node.device.backend == "metal" and node.memory_limit_bytes is None and raised > limits[node.name].bytes:
            limits[node.name] = MemoryLimit(bytes=raised, source="iogpu.wired_limit_mb")
            commands.append(f"{node.name}: sudo sysctl iogpu.wired_limit_mb={raised // 2**20}")
    if commands:
        yield _Change(text=", ".join(commands), facts=replace(facts, limits=limits))
