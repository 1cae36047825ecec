"""What a workflow's stages found out, as its report has it: retrieval, spread of sources, cleaning, pairs, verifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

from realign_cluster.coordinator.charts import number
from realign_cluster.coordinator.markup import note, table
from realign_cluster.coordinator.workflow_history import Attempt, WorkflowHistory
from realign_cluster.coordinator.workflow_report_items import Behind
from realign_cluster.coordinator.workflow_report_stages import linked, short
from realign_cluster.workflows.cleaning import holding_text
from realign_cluster.workflows.config import VerifierConfig

STATUS_STYLES: Final = {"passed": "good", "failed": "bad", "undefined": "warn"}


def quality_body(history: WorkflowHistory, behind: Behind) -> str:
    """Retrieval, spread of sources, cleaning, pairs and verifier, of the last attempt that has them."""
    parts = [
        _retrieval(history, behind),
        _spread(history),
        _cleaning(history),
        _pairs(history),
        _verifier(history, behind),
    ]
    return "".join(parts)


def _with(history: WorkflowHistory, fact: str) -> Attempt | None:
    found = [attempt for attempt in history.attempts if attempt.facts.get(fact)]
    return found[-1] if found else None


def _retrieval(history: WorkflowHistory, behind: Behind) -> str:
    found = [each for each in history.attempts if any(name.startswith("retrieval_") for name in each.measurements)]
    if not found:
        return ""
    attempt = found[-1]
    rows = []
    for name, each in attempt.measurements.items():
        if name.startswith("retrieval_") and each["value"] is not None:
            value = linked(number(each["value"]), behind.link(attempt, name))
            rows.append([escape(name), value, f"{each['items']:,}"])
    said = note(escape(_retriever(attempt.facts.get("retriever") or {})))
    return f"<h3>Retrieval</h3>{said}{_slim(['measure', '>value', '>queries'], rows)}"


def _retriever(facts: Mapping[str, Any]) -> str:
    if "code" not in facts:
        return f"BM25 with {', '.join(f'{name} {value}' for name, value in facts.items())}." if facts else ""
    what = "Vectors of" if facts["kind"] == "vectors" else "By"
    return f"{what} {facts['code']}, which calls itself {facts['fingerprint']}."


def _spread(history: WorkflowHistory) -> str:
    attempt = _with(history, "pairs_by_type")
    if attempt is None:
        return ""
    facts = attempt.facts
    total = sum(facts["pairs_by_type"].values()) or 1
    rows = [
        [escape(name), f"{count:,}", f"{count / total:.1%}"]
        for name, count in sorted(facts["pairs_by_type"].items(), key=lambda each: (-each[1], each[0]))
    ]
    said = note(f"Of the sources that the practice questions come with. The largest share of a type is "
                f"{facts['largest_share_of_a_type']:.1%}; {facts['types_missing']} types missing.")  # fmt: skip
    return f"<h3>Types of sources</h3>{said}{_slim(['type', '>pairs', '>share'], rows)}"


def _cleaning(history: WorkflowHistory) -> str:
    """Of each set that was trained on, as the last stage found it that did."""
    found: dict[str, Mapping[str, Any]] = {}
    for attempt in history.attempts:
        found |= _cleaned_by_set(attempt.facts.get("cleaned") or {})
    if not found:
        return ""
    counts = ("rows", "contaminated", "doubled", "nearly doubled", "kept")
    rows = [
        [escape(name), *(f"{each[count]:,}" for count in counts), escape(holding_text(each["holding"])) or "-"]
        for name, each in found.items()
    ]
    taught = ", ".join(history.config.cleaning.taught)
    said = note(
        "What is trained on loses rows that hold what models are judged on, and of the others those that are there "
        f"already.{f' Not looked for, because it is taught: {escape(taught)}.' if taught else ''}"
    )
    headings = ["set", *(f">{count}" for count in counts), "contaminated by (rows, by what found them first)"]
    return f"<h3>Training rows, cleaned</h3>{said}{table(headings, rows)}"


def _cleaned_by_set(fact: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """Runs of before every set was cleaned have the counts of `citation` alone, and may count a row twice."""
    if "rows" not in fact:
        return fact
    held = {name: count for name, count in fact.get("by variant", {}).items() if count}
    holding = {"evaluation sets": held} if held else {}
    left = fact["rows"] - fact["doubled"] - fact["contaminated"]
    return {"citation": {"nearly doubled": 0, "kept": left, **fact, "holding": holding}}


def _pairs(history: WorkflowHistory) -> str:
    attempt = _with(history, "pairs")
    if attempt is None:
        return ""
    found = attempt.facts["pairs"]
    taken = _slim(
        ["reason", ">taken", ">possible"],
        [[escape(name), f"{found['taken'].get(name, 0):,}", f"{count:,}"] for name, count in found["possible"].items()],
    )
    checks = table(
        ["check", "status", ">value", ">threshold", "reason"],
        [
            [
                escape(each["name"]),
                f'<span class="{STATUS_STYLES[each["status"]]}">{escape(each["status"])}</span>',
                "-" if each["value"] is None else number(each["value"]),
                "-" if each["threshold"] is None else number(each["threshold"]),
                escape(each["reason"]),
            ]
            for each in found["checks"]
        ],
    )
    said = f"Left out: {found['doubled']:,} pairs that were there already"
    if "leaked" in found:  # not looked for in older runs
        leaked = ", ".join(f"{escape(name)} {count:,}" for name, count in found["leaked"].items()) or "none"
        said += f"; questions that a held-out set asks too: {leaked}"
    if saying := found.get("saying unseen words"):
        said += f"; answers with a word that only held-out questions have: {saying:,}"
    return f"<h3>Preference pairs: {found['pairs']:,}</h3>{note(f'{said}.')}{taken}{checks}"


def _verifier(history: WorkflowHistory, behind: Behind) -> str:
    attempt = _with(history, "verifier")
    if attempt is None:
        return ""
    found = attempt.facts["verifier"]
    said = dict.fromkeys(answer for row in found["confusion"].values() for answer in row)
    confusion = _slim(
        ["people say", *(f">verifier says {answer}" for answer in said)],
        [[escape(label), *(f"{row.get(each, 0):,}" for each in said)] for label, row in found["confusion"].items()],
    )
    rates = [f"{name} {_rate(found[name])}" for name in ("sensitivity", "specificity")]
    figures = [f"{name} {number(found[name])}" for name in ("auroc", "ece", "brier") if found[name] is not None]
    links = ", ".join(
        f'<a href="#{anchor}">{escape(name.replace("_", " "))}</a>'
        for name in ("verifier_false_positives", "verifier_false_negatives")
        if (anchor := behind.link(attempt, name))
    )
    words = (
        f"{found['n']:,} labelled pairs, {found['unanswered']:,} without a verdict; {'; '.join([*rates, *figures])}."
    )
    return (
        f'<h3>The verifier itself</h3><p class="note">Fingerprint {short(found["verifier"])}, '
        f"{escape(_who(history.config.verifier))}. {escape(words)} {links}</p>{confusion}"
    )


def _who(verifier: VerifierConfig) -> str:
    service = verifier.service
    asked = f": fact service {service.url}, version {service.version}" if service is not None else ""
    return f"{verifier.kind}{asked}"


def _slim(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return f'<div class="slim">{table(headings, rows)}</div>'


def _rate(rate: Mapping[str, Any]) -> str:
    if rate["value"] is None:
        return "undefined"
    return f"{rate['value']:.3f} (95 % {rate['low']:.3f} to {rate['high']:.3f}, {rate['count']} of {rate['n']})"
