"""The data of a workflow's report: what was trained on, what retrieval, pairs, verifier and cleaning came to, and where
the model that came out is from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, Final

import orjson

from realign_cluster.coordinator.charts import number
from realign_cluster.coordinator.markup import note, settings, table
from realign_cluster.coordinator.workflow_history import Attempt, WorkflowHistory
from realign_cluster.coordinator.workflow_report_answers import clipped
from realign_cluster.coordinator.workflow_report_items import Behind
from realign_cluster.coordinator.workflow_report_stages import file_link, linked, short
from realign_cluster.store.workflow_ledger import JobRecord
from realign_cluster.workflows.cleaning import holding_text, is_held_out
from realign_cluster.workflows.config import VerifierConfig

ROWS_SHOWN: Final = 3  # of what was trained on: the first
DECIDING: Final = ("model", "verdicts")  # roles of what decides which rows, and is not in them
STATUS_STYLES: Final = {"passed": "good", "failed": "bad", "undefined": "warn"}


def training_data_body(history: WorkflowHistory) -> str:
    """What each training was on: rows, where they are, and what they were made from."""
    parts, shown = [], set[str]()
    for job in history.trainings:
        data = str(job.request["inputs_by_role"]["data"])
        made = (job.result or {}).get("outputs", {}).get("model")
        mix = _mix_of(history, data)
        words = f"{mix} Gave {file_link(history, made)}." if made else f"{mix} Gave no model."
        anchor = "" if data in shown else f' id="d-{data[:12]}"'
        shown.add(data)
        rows = history.rows(data)
        sample = "".join(f"<pre>{escape(clipped(orjson.dumps(row).decode(), 900))}</pre>" for row in rows[:ROWS_SHOWN])
        parts.append(
            f'<h3 id="t-{job.key[:12]}">{escape(job.request["title"])}</h3>'
            f'<div{anchor}><p class="note">{len(rows):,} rows in {file_link(history, data)}, made of '
            f"{_origin(history, data)}. {words}</p>"
            f"<details><summary>the first {min(ROWS_SHOWN, len(rows))} rows</summary>{sample}</details>"
            f"<details><summary>every setting of the training</summary>{settings(job.request['settings'])}</details>"
            "</div>"
        )
    return "".join(parts)


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


def provenance_rows(history: WorkflowHistory, identity: str) -> list[dict[str, Any]]:
    """The artifact and all that it was made from, what is used before its users: as report.json has it."""
    return [_provenance(history, each) for each in history.lineage(identity)]


def provenance_body(history: WorkflowHistory, identity: str) -> str:
    rows = []
    for each in provenance_rows(history, identity):
        inputs = ", ".join(
            f'{escape(role)} <a href="#p-{source[:12]}">{short(source)}</a>' for role, source in each["inputs"].items()
        )
        recipe = (
            f"<details><summary>recipe</summary>{settings(each['recipe'])}</details>" if each["recipe"] else ""
        )  # fmt: skip
        rows.append(
            [
                f'<span id="p-{each["artifact"][:12]}">{file_link(history, each["artifact"])}</span>',
                escape(each["name"]),
                escape(each["made_by"]) + recipe,
                inputs or "-",
                escape(", ".join(each["nodes"])) or "-",
                escape(each["code"]) or "-",
                short(each["job"]) if each["job"] else "-",
            ]
        )
    words = note("What the model that came out was made from, up to the files that were given; what is used stands "
                 "above what uses it. Names are hashes of the content.")  # fmt: skip
    return words + table(["artifact", "what", "made by", "from", "nodes", "code", "job"], rows)


def inputs_table(history: WorkflowHistory) -> str:
    rows = [
        [
            escape(each.name),
            file_link(history, each.id),
            f"{each.bytes:,}",
            f"<code>{escape(each.made_by.removeprefix('input: '))}</code>",
        ]
        for each in history.artifacts.values()
        if each.made_by.startswith("input: ")
    ]
    return table(["file", "hash", ">bytes", "as it was given"], sorted(rows))


# --- what stages found ---


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


# --- where things are from ---


def _mix_of(history: WorkflowHistory, data: str) -> str:
    maker = history.maker(data)
    value = (maker.result or {}).get("value") if maker else None
    counts = {name: each for name, each in (value or {}).items() if isinstance(each, int)}
    return f"{', '.join(f'{escape(name)} {count:,}' for name, count in counts.items())}." if counts else ""


def _origin(history: WorkflowHistory, data: str) -> str:
    """The user's files that rows were made from; those that rows were only held against are not among them."""
    found: dict[str, None] = {}
    stack = [data]
    while stack:
        current = stack.pop()
        record, maker = history.artifacts.get(current), history.maker(current)
        if record is not None and record.made_by.startswith("input: "):
            found.setdefault(record.name)
        elif maker is not None:
            roles = maker.request["inputs_by_role"]
            stack += [str(each) for role, each in roles.items() if role not in DECIDING and not is_held_out(role)]
    return escape(", ".join(sorted(found))) or "nothing that is known"


def _provenance(history: WorkflowHistory, identity: str) -> dict[str, Any]:
    record, maker = history.artifacts.get(identity), history.maker(identity)
    if maker is None:
        outside = record is None
        return {
            "artifact": identity,
            "name": "a model from outside" if outside else record.name,  # type: ignore[union-attr]
            "made_by": _given(history, identity) if outside else record.made_by,  # type: ignore[union-attr]
            "inputs": {},
            "recipe": {},
            "nodes": [],
            "code": "",
            "job": "",
        }
    request, result = maker.request, maker.result or {}
    return {
        "artifact": identity,
        "name": record.name if record else "",
        "made_by": made_by_text(maker),
        "inputs": dict(request["inputs_by_role"]),
        "recipe": _recipe(request),
        "nodes": list(result.get("nodes") or {}),
        "code": code_version(result),
        "job": maker.key,
    }


def made_by_text(job: JobRecord) -> str:
    match job.request["what"]:
        case "train":
            return f"training: {job.request['settings']['method']}, {job.request['settings']['fine_tune']}"
        case "score":
            return f"scoring: {', '.join(job.request['kinds'])}"
        case "consult":
            return f"fact service, version {job.request['service']['version']}"
        case _:
            return f"{job.request['function']}, version {job.request['version']}"


def code_version(result: Mapping[str, Any]) -> str:
    """Of the coordinator, as the job's run wrote it down."""
    found = (result.get("versions") or {}).get("coordinator") or {}
    return str(found.get("project", ""))


def _recipe(request: Mapping[str, Any]) -> dict[str, Any]:
    match request["what"]:
        case "train":
            return dict(request["settings"])
        case "score":
            names = ("sampling", "template", "labels", "chat", "max_tokens", "truncate")
            return {name: request[name] for name in names if request.get(name)}
        case "consult":
            return {name: request["service"][name] for name in ("url", "version")}
        case _:
            return dict(request["parameters"])


def _given(history: WorkflowHistory, identity: str) -> str:
    """The path of a model that was not made here."""
    models: Iterable[Mapping[str, Any]] = (
        job.request[role]
        for job in history.jobs
        for role in ("model", "reference")
        if isinstance(job.request.get(role), Mapping)
    )
    return next((str(each["path"]) for each in models if each.get("hash") == identity), history.config.model.path)
