"""What each stage does: which jobs, in which order, and what it ends with. Workflows share what is alike."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from realign_cluster.domain.gate import Measurement, paired_with
from realign_cluster.domain.judge_error import VerifierLabels
from realign_cluster.domain.training import TrainSettings
from realign_cluster.workflows import sources, training_data, verify
from realign_cluster.workflows.answers import answer_pairs
from realign_cluster.workflows.checking import check_examples
from realign_cluster.workflows.cleaning import Cleaned, cleaned, cleaned_with_general, held_out
from realign_cluster.workflows.derive import derive
from realign_cluster.workflows.evaluating import Evaluation, divergence, evaluate
from realign_cluster.workflows.jobs import ArtifactId, Ask, JobResult, Look, ModelRef, Score, Train
from realign_cluster.workflows.measured import by_metric
from realign_cluster.workflows.stage import Context, Outcome
from realign_cluster.workflows.verify import verdicts_on, verifier_fingerprint

Stage = Generator[Ask, JobResult, Outcome]
RECORDED = (
    "citation_precision",
    "citation_recall",
    "attribution_coverage",
    "factuality",
    "hallucination_rate",
    "over_abstention",
)


def preparation(context: Context) -> Stage:
    """Stage 1: a model that answers, trained here or taken, and the baseline of everything that is compared later."""
    model, facts = context.state.model, dict[str, Any]()
    settings = context.config.training.preparation
    made: dict[str, ArtifactId] = {}
    if settings is not None:
        if "preparation" not in context.state.data:
            return Outcome(failed="there is a [training.preparation] and no [data] preparation")
        clean = yield from cleaned_with_general(context, "preparation")
        trained = yield from _trained(context, "preparation", clean, model, settings)
        made, facts = clean.artifacts, _facts_of(trained, clean)
        if trained.failed:
            return Outcome(artifacts=made, facts=facts, failed=trained.failed)
        model = trained.model()
    found = yield from evaluate(context, model, "items", title="baseline", perplexity=True)
    recorded = [name for name in RECORDED if _is_recorded(found.measurements.get(name))]
    quality = yield from verify.measured_on_labels(context, "supported", "baseline")
    return Outcome(
        model=model,
        artifacts={**made, **{f"baseline {name}": each for name, each in found.artifacts.items()}},
        measurements=found.measurements,
        facts={**facts, "baseline_recorded": len(recorded) / len(RECORDED)},
        labels=labels_of(quality.value),
        minutes_per_item=found.minutes_per_item,
    )


def source_data(context: Context) -> Stage:
    """Stage 2 of source attribution: the sources indexed, retrieval measured, citation examples cleaned."""
    data = context.state.data
    retriever = sources.retriever_of(context)
    built = yield derive(
        sources.source_index, "index of the sources", inputs={"sources": data["sources"]}, retriever=retriever
    )
    index = built.outputs["index"]
    searched = yield derive(
        sources.retrieval_measurements,
        "retrieval",
        inputs={"queries": data["queries"], "index": index},
        most=sources.DEPTH,
        retriever=retriever,
    )
    rows = yield Look(rows=searched.outputs["measurements"])
    spread = yield derive(
        sources.spread_of_sources, "types of sources", inputs={"sources": data["sources"], "practice": data["practice"]}
    )
    clean = yield from cleaned(context, "citation")
    checks = yield from check_examples(context, index)
    return Outcome(
        artifacts={
            "index": index,
            "rankings": searched.outputs["rankings"],
            **clean.artifacts,
            **checks.artifacts,
        },
        measurements={**by_metric(rows.value), **checks.measurements},
        facts={**spread.value, "retriever": retriever, "cleaned": clean.counts},
    )


def factual_data(context: Context) -> Stage:
    """Stage 2 of anti-hallucination: the collected pairs checked against their sources, citation examples cleaned."""
    data = context.state.data
    asked = yield derive(sources.pairs_of_facts, "collected pairs", inputs={"pairs": data["pairs"]})
    verdicts = yield from verdicts_on(context, asked.outputs["pairs"], "collected pairs")
    measured = yield derive(
        sources.pairs_supported,
        "collected pairs: supported",
        inputs={"pairs": data["pairs"], "verdicts": verdicts},
        supported=context.config.verifier.supported,
        verifier=verifier_fingerprint(context),
    )
    rows = yield Look(rows=measured.outputs["measurements"])
    clean = yield from cleaned(context, "citation")
    checks = yield from check_examples(context)
    return Outcome(
        artifacts={
            "unsupported pairs": measured.outputs["unsupported"],
            **clean.artifacts,
            **checks.artifacts,
        },
        measurements={**by_metric(rows.value), **checks.measurements},
        facts={"cleaned": clean.counts},
    )


def citation_training(context: Context) -> Stage:
    """Stage 3: trained to cite. Another attempt has more steps: more and other examples are seen."""
    settings = context.config.training.citation
    settings = settings.model_copy(update={"steps": round(settings.steps * (1 + 0.5 * context.attempt))})
    clean = yield from cleaned_with_general(context, "citation")
    trained = yield from _trained(context, "citation", clean, context.state.model, settings)
    facts = _facts_of(trained, clean)
    if trained.failed:
        return Outcome(artifacts=clean.artifacts, facts=facts, failed=trained.failed)
    found = yield from evaluate(context, trained.model(), "items", title="after citation training")
    return _outcome(found, trained.model(), facts, clean.artifacts)


def verification(context: Context) -> Stage:
    """Stage 4: what the model attributes, and how far the verifier itself can be trusted."""
    return (yield from _verification(context, positive="supported"))


def detection(context: Context) -> Stage:
    """Stage 4 of anti-hallucination: what the model makes up, and how often the detector cries wolf."""
    return (yield from _verification(context, positive="hallucinated"))


def _verification(context: Context, positive: str) -> Stage:
    found = yield from evaluate(context, context.state.model, "items", title="verification")
    quality = yield from verify.measured_on_labels(context, positive, "verification")
    rows = yield Look(rows=quality.outputs["measurements"])
    outcome = _outcome(found, None, {"verifier": quality.value})
    return replace(
        outcome,
        measurements={**outcome.measurements, **by_metric(rows.value)},
        artifacts={**outcome.artifacts, "verifier measurements": quality.outputs["measurements"]},
    )


def optimisation(context: Context) -> Stage:
    """Stage 5: preferences between the model's own answers. Another attempt halves the rate and doubles beta."""
    config, state = context.config, context.state
    clean = yield from cleaned(context, "practice")
    if clean.none_left:
        return Outcome(artifacts=clean.artifacts, facts={"cleaned": clean.counts}, failed=clean.none_left)
    prompts = yield derive(
        sources.practice_prompts,
        "practice questions",
        inputs=clean.rows,
        most=config.preference.prompts,
        seed=context.seed("practice"),
    )
    sampled = yield Score(
        title="samples to choose from",
        rows=prompts.outputs["prompts"],
        model=state.model,
        kinds=("generate",),
        sampling=_sampling(context),
        chat=config.model.chat,
        max_tokens=config.model.max_tokens,
    )
    generated = sampled.outputs["rows"]
    asked = yield derive(answer_pairs, "samples: what is claimed", inputs={"generated": generated})
    verdicts = yield from verdicts_on(context, asked.outputs["pairs"], "samples")
    made = yield derive(
        training_data.preference_rows,
        "preference pairs",
        inputs={"generated": generated, "verdicts": verdicts, **held_out(context)},
        supported=config.verifier.supported,
        verifier=verifier_fingerprint(context),
        abstention=config.preference.abstention,
        gap=config.preference.gap,
        least_pairs=config.preference.least_pairs,
        unseen_words=config.preference.unseen_words,
        seed=context.seed("pairs"),
    )
    failed = [each for each in made.value["checks"] if each["status"] == "failed"]
    facts: dict[str, Any] = {"pairs": made.value, "cleaned": clean.counts}
    artifacts = {**clean.artifacts, "pairs": made.outputs["pairs"]}
    if failed:
        return Outcome(
            artifacts=artifacts, facts=facts, failed="; ".join(f"{each['name']}: {each['reason']}" for each in failed)
        )
    settings = softened(config.training.preference, context.attempt)
    trained = yield Train(
        title="preference training",
        model=state.model,
        data=made.outputs["pairs"],
        benchmarks=checkpoints(context, settings),
        settings=settings.model_copy(update={"seed": context.seed("preference")}),
    )
    if trained.failed:
        return Outcome(artifacts=artifacts, facts=facts, failed=f"the training failed: {trained.failed}")
    model = trained.model()
    found = yield from evaluate(context, model, "items", title="after optimisation")
    kl = yield from divergence(context, model, state.model, title="divergence")
    outcome = _outcome(found, model, {**facts, "training": trained.value}, artifacts)
    measurements = {
        **outcome.measurements,
        "kl": kl,
        **_change(context, outcome.measurements, "supported_or_silent", "factuality_change"),
        **_change(context, outcome.measurements, "citation_recall", "citation_recall_change"),
        **_change(context, outcome.measurements, "citation_precision", "citation_precision_change"),
        **_change(context, outcome.measurements, "coverage_by_answer", "coverage_change"),
    }
    return replace(outcome, measurements=measurements)


def evaluation(context: Context) -> Stage:
    """Stage 7: everything at once, on questions that were sealed until now."""
    found = yield from evaluate(context, context.state.model, "sealed", title="final evaluation", consistency=True)
    reference = entered_optimisation(context)
    kl = yield from divergence(context, context.state.model, reference, title="divergence")
    drift = yield from divergence(
        context, context.state.model, context.state.models["preparation"], title="drift from stage 1", name="drift"
    )
    outcome = _outcome(found, None, {})
    return replace(outcome, measurements={**outcome.measurements, "kl": kl, "drift": drift})


# --- shared ---


def labels_of(report: Mapping[str, Any]) -> VerifierLabels:
    """Of a verifier's report, with "supported" as what is counted."""
    sensitivity, specificity = report["sensitivity"], report["specificity"]
    return VerifierLabels(
        verifier=report["verifier"],
        true_positives=sensitivity["count"],
        false_negatives=sensitivity["n"] - sensitivity["count"],
        true_negatives=specificity["count"],
        false_positives=specificity["n"] - specificity["count"],
    )


def _is_recorded(measurement: Measurement | None) -> bool:
    """Undefined on so many answers is a baseline too: of a model that does not cite yet, how precisely it does. Of no
    answer at all there is none.
    """
    return measurement is not None and bool(measurement.items or measurement.undefined)


def entered_optimisation(context: Context) -> ModelRef:
    """The model that stage 5 began with: the reference of the divergence through all rounds of stage 6."""
    models = context.state.models
    return models.get("citation") or models.get("preparation") or context.state.model


def checkpoints(context: Context, settings: TrainSettings) -> dict[str, ArtifactId]:
    """The capability benchmarks that ranks can score, those that are files, by name, for a training that stops every so
    many steps to look at them.
    """
    if not settings.evaluation.every:
        return {}
    return {name: context.state.data[f"benchmark {name}"] for name in context.config.benchmark_files}


def validation(context: Context, settings: TrainSettings) -> ArtifactId | None:
    """The rows that an sft is validated on while it goes on, if it is."""
    return context.state.data["valid"] if settings.evaluation.every or settings.evaluation.patience else None


def softened(settings: TrainSettings, attempt: int) -> TrainSettings:
    """Half the rate and twice the KL penalty for each attempt before."""
    optimizer = settings.optimizer.model_copy(update={"learning_rate": settings.optimizer.learning_rate / 2**attempt})
    loss = settings.loss.model_copy(update={"beta": settings.loss.beta * 2**attempt})
    return settings.model_copy(update={"optimizer": optimizer, "loss": loss})


def _trained(
    context: Context, name: str, clean: Cleaned, model: ModelRef, settings: TrainSettings
) -> Generator[Ask, JobResult, JobResult]:
    """Trained on the set `name` mixed with the general data; `failed` says why not, where no row is left of one too."""
    if clean.none_left:
        return JobResult(failed=clean.none_left)
    inputs = {"task": clean.rows[name]} | ({"general": clean.rows["general"]} if "general" in clean.rows else {})
    mixed = yield derive(
        training_data.mixed_rows,
        f"{name}: mix",
        inputs=inputs,
        general=context.config.mix.general,
        seed=context.seed(name, "mix"),
    )
    trained = yield Train(
        title=f"{name} training",
        model=model,
        data=mixed.outputs["rows"],
        valid=validation(context, settings),
        benchmarks=checkpoints(context, settings),
        settings=settings.model_copy(update={"seed": context.seed(name)}),
    )
    value = {**(trained.value or {}), "mix": mixed.value}
    return replace(trained, value=value, failed=trained.failed and f"the training failed: {trained.failed}")


def _facts_of(trained: JobResult, clean: Cleaned) -> dict[str, Any]:
    return {"training": trained.value or {}, "cleaned": clean.counts}


def _sampling(context: Context) -> Any:
    from realign_cluster.workflows.evaluating import greedy

    wanted = context.config.preference
    return greedy(context).model_copy(
        update={"temperature": wanted.temperature, "samples": wanted.samples, "seed": context.seed("samples")}
    )


def _outcome(
    found: Evaluation,
    model: ModelRef | None,
    facts: Mapping[str, Any],
    made: Mapping[str, ArtifactId] = MappingProxyType({}),
) -> Outcome:
    """`made`: artifacts besides those of the evaluation."""
    return Outcome(
        model=model,
        artifacts={**made, **found.artifacts},
        measurements=found.measurements,
        benchmarks=found.benchmarks,
        facts=facts,
        minutes_per_item=found.minutes_per_item,
    )


def _change(context: Context, now: Mapping[str, Measurement], metric: str, name: str) -> dict[str, Measurement]:
    """The paired change of `metric` from the stage before that measured it on the same items."""
    for measured in reversed(list(context.state.measured.values())):
        before = measured.get(metric)
        if before is not None and before.dataset == now[metric].dataset and before.verifier == now[metric].verifier:
            return {name: replace(paired_with(now[metric], before), metric=name)}
    return {}
