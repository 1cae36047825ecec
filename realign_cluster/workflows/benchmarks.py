"""Capability benchmarks and perplexity: from the user's rows to what the cluster scores, and from that to scores.

An item with choices: whether the right one has the highest log-likelihood, chance is 1 over their number. An item with
an answer: whether what the model says is it, white space and case apart; guessing gives nothing. Tasks of
lm-evaluation-harness are scored in `harness` and only counted here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from realign_cluster.domain.benchmark_rows import BenchmarkItem, benchmark_item
from realign_cluster.metrics.measured import ItemId, mean_over_items
from realign_cluster.metrics.perplexity import perplexity
from realign_cluster.workflows.derive import Derived, Inputs, derivation
from realign_cluster.workflows.measured import measurement_of, to_row

PREFIX = "benchmark "
ITEMS = "items"


@derivation(version=1)
def evaluation_prompts(inputs: Inputs, parameters: Mapping[str, Any]) -> Derived:
    """ "prompts": the items, and of the benchmarks whatever is answered in words, each with its set."""
    del parameters
    rows: list[dict[str, Any]] = [{**row, "set": ITEMS} for row in inputs.rows("items")]
    for name, number, item in _items(inputs):
        if len(item.choices) == 1:
            rows.append({"id": str(number), "set": name, "prompt": item.prompt})
    return Derived(rows={"prompts": rows})


@derivation(version=1)
def part_generated(inputs: Inputs, parameters: Mapping[str, Any]) -> Derived:
    """ "items" and "benchmarks", as they were put together."""
    del parameters
    parts: dict[str, list[dict[str, Any]]] = {"items": [], "benchmarks": []}
    for row in inputs.rows("generated"):
        where = parts["items" if row["set"] == ITEMS else "benchmarks"]
        where.append({name: value for name, value in row.items() if name != "row_id"})
    return Derived(rows=parts)


@derivation(version=1)
def likelihood_rows(inputs: Inputs, parameters: Mapping[str, Any]) -> Derived:
    """ "rows": every choice of every item, and the validation rows where they are given."""
    del parameters
    rows: list[dict[str, Any]] = []
    for name, number, item in _items(inputs):
        if len(item.choices) > 1:
            rows += [
                {"set": name, "id": str(number), "choice": at, "prompt": item.prompt, "response": choice}
                for at, choice in enumerate(item.choices)
            ]
    if inputs.has("valid"):
        rows += [
            {
                "set": "valid",
                "id": str(number),
                "prompt": row["prompt"],
                "response": row.get("completion", row.get("response")),
            }
            for number, row in enumerate(inputs.rows("valid"))
        ]
    return Derived(rows={"rows": rows}, value={"rows": len(rows)})


@derivation(version=2)
def benchmark_scores(inputs: Inputs, parameters: Mapping[str, Any]) -> Derived:
    """ "scores": {"benchmark", "item", "score", "chance"} each; "measurements": accuracies, and perplexity."""
    del parameters
    said = {(row["set"], row["id"]): row["scores"]["generate"]["samples"][0]["text"] for row in inputs.rows("answered")}
    likely: dict[tuple[str, str], dict[int, float]] = {}
    losses: list[tuple[ItemId, float, int]] = []
    for row in inputs.rows("scored") if inputs.has("scored") else ():
        scores = row["scores"]["loglik"]
        if row["set"] == "valid":
            losses.append((ItemId(row["id"]), -scores["sum"], scores["tokens"]))
        else:
            likely.setdefault((row["set"], row["id"]), {})[row["choice"]] = scores["sum"]
    found: list[dict[str, Any]] = []
    for name, number, item in _items(inputs):
        key = (name, str(number))
        if len(item.choices) == 1:
            right, chance = _plain(said[key]) == _plain(item.choices[0]), 0.0
        else:
            chosen = max(likely[key], key=lambda choice: likely[key][choice])
            right, chance = chosen == item.correct, 1 / len(item.choices)
        found.append(
            {"benchmark": name.removeprefix(PREFIX), "item": str(number), "score": float(right), "chance": chance}
        )
    if inputs.has("harness"):
        found += [{key: row[key] for key in ("benchmark", "item", "score", "chance")} for row in inputs.rows("harness")]
    names = dict.fromkeys(row["benchmark"] for row in found)
    measured = [
        measurement_of(
            f"accuracy of {name}",
            mean_over_items(
                name, "right / items", ((ItemId(r["item"]), r["score"]) for r in found if r["benchmark"] == name)
            ),
            verifier="",
            dataset=name,
        )
        for name in names
    ]
    if losses:
        loss = perplexity(losses).loss
        measured.append(measurement_of("perplexity", loss, verifier="", dataset="valid", scale="exp"))
    return Derived(rows={"scores": found, "measurements": [to_row(each) for each in measured]})


def _items(inputs: Inputs) -> Iterator[tuple[str, int, BenchmarkItem]]:
    for name in inputs.names():
        if name.startswith(PREFIX):
            for number, row in enumerate(inputs.rows(name)):
                yield name, number, benchmark_item(row)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")
