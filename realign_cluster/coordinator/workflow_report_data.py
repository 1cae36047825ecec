"""The data of a workflow's report: what was trained on, and where the model that came out is from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any, Final

import orjson

from realign_cluster.coordinator.markup import note, settings, table
from realign_cluster.coordinator.workflow_history import WorkflowHistory
from realign_cluster.coordinator.workflow_report_answers import clipped
from realign_cluster.coordinator.workflow_report_stages import file_link, short
from realign_cluster.store.workflow_ledger import JobRecord
from realign_cluster.workflows.cleaning import is_held_out

ROWS_SHOWN: Final = 3  # of what was trained on: the first
DECIDING: Final = ("model", "verdicts")  # roles of what decides which rows, and is not in them


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
