"""Evaluation items in training data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from realign_cluster.curation.decontaminate import (
    VARIANTS,
    Decontamination,
    Variant,
    decontaminate,
    refuse_if_contaminated,
)
from realign_cluster.store.whole_files import read_rows
from realign_cluster.training_metrics.inputs import Paths, evaluation_sets_of, paths_of, texts_of


def contamination(
    path: Paths,
    evaluation_sets: Mapping[str, Paths],
    *,
    fields: Sequence[str] = ("prompt", "response", "completion", "chosen", "rejected", "messages", "text"),
    evaluation_fields: Sequence[str] = ("prompt",),
    variants: Sequence[Variant] = VARIANTS,
    refuse: bool = False,
) -> Decontamination:
    """Which training rows hold evaluation items, by which of the variants; rows and items are indexes from 0.

    `fields` are those that a row may have, `evaluation_fields` what of an item must not have been seen. With `refuse`
    the first finding raises UsageError with the rows, instead of leaving it to the caller to drop them.
    """
    rows = read_rows(*paths_of(path))
    texts = [texts_of(row, fields) for row in rows]
    found = decontaminate(texts, evaluation_sets_of(evaluation_sets, evaluation_fields), variants=variants)
    if refuse:
        refuse_if_contaminated(found, where=", ".join(str(each) for each in paths_of(path)))
    return found
