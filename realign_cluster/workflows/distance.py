"""The divergence of one model from another: which prompts it is measured on, and its sum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from realign_cluster.metrics.divergence import CompletionDivergence, kl_per_token
from realign_cluster.metrics.measured import ItemId
from realign_cluster.workflows.derive import Derived, Inputs, derivation
from realign_cluster.workflows.measured import measurement_of, to_row

PROBED = ("practice", "general")


def count_probes(rows: Mapping[str, int], most: int) -> int:
    """How many prompts `probe_prompts` takes of so many rows of each file of PROBED that there is."""
    return sum(min(count, most // len(rows)) for count in rows.values())


@derivation(version=1)
def probe_prompts(inputs: Inputs, parameters: Mapping[str, Any]) -> Derived:
    """ "prompts": evenly from the practice questions and from the general data, always the same ones."""
    most = parameters["most"]
    prompts = []
    names = [name for name in PROBED if inputs.has(name)]
    for name in names:
        rows = [row for row in inputs.rows(name) if "prompt" in row]
        step = max(1, len(rows) // max(1, most // len(names)))
        prompts += [{"id": f"{name} {at}", "prompt": rows[at]["prompt"]} for at in range(0, len(rows), step)][
            : most // len(names)
        ]
    return Derived(rows={"prompts": prompts}, value={"prompts": len(prompts)})


@derivation(version=1)
def completions(inputs: Inputs, parameters: Mapping[str, Any]) -> Derived:
    """ "rows": what was sampled, as prompt and response; an empty completion has no token to diverge on."""
    del parameters
    rows = [
        {"id": row["id"], "prompt": row["prompt"], "response": sample["text"]}
        for row in inputs.rows("sampled")
        for sample in row["scores"]["generate"]["samples"]
        if sample["text"]
    ]
    return Derived(rows={"rows": rows})


@derivation(version=1)
def divergences(inputs: Inputs, parameters: Mapping[str, Any]) -> Derived:
    name = parameters["name"]
    found = kl_per_token(
        CompletionDivergence(
            prompt=ItemId(row["id"]), nats=row["scores"]["kl"]["sum"], tokens=row["scores"]["kl"]["tokens"]
        )
        for row in inputs.rows("scored")
    )
    return Derived(rows={"measurements": [to_row(measurement_of(name, found, verifier="", dataset="probe prompts"))]})
