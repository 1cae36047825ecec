"""The two workflows, each a table of seven stages. A third one is a table like these, and its special bodies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.suggest import did_you_mean
from realign_cluster.workflows import bodies
from realign_cluster.workflows import thresholds as gate
from realign_cluster.workflows.config import WorkflowConfig
from realign_cluster.workflows.iterating import iteration
from realign_cluster.workflows.stage import Stage, StageGate, Workflow


def source_attribution(config: WorkflowConfig) -> Workflow:
    most_claims, new_tokens = config.generation.most_claims, config.generation.max_new_tokens
    retained = tuple(gate.retention(name) for name in config.benchmarks)
    guards = (*(gate.guard(each) for each in retained), gate.guard(gate.over_abstention()))
    accuracy, coverage, format = gate.citation_accuracy(), gate.coverage(most_claims), gate.one_format()
    kl = gate.divergence(new_tokens)
    by_words = config.retrieval.kind == "bm25"  # which alone has other parameters to try
    return Workflow(
        name="source-attribution",
        title="Source attribution",
        primary="citation_recall",
        stages=(
            _preparation(config),
            Stage(
                number=2,
                name="sources",
                title="Source data",
                body=bodies.source_data,
                gates=(
                    gate.retrieval_precision(),
                    gate.counted("largest_share_of_a_type", "largest share of a source type", "at most", 0.60),
                    gate.counted("types_missing", "source types missing of three", "at most", 0.0),
                ),
                remedy="the index is built again with other parameters"
                if by_words
                else "another retriever, or sources",
                repeats=by_words,
            ),
            Stage(
                number=3,
                name="citation",
                title="Citation training",
                body=bodies.citation_training,
                gates=(*accuracy, format, *guards),
                remedy="trained again from the model before, on more of the citation data",
            ),
            Stage(
                number=4,
                name="verification",
                title="Attribution verification",
                body=bodies.verification,
                gates=(coverage, *accuracy, gate.verifier_false_positives("verifier's false-positive rate")),
                remedy="citation training is done again on more examples",
                goes_back_to="citation",
            ),
            _optimisation((kl, *accuracy, coverage, *_not_worse(config), *guards)),
            _iteration(config, "citation_recall", (coverage, *guards)),
            _evaluation((*accuracy, coverage, format, kl, gate.guard(gate.over_abstention()), *retained)),
        ),
    )


def antihallucination(config: WorkflowConfig) -> Workflow:
    most_claims, new_tokens = config.generation.most_claims, config.generation.max_new_tokens
    retained = tuple(gate.retention(name) for name in config.benchmarks)
    guards = (*(gate.guard(each) for each in retained), gate.guard(gate.over_abstention()))
    factuality, hallucination = gate.factuality(), gate.hallucination_rate(most_claims)
    kl = gate.divergence(new_tokens)
    return Workflow(
        name="antihallucination",
        title="Anti-hallucination",
        primary="factuality",
        stages=(
            _preparation(config),
            Stage(
                number=2,
                name="facts",
                title="Factuality data",
                body=bodies.factual_data,
                gates=(gate.pairs_supported(),),
                remedy="the collected pairs need work: see the unsupported ones",
                repeats=False,
            ),
            Stage(
                number=3,
                name="citation",
                title="Citation training",
                body=bodies.citation_training,
                gates=(factuality, *guards),
                remedy="trained again from the model before, on more of the citation data",
            ),
            Stage(
                number=4,
                name="detection",
                title="Hallucination detection",
                body=bodies.detection,
                gates=(hallucination, gate.verifier_false_positives("detector's false-positive rate")),
                remedy="citation training is done again on more examples",
                goes_back_to="citation",
            ),
            _optimisation((kl, gate.factuality_improving(), *_not_worse(config), *guards)),
            _iteration(config, "factuality", guards),
            _evaluation(
                (factuality, hallucination, *gate.citation_accuracy(0.85), gate.over_abstention(), kl, *retained)
            ),
        ),
    )


WORKFLOWS: Final[Mapping[str, Callable[[WorkflowConfig], Workflow]]] = {
    "source-attribution": source_attribution,
    "antihallucination": antihallucination,
}


def workflow_named(name: str, config: WorkflowConfig) -> Workflow:
    """Raises UsageError for a name that no workflow has."""
    if name not in WORKFLOWS:
        known = ", ".join(WORKFLOWS)
        raise UsageError(f"there is no workflow '{name}'{did_you_mean(name, WORKFLOWS)}", f"one of {known}")
    return WORKFLOWS[name](config)


def _preparation(config: WorkflowConfig) -> Stage:
    return Stage(
        number=1,
        name="preparation",
        title="SFT preparation",
        body=bodies.preparation,
        gates=(
            gate.perplexity(),
            gate.counted("baseline_recorded", "baseline of every metric recorded", "at least", 1.0),
        ),
        remedy="trained again with another order of the data",
        repeats=config.training.preparation is not None,
    )


def _not_worse(config: WorkflowConfig) -> tuple[StageGate, ...]:
    """Roll back where citing got worse than what entered the stage."""
    named = {
        "citation_precision": "citation precision",
        "citation_recall": "citation recall",
        "coverage": "attribution coverage",
    }
    return tuple(gate.guard(gate.not_worse(name, title, config.iteration.flat)) for name, title in named.items())


def _optimisation(gates: tuple[StageGate, ...]) -> Stage:
    return Stage(
        number=5,
        name="optimisation",
        title="Optimisation",
        body=bodies.optimisation,
        gates=gates,
        remedy="half the rate, twice the KL penalty, from the model before",
    )


def _iteration(config: WorkflowConfig, primary: str, guards: tuple[StageGate, ...]) -> Stage:
    return Stage(
        number=6,
        name="iteration",
        title="Iteration",
        body=partial(iteration, primary=primary, better="at least", limits=guards),
        gates=(gate.progress(config.iteration.flat), *(gate.guard(each) for each in guards)),
        remedy="back to the best model within every limit",
        repeats=False,
    )


def _evaluation(gates: tuple[StageGate, ...]) -> Stage:
    return Stage(
        number=7,
        name="evaluation",
        title="Evaluation",
        body=bodies.evaluation,
        gates=gates,
        remedy="back to the best model within every limit",
        repeats=False,
    )
