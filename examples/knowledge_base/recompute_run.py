"""Judges a workflow's run again from the answers that it stored: nothing here is of the project or the generator.

    python examples/knowledge_base/recompute_run.py RUN

Reads the ledger with sqlite3 and the answers as JSON lines. What a sentence claims is supported if a cited source says
the same of the same people, word for word. For each verdict on answers the value has to be the same but for the
verifier's errors, and PASS and FAIL have to follow from exact bounds too (Clopper-Pearson over the answers that are
wholly right). Nor may a PASS be a look beyond those that were declared, or have more than its part of alpha: the sets
of items that its gate looked at are counted in the ledger. Prints a line each; exit status 1 if one does not hold.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from scipy.stats import beta

ABSTENTION = re.compile(r"^the \w+ \w+ what the sources do not say$")
SAME = 0.02  # the run's verifier goes by words, and errs now and then
Counts = list[tuple[float, float]]  # of each answer that counts: how much of how much


def sentences(text: str) -> list[tuple[str, list[int]]]:
    """Each sentence's words without markers, and the numbers that it cites."""
    found = []
    for sentence in re.split(r"\.(?:\s+|$)", text):
        words = " ".join(re.sub(r"\[\d+\]", " ", sentence).split())
        if words:
            found.append((words, [int(number) for number in re.findall(r"\[(\d+)\]", sentence)]))
    return found


def says(source: str, claim: str) -> bool:
    return claim in [" ".join(sentence.split()) for sentence in source.split(".")]


def abstains(text: str) -> bool:
    said = sentences(text)
    return not said or all(ABSTENTION.match(words) for words, _ in said)


def answered(rows: list[dict[str, Any]]) -> Iterator[tuple[list[str], list[tuple[str, list[int]]]]]:
    """(texts of the sources in order, sentences) of each answer that is no abstention."""
    for row in rows:
        if not abstains(row["text"]):
            yield [source["text"] for source in row["sources"]], sentences(row["text"])


def cited(sources: list[str], numbers: list[int]) -> list[str | None]:
    return [sources[number - 1] if 1 <= number <= len(sources) else None for number in numbers]


def entailed(sources: list[str], words: str, numbers: list[int]) -> bool:
    known = cited(sources, numbers)
    return bool(known) and None not in known and any(says(source or "", words) for source in known)


def recall(rows: list[dict[str, Any]]) -> Counts:
    return [
        (sum(entailed(sources, words, numbers) for words, numbers in said) / len(said), 1.0)
        for sources, said in answered(rows)
    ]


def precision(rows: list[dict[str, Any]]) -> Counts:
    found = []
    for sources, said in answered(rows):
        citations = credited = 0
        for words, numbers in said:
            distinct = list(dict.fromkeys(cited(sources, numbers)))
            citations += len(distinct)
            if entailed(sources, words, numbers):
                credited += sum(says(source or "", words) for source in distinct)
        if citations:
            found.append((credited / citations, 1.0))
    return found


def coverage(rows: list[dict[str, Any]]) -> Counts:
    return [
        (sum(any(source is not None for source in cited(sources, numbers)) for _, numbers in said), len(said))
        for sources, said in answered(rows)
    ]


def made_up(rows: list[dict[str, Any]]) -> Counts:
    return [
        (sum(not any(says(source, words) for source in sources) for words, _ in said), len(said))
        for sources, said in answered(rows)
    ]


def factual(rows: list[dict[str, Any]]) -> Counts:
    return [((all_of - wrong) / all_of, 1.0) for wrong, all_of in made_up(rows)]


def over_abstention(rows: list[dict[str, Any]]) -> Counts:
    return [(float(abstains(row["text"])), 1.0) for row in rows if row["answerable"]]


GATES: dict[str, Callable[[list[dict[str, Any]]], Counts]] = {
    "citation_recall": recall,
    "citation_precision": precision,
    "attribution_coverage": coverage,
    "hallucination_rate": made_up,
    "factuality": factual,
    "over_abstention": over_abstention,
}


def bounds(counts: Counts, alpha: float) -> tuple[float, float]:
    """One-sided exact bounds, answers counted as right only if they are wholly so (below), or as wrong (above)."""
    n = len(counts)
    whole = sum(part >= of for part, of in counts)
    some = sum(part > 0 for part, of in counts)
    lower = 0.0 if whole == 0 else float(beta.ppf(alpha, whole, n - whole + 1))
    upper = 1.0 if some == n else float(beta.ppf(1 - alpha, some + 1, n - some))
    return lower, upper


def looks_of(ledger: sqlite3.Connection) -> dict[tuple[str, str, str], int]:
    """How many different sets of items each gate looked at: (stage, gate, candidate) -> sets."""
    sets: dict[tuple[str, str, str], set[str]] = {}
    for (body,) in ledger.execute("SELECT body FROM note WHERE kind = 'look'"):
        look = json.loads(body)
        sets.setdefault((look["stage"], look["gate"], look["candidate"]), set()).add(look["items"])
    return {place: len(found) for place, found in sets.items()}


def is_paid_for(verdict: dict[str, Any], most: int, config: dict[str, Any]) -> bool:
    """Whether a verdict is one of the looks declared, and has no more than its part of alpha; `most` sets were seen."""
    look, looks = verdict["look"], config["looks"]
    shared = verdict["looks"] == looks and verdict["alpha_each"] <= config["alpha"] / looks * (1 + 1e-9)
    return shared and 1 <= look <= most and (verdict["outcome"] != "PASS" or look <= looks)


def judge_again(run: Path) -> Iterator[tuple[bool, str]]:
    ledger = sqlite3.connect(f"file:{run / 'ledger.sqlite'}?mode=ro", uri=True)
    answers: dict[tuple[int, int], str] = {}
    measured: dict[tuple[int, int], dict[str, Any]] = {}
    names: dict[int, str] = {}
    looked = looks_of(ledger)
    [(config,)] = ledger.execute("SELECT value FROM meta WHERE key = 'config'")
    for stage, attempt, body in ledger.execute("SELECT stage, attempt, body FROM stage WHERE ended IS NOT NULL"):
        made, names[stage] = json.loads(body)["artifacts"], json.loads(body)["name"]
        measured[stage, attempt] = json.loads(body)["measurements"]
        if found := made.get("answers") or made.get("baseline answers"):
            answers[stage, attempt] = found
    verdicts = "SELECT stage, attempt, gate, body FROM verdict ORDER BY stage, attempt, gate"
    for stage, attempt, gate, body in ledger.execute(verdicts):
        if gate not in GATES or (stage, attempt) not in answers:
            continue
        verdict = json.loads(body)
        path = run / "artifacts" / f"{answers[stage, attempt]}.jsonl"
        counts = GATES[gate]([json.loads(line) for line in path.read_text().splitlines()])
        below = math.fsum(of for _, of in counts)
        value = math.fsum(part for part, _ in counts) / below if below else None
        lower, upper = bounds(counts, verdict["alpha_each"]) if counts else (0.0, 1.0)
        least = verdict["direction"] == "at least"
        clears = (lower >= verdict["threshold"]) if least else (upper <= verdict["threshold"])
        misses = (upper < verdict["threshold"]) if least else (lower > verdict["threshold"])
        theirs = measured[stage, attempt][gate]["value"]  # a verdict's has the verifier's errors taken out
        same = value == theirs or (None not in (value, theirs) and abs(value - theirs) <= SAME)
        follows = {"PASS": clears, "FAIL": misses}.get(verdict["outcome"], True)
        most = max((seen for (at, of, _), seen in looked.items() if (at, of) == (names[stage], gate)), default=0)
        paid = is_paid_for(verdict, most, json.loads(config)) if counts else True
        shown = "-" if value is None else f"{value:.4f}"
        said = (
            f"stage {stage} attempt {attempt + 1} {gate}: {shown}, exact bounds {lower:.4f} and {upper:.4f}, the run "
        )
        said += f"says {verdict['outcome']} of {'-' if theirs is None else round(theirs, 4)}"
        said += f" at look {verdict['look']} of {verdict['looks']}"
        yield same and follows and paid, said


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    found = list(judge_again(parser.parse_args().run))
    for agrees, said in found:
        print("agrees " if agrees else "DIFFERS", said)
    return 0 if found and all(agrees for agrees, _ in found) else 1


if __name__ == "__main__":
    sys.exit(main())
