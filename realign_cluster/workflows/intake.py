"""The user's files of a workflow, checked before anything starts: every row, and that nothing is in two places.

Bad rows are named by file, line and field. An evaluation question that is in the training data is refused with both
rows: a gate that judges memory says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from realign_cluster.domain.benchmark_rows import benchmark_item
from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.rows import BadField, kind_of
from realign_cluster.domain.training_rows import WrongForm, canonical_row, form_of
from realign_cluster.workflows.config import WorkflowConfig

MOST_SHOWN = 10
TRAINING = ("preparation", "citation", "general", "practice", "valid")
EVALUATION = ("items", "sealed")
LABELS = ("supported", "contradicted", "unverifiable")
NEEDED = {"source-attribution": ("queries", "labels"), "antihallucination": ("pairs", "labels")}
Row = dict[str, Any]


def check_data(workflow: str, config: WorkflowConfig, files: Mapping[str, Path]) -> None:
    """Raises UsageError, a line for everything that is wrong (the first ten)."""
    missing = [name for name in NEEDED[workflow] if name not in files]
    if missing:
        raise UsageError(
            f"[data] has no {' and no '.join(missing)}: {workflow} needs it",
            "docs/workflows/templates.md has a row of each file",
        )
    read = {name: list(read_rows(name, path)) for name, path in files.items()}
    wrong = [
        f"{files[name]}:{line}: {problem}"
        for name, rows in read.items()
        for line, row in rows
        for problem in _problems(name, row)
    ]
    wrong += [f"{path}: is empty: {_what(name)}" for name, path in files.items() if not read[name]]
    if not wrong:
        wrong += _doubles(files, read)
        wrong += _unknown_sources(files, read)
        wrong += _leaks(files, read)
    if wrong:
        more = f"\n... and {len(wrong) - MOST_SHOWN} more" if len(wrong) > MOST_SHOWN else ""
        raise UsageError("\n".join(wrong[:MOST_SHOWN]) + more, "docs/workflows/templates.md has a row of each file")


def read_rows(name: str, path: Path) -> Iterator[tuple[int, Row]]:
    """(line number, row) of each line that is not blank. Raises UsageError for a file or line that cannot be read."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UsageError(f"[data] {name}: {path} cannot be read: {error.strerror}", "correct the path") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise UsageError(f"{path}:{number}: is not JSON: {error}", "one JSON object a line") from None
        if not isinstance(row, dict):
            raise UsageError(f"{path}:{number}: is {kind_of(row)}, expected an object", "one JSON object a line")
        yield number, row


def _problems(name: str, row: Row) -> Iterator[str]:
    check = _benchmark if name.startswith("benchmark ") else CHECKS[name]
    try:
        check(row)
    except (BadField, WrongForm) as error:
        yield str(error)


def _text(row: Mapping[str, Any], field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        raise BadField(field, f"is {kind_of(value)}, expected a text that says something")
    return value


def _source(row: Row) -> None:
    _text(row, "id")
    _text(row, "text")
    if "type" in row:
        _text(row, "type")


def _item(row: Row) -> None:
    _text(row, "id")
    if not isinstance(row.get("prompt"), list):
        _text(row, "prompt")
    if not isinstance(row.get("answerable", True), bool):
        raise BadField("answerable", f"is {kind_of(row['answerable'])}, expected true or false")
    _passages(row)


def _passages(row: Row) -> None:
    sources = row.get("sources")
    if not isinstance(sources, list) or not sources:
        raise BadField("sources", f"is {kind_of(sources)}, expected a list of the passages that can be cited")
    for at, passage in enumerate(sources):
        if not isinstance(passage, dict):
            raise BadField(f"sources.{at}", f"is {kind_of(passage)}, expected an object with id and text")
        for field in ("id", "text"):
            if not isinstance(passage.get(field), str) or not passage[field].strip():
                raise BadField(f"sources.{at}.{field}", "is missing or empty")


def _practice(row: Row) -> None:
    _item(row)
    _text(row, "completion")


def _training(row: Row) -> None:
    canonical_row(row, form_of(row, "sft"))


def _completion(row: Row) -> None:
    """What perplexity is measured on: an answer apart from its prompt."""
    if form_of(row, "sft") != "completions":
        raise BadField("completion", "is missing: perplexity is that of an answer, so prompt and completion are needed")
    canonical_row(row, "completions")


def _query(row: Row) -> None:
    _text(row, "query")
    relevant = row.get("relevant")
    if not isinstance(relevant, list) or not relevant or not all(isinstance(each, str) for each in relevant):
        raise BadField("relevant", f"is {kind_of(relevant)}, expected a list of the ids of sources")


def _pair(row: Row) -> None:
    _text(row, "claim")
    _passages(row)


def _label(row: Row) -> None:
    _text(row, "claim")
    _text(row, "evidence")
    if row.get("label") not in LABELS:
        raise BadField("label", f"is {row.get('label')!r}, expected one of {', '.join(LABELS)}")


def _benchmark(row: Row) -> None:
    benchmark_item(row)


CHECKS: dict[str, Callable[[Row], None]] = {
    "sources": _source,
    "items": _item,
    "sealed": _item,
    "practice": _practice,
    "citation": _training,
    "valid": _completion,
    "general": _training,
    "preparation": _training,
    "queries": _query,
    "pairs": _pair,
    "labels": _label,
}


def _what(name: str) -> str:
    return {
        "sources": "there is nothing to cite",
        "items": "nothing can be measured",
        "sealed": "stage 7 has nothing",
    }.get(name, "it has no row")


def _doubles(files: Mapping[str, Path], read: Mapping[str, list[tuple[int, Row]]]) -> Iterator[str]:
    for name in ("sources", "items", "sealed", "practice"):
        seen: dict[str, int] = {}
        for line, row in read.get(name, []):
            if (first := seen.setdefault(row["id"], line)) != line:
                yield f"{files[name]}:{line}: id: {row['id']!r} is also that of line {first}"


def _unknown_sources(files: Mapping[str, Path], read: Mapping[str, list[tuple[int, Row]]]) -> Iterator[str]:
    known = {row["id"] for _, row in read.get("sources", [])}
    for line, row in read.get("queries", []):
        for unknown in (each for each in row["relevant"] if each not in known):
            yield f"{files['queries']}:{line}: relevant: there is no source {unknown!r}"


def _leaks(files: Mapping[str, Path], read: Mapping[str, list[tuple[int, Row]]]) -> Iterator[str]:
    """Questions of an evaluation set that stand word for word in what is trained on, or in the other one."""
    trained: dict[str, str] = {}
    for name in TRAINING:
        for line, row in read.get(name, []):
            for prompt in _prompts(row):
                trained.setdefault(prompt, f"{files[name]}:{line}")
    seen: dict[str, str] = {}
    for name in EVALUATION:
        for line, row in read.get(name, []):
            for prompt in _prompts(row):
                place = f"{files[name]}:{line}"
                if prompt in trained:
                    yield f"{place}: the evaluation question is in the training data: {trained[prompt]}"
                elif prompt in seen and not seen[prompt].startswith(f"{files[name]}:"):
                    yield f"{place}: the question is in both evaluation sets: {seen[prompt]}"
                seen.setdefault(prompt, place)


def _prompts(row: Row) -> Iterator[str]:
    """What is asked, with white space evened out."""
    prompt = row.get("prompt")
    if isinstance(prompt, list):
        yield " ".join(str(message.get("content", "")) for message in prompt if isinstance(message, dict))
    elif isinstance(prompt, str):
        yield " ".join(prompt.split())
