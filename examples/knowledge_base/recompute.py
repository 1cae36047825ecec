"""Judges stored answers to held-out questions again, by reading the texts alone: nothing here is of the project or the
generator.

    python examples/knowledge_base/recompute.py --items held-out/hold-out-1.jsonl --answers ANSWERS.jsonl
        [--answer-field answer]

An answer row has the item's `id`, and its text under the answer field (dots lead into objects). What a sentence claims
is supported if a cited source says the same of the same people, word for word. Bounds are one-sided, 95 %, exact
(Clopper-Pearson). Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from scipy.stats import beta

CLAIM = re.compile(r"^the (\w+) (\w+) (\w+)$")
ABSTENTION = re.compile(r"^the \w+ \w+ what the sources do not say$")


def at_least(hits: int, of: int) -> float | None:
    return None if of == 0 else 0.0 if hits == 0 else float(beta.ppf(0.05, hits, of - hits + 1))


def at_most(hits: int, of: int) -> float | None:
    return None if of == 0 else 1.0 if hits == of else float(beta.ppf(0.95, hits + 1, of - hits))


def sentences(answer: str) -> list[tuple[str, list[str]]]:
    """Each sentence's words without markers, and its markers."""
    found = []
    for sentence in answer.split("."):
        words = " ".join(re.sub(r"\[\d+\]", " ", sentence).split())
        if words:
            found.append((words, re.findall(r"\[\d+\]", sentence)))
    return found


def says(source: str, claim: str) -> bool:
    return claim in [" ".join(sentence.split()) for sentence in source.split(".")]


def judge(item: dict[str, Any], answer: str, counts: Counter[str]) -> None:
    """Adds what is to be counted of one answer."""
    sources = {each["marker"]: each["text"] for each in item["sources"]}
    said = sentences(answer)
    abstains = bool(said) and all(ABSTENTION.match(words) for words, _ in said)
    counts["answerable" if item["answerable"] else "unanswerable"] += 1
    if abstains:
        counts["abstained on answerable" if item["answerable"] else "abstained on unanswerable"] += 1
        return
    counts["no answer"] += not said
    counts["answered unanswerable"] += not item["answerable"]
    for words, markers in said:
        counts["claims"] += 1
        counts["covered claims"] += any(marker in sources for marker in markers)
        supported = [marker for marker in markers if says(sources.get(marker, ""), words)]
        counts["recalled claims"] += bool(supported)
        counts["citations"] += len(markers)
        counts["right citations"] += len(supported)
        counts["unsupported claims"] += not any(says(text, words) for text in sources.values())
    if item["answerable"]:
        gold = item["gold"]
        counts["right answers"] += f"the {gold['people']} {gold['relation']} {gold['value']}" in [w for w, _ in said]


def rate(hits: int, of: int) -> dict[str, Any]:
    return {
        "value": hits / of if of else None,
        "of": of,
        "at least": at_least(hits, of),
        "at most": at_most(hits, of),
    }


def report(counts: Counter[str]) -> dict[str, Any]:
    return {
        "answer accuracy": rate(counts["right answers"], counts["answerable"]),
        "citation precision": rate(counts["right citations"], counts["citations"]),
        "citation recall": rate(counts["recalled claims"], counts["claims"]),
        "coverage": rate(counts["covered claims"], counts["claims"]),
        "hallucination": rate(counts["unsupported claims"], counts["claims"]),
        "answered unanswerable": rate(counts["answered unanswerable"], counts["unanswerable"]),
        "over-abstention": rate(counts["abstained on answerable"], counts["answerable"]),
        "no answer": counts["no answer"],
    }


def field_of(row: dict[str, Any], field: str) -> str:
    value: Any = row
    for key in [field] if field in row else field.split("."):
        value = value[int(key)] if isinstance(value, list) else value[key]
    return str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--items", type=Path, required=True)
    parser.add_argument("--answers", type=Path, required=True)
    parser.add_argument("--answer-field", default="answer")
    options = parser.parse_args()
    items = {item["id"]: item for item in map(json.loads, options.items.read_text().splitlines())}
    counts: Counter[str] = Counter()
    for row in map(json.loads, options.answers.read_text().splitlines()):
        judge(items[row["id"]], field_of(row, options.answer_field), counts)
    print(json.dumps(report(counts), indent=1))


if __name__ == "__main__":
    main()
