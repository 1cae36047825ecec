"""What stage 2 finds out about the data before anything is trained on it: no gate asks for it, `diagnose` does."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from realign_cluster.domain.gate import Measurement
from realign_cluster.workflows import data_checks, leak_checks, source_checks, verify
from realign_cluster.workflows.derive import Derived, Inputs, derivation, derive
from realign_cluster.workflows.jobs import ArtifactId, Ask, JobResult, Look
from realign_cluster.workflows.measured import by_metric
from realign_cluster.workflows.sources import retriever_of
from realign_cluster.workflows.stage import Context
from realign_cluster.workflows.verify import verdicts_on, verifier_fingerprint

MOST_VERIFIED: Final = 400  # rows of each set: shows 10 % of wrong ones where 5 % are tolerated; costs a judge little
CHECKS: Final = "data checks"  # artifacts of stage 2: measurements, and rows that show what was found
EXAMPLES: Final = "data examples"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    measurements: Mapping[str, Measurement]
    artifacts: Mapping[str, ArtifactId]


def check_examples(context: Context, index: ArtifactId | None = None) -> Generator[Ask, JobResult, Checked]:
    """The sets that are trained on, the evaluation sets against them, and the sources."""
    data = context.state.data
    trained = {name: data[name] for name in data_checks.TRAINED_ON if name in data}
    asked = yield derive(data_checks.examples_to_verify, "examples to verify", inputs=trained, most=MOST_VERIFIED)
    verdicts = yield from verdicts_on(context, asked.outputs["pairs"], "examples")
    examples = yield derive(
        data_checks.example_measurements,
        "examples checked",
        inputs={**trained, "rows": asked.outputs["rows"], "verdicts": verdicts},
        supported=context.config.verifier.supported,
        verifier=verifier_fingerprint(context),
    )
    evaluated = {name: data[name] for name in leak_checks.EVALUATED_ON}
    leaks = yield derive(leak_checks.leak_measurements, "copies of questions", inputs={**trained, **evaluated})
    carrying = {name: data[name] for name in source_checks.CARRYING if name in data}
    sources = yield derive(
        source_checks.source_measurements,
        "sources checked",
        inputs={"sources": data["sources"], **carrying, **({"index": index} if index else {})},
        most=MOST_VERIFIED,
        **({"retriever": retriever_of(context)} if index else {}),
    )
    inputs = {
        f"{name} {at}": part.outputs[name] for name in PARTS for at, part in enumerate((examples, leaks, sources))
    }
    if "labels" in data:  # how often the verifier, that some checks go by, does not see support
        quality = yield from verify.measured_on_labels(context, "supported", "examples")
        inputs["measurements of the verifier"] = quality.outputs["measurements"]
    together = yield derive(checks_together, "checks of the data", inputs=inputs)
    rows = yield Look(rows=together.outputs["measurements"])
    return Checked(
        measurements=by_metric(rows.value),
        artifacts={CHECKS: together.outputs["measurements"], EXAMPLES: together.outputs["examples"]},
    )


PARTS: Final = ("measurements", "examples")


@derivation(version=1)
def checks_together(inputs: Inputs, parameters: Mapping[str, Any]) -> Derived:
    """ "measurements" and "examples" of all checks; of the verifier's own what it misses."""
    del parameters
    together = {
        name: [row for each in inputs.names() if each.startswith(f"{name} ") for row in inputs.rows(each)]
        for name in PARTS
    }
    together["measurements"] = [
        row for row in together["measurements"] if not row["metric"].startswith("verifier_false")
    ]
    return Derived(rows=together)
