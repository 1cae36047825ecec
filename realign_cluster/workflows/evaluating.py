"""What stages measure of a model: its answers, its capabilities, its perplexity, its distance from another model.

Each is a generator of jobs that ends with measurements. One pass of generation serves answers and benchmarks alike.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

from realign_cluster.domain.gate import Measurement
from realign_cluster.domain.job import Sampling
from realign_cluster.domain.retention import BenchmarkPair
from realign_cluster.workflows import answers, benchmarks, distance
from realign_cluster.workflows.derive import derive
from realign_cluster.workflows.harness import harness_benchmarks
from realign_cluster.workflows.jobs import ArtifactId, Ask, JobResult, Look, ModelRef, Score
from realign_cluster.workflows.measured import by_metric
from realign_cluster.workflows.stage import Context
from realign_cluster.workflows.verify import verdicts_on, verifier_fingerprint

CONSISTENCY_TEMPERATURE = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """`artifacts`: "answers", "generated", "benchmarks", ... by name. `benchmarks`: against stage 1's, where known."""

    measurements: Mapping[str, Measurement]
    artifacts: Mapping[str, ArtifactId]
    benchmarks: Mapping[str, BenchmarkPair]
    minutes_per_item: float


def evaluate(
    context: Context, model: ModelRef, items: str, *, title: str, perplexity: bool = False, consistency: bool = False
) -> Generator[Ask, JobResult, Evaluation]:
    """The model's answers to the data set `items`, and what it still can do."""
    data = context.state.data
    sets = {name: each for name, each in data.items() if name.startswith("benchmark ")}
    asked = yield derive(benchmarks.evaluation_prompts, f"{title}: prompts", inputs={"items": data[items], **sets})
    generated = yield Score(
        title=f"{title}: answers",
        rows=asked.outputs["prompts"],
        model=model,
        kinds=("generate",),
        sampling=greedy(context),
        chat=context.config.model.chat,
        max_tokens=context.config.model.max_tokens,
    )
    parted = yield derive(
        benchmarks.part_generated, f"{title}: parting", inputs={"generated": generated.outputs["rows"]}
    )
    measured, found = yield from _answers(context, model, parted.outputs["items"], items, title, consistency)
    likely = yield derive(
        benchmarks.likelihood_rows, f"{title}: choices", inputs=sets | ({"valid": data["valid"]} if perplexity else {})
    )
    inputs = {"answered": parted.outputs["benchmarks"], **sets}
    if likely.value["rows"]:
        scored = yield Score(
            title=f"{title}: likelihoods",
            rows=likely.outputs["rows"],
            model=model,
            kinds=("loglik",),
            chat=context.config.model.chat,
            max_tokens=context.config.model.max_tokens,
        )
        inputs["scored"] = scored.outputs["rows"]
    of_tasks = yield from harness_benchmarks(context, model, title=title)
    if of_tasks is not None:
        inputs["harness"] = of_tasks
    scores = yield derive(benchmarks.benchmark_scores, f"{title}: benchmarks", inputs=inputs)
    rows = yield Look(rows=scores.outputs["measurements"])
    measured |= by_metric(rows.value)
    artifacts = {**found, "benchmarks": scores.outputs["scores"]}
    against = yield from _against_baseline(context, scores.outputs["scores"])
    return Evaluation(
        measurements=measured,
        artifacts=artifacts,
        benchmarks=against,
        minutes_per_item=generated.value["seconds"] / 60 / max(1, generated.value["rows"]),
    )


def _answers(
    context: Context, model: ModelRef, generated: ArtifactId, dataset: str, title: str, consistency: bool
) -> Generator[Ask, JobResult, tuple[dict[str, Measurement], dict[str, ArtifactId]]]:
    asked = yield derive(answers.answer_pairs, f"{title}: what is claimed", inputs={"generated": generated})
    verdicts = yield from verdicts_on(context, asked.outputs["pairs"], title)
    inputs = {"generated": generated, "verdicts": verdicts}
    if consistency:
        again = yield Score(
            title=f"{title}: a second sample",
            rows=context.state.data[dataset],
            model=model,
            kinds=("generate",),
            sampling=greedy(context).model_copy(
                update={"temperature": CONSISTENCY_TEMPERATURE, "seed": context.config.seed + 1}
            ),
            chat=context.config.model.chat,
            max_tokens=context.config.model.max_tokens,
        )
        inputs["again"] = again.outputs["rows"]
    measured = yield derive(
        answers.answer_measurements,
        f"{title}: measurements",
        inputs=inputs,
        verifier=verifier_fingerprint(context),
        dataset=dataset,
        supported=context.config.verifier.supported,
        format=context.config.citations.format,
    )
    rows = yield Look(rows=measured.outputs["measurements"])
    artifacts = {
        "answers": measured.outputs["answers"],
        "measurements": measured.outputs["measurements"],
        "generated": generated,
        "verdicts": verdicts,
    }
    return by_metric(rows.value), artifacts


def divergence(
    context: Context, model: ModelRef, reference: ModelRef, *, title: str, name: str = "kl"
) -> Generator[Ask, JobResult, Measurement]:
    """KL(model || reference) on completions sampled from the model, of a fixed set of task and general prompts."""
    data = context.state.data
    inputs = {"practice": data["practice"]} | ({"general": data["general"]} if "general" in data else {})
    probes = yield derive(
        distance.probe_prompts, f"{title}: prompts", inputs=inputs, most=context.config.preference.probe_prompts
    )
    sampled = yield Score(
        title=f"{title}: samples",
        rows=probes.outputs["prompts"],
        model=model,
        kinds=("generate",),
        sampling=greedy(context).model_copy(update={"temperature": 1.0, "seed": context.config.seed}),
        chat=context.config.model.chat,
        max_tokens=context.config.model.max_tokens,
    )
    completions = yield derive(
        distance.completions, f"{title}: completions", inputs={"sampled": sampled.outputs["rows"]}
    )
    scored = yield Score(
        title=f"{title}: divergence",
        rows=completions.outputs["rows"],
        model=model,
        reference=reference,
        kinds=("kl",),
        chat=context.config.model.chat,
        max_tokens=context.config.model.max_tokens,
    )
    measured = yield derive(distance.divergences, f"{title}: sum", inputs={"scored": scored.outputs["rows"]}, name=name)
    rows = yield Look(rows=measured.outputs["measurements"])
    return by_metric(rows.value)[name]


def greedy(context: Context) -> Sampling:
    """The likeliest token each time."""
    generation = context.config.generation
    return Sampling(temperature=0.0, max_new_tokens=generation.max_new_tokens, stop=generation.stop)


def _against_baseline(context: Context, scores: ArtifactId) -> Generator[Ask, JobResult, dict[str, BenchmarkPair]]:
    """Pairs of the same items, before and after; of nothing where stage 1 is only being measured."""
    before_id = context.state.artifacts.get("baseline benchmarks")
    if before_id is None:
        return {}
    before = yield Look(rows=before_id)
    after = yield Look(rows=scores)
    return pairs_of(before.value, after.value)


def pairs_of(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> dict[str, BenchmarkPair]:
    """From rows {"benchmark", "item", "score", "chance"}; items that only one side has are left out."""
    old = {(row["benchmark"], row["item"]): row for row in before}
    pairs: dict[str, list[tuple[str, float, float, float]]] = {}
    for row in after:
        if (known := old.get((row["benchmark"], row["item"]))) is not None:
            pairs.setdefault(row["benchmark"], []).append((row["item"], known["score"], row["score"], row["chance"]))
    return {
        name: BenchmarkPair(
            benchmark=name,
            items=tuple(each[0] for each in rows),
            before=tuple(each[1] for each in rows),
            after=tuple(each[2] for each in rows),
            chance=sum(each[3] for each in rows) / len(rows),
        )
        for name, rows in pairs.items()
    }
