"""From what a caller names (files, texts, evaluation sets) to rows and texts, with file and line in every error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from realign_cluster.curation.decontaminate import EvaluationSet
from realign_cluster.curation.words import field_texts
from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.job import Fields
from realign_cluster.domain.rows import BadField, RowCheck, lookup
from realign_cluster.store.whole_files import FileRow, read_rows

Paths = str | Path | Sequence[str | Path]


def paths_of(paths: Paths) -> tuple[str | Path, ...]:
    return (paths,) if isinstance(paths, str | Path) else tuple(paths)


def texts_of(row: FileRow, fields: Sequence[str]) -> tuple[str, ...]:
    try:
        return field_texts(row.value, fields)
    except BadField as error:
        raise UsageError(f"{row.where}: {error}", "name the fields that hold the text") from error


def evaluation_sets_of(sets: Mapping[str, Paths], fields: Sequence[str]) -> list[EvaluationSet]:
    return [
        EvaluationSet(name=name, items=tuple(texts_of(row, fields) for row in read_rows(*paths_of(paths))))
        for name, paths in sets.items()
    ]


def prompts_of(prompts: Paths | Sequence[str], field: str) -> list[Any]:
    """Texts as they are given, or what the rows of a file hold: texts or messages."""
    if not isinstance(prompts, str | Path):
        if not prompts or not all(isinstance(each, str) for each in prompts):
            raise UsageError("the prompts are no texts", "give a file, or at least one text")
        return list(prompts)
    check = RowCheck(("loglik",), Fields(prompt=field, response=field))
    found = []
    for row in read_rows(prompts):
        try:
            check(row.value)
        except BadField as error:
            raise UsageError(f"{row.where}: {error}", "name the field: prompt_field=...") from error
        found.append(lookup(row.value, field))
    return found
