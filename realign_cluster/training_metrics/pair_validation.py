"""Whether a file of preference pairs is fit to be trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from realign_cluster.curation.pair_checks import check_pairs
from realign_cluster.curation.pair_report import PairLimits, PairReport
from realign_cluster.domain.job import KIND_VERSION, Chat, Fields
from realign_cluster.domain.rows import BadField, RowCheck, lookup
from realign_cluster.store.model_files import describe_model
from realign_cluster.store.whole_files import FileRow, read_rows
from realign_cluster.training_metrics.inputs import Paths, evaluation_sets_of, paths_of
from realign_cluster.training_metrics.scoring import request_for, score_rows


def validate_dpo_pairs(
    path: Paths,
    gap_threshold: float = 0.15,
    *,
    least_pairs: int = 1000,
    model: str | Path | None = None,
    score_fields: tuple[str, str] = ("score_chosen", "score_rejected"),
    evaluation_sets: Mapping[str, Paths] | None = None,
    evaluation_fields: Sequence[str] = ("prompt",),
    least_clean_fraction: float = 0.9,
    other_splits: Mapping[str, Paths] | None = None,
    group_field: str = "group",
    largest_length_bias: float = 0.7,
    near_duplicate_fraction: float | None = None,
    chat: Chat = "auto",
    max_tokens: int = 2048,
    hostfile: str | Path | None = None,
) -> PairReport:
    """Checks preference pairs ({"prompt", "chosen", "rejected"}, in TRL's forms): gap, number, duplicates, identical
    and empty answers, contradictions, length bias, contamination, leakage between splits.

    The scorer of the gap is named in the report: with `model` the mean log-likelihood per token of chosen and rejected
    under it (score `preference`, margin_mean, nats per token); without, what the rows hold in `score_fields`. Where
    there is neither, the gap is undefined, and the report does not pass. Row numbers count from 1.
    """
    rows = read_rows(*paths_of(path))
    values = [row.value for row in rows]
    gaps: list[float | None] | None
    if model is not None:
        gaps, scorer = _margins(rows, model, chat, max_tokens, hostfile)
    else:
        gaps, scorer = _given_gaps(rows, score_fields)
    return check_pairs(
        values,
        gaps=gaps,
        scorer=scorer,
        evaluation_sets=evaluation_sets_of(evaluation_sets or {}, evaluation_fields),
        other_splits={name: [row.value for row in read_rows(*paths_of(each))] for name, each in other_splits.items()}
        if other_splits
        else None,
        group_field=group_field,
        limits=PairLimits(
            gap=gap_threshold,
            pairs=least_pairs,
            clean_fraction=least_clean_fraction,
            length_bias=largest_length_bias,
            near_duplicate_fraction=near_duplicate_fraction,
        ),
    )


def _given_gaps(rows: Sequence[FileRow], fields: tuple[str, str]) -> tuple[list[float | None] | None, str]:
    """What the rows say themselves; None if no row has a score."""
    gaps: list[float | None] = []
    for row in rows:
        scores = [lookup(row.value, field) for field in fields]
        numbers = [float(score) for score in scores if isinstance(score, int | float) and not isinstance(score, bool)]
        gaps.append(numbers[0] - numbers[1] if len(numbers) == 2 else None)
    known = any(gap is not None for gap in gaps)
    return (gaps, f"the rows' own {fields[0]} - {fields[1]}") if known else (None, "")


def _margins(
    rows: Sequence[FileRow], model: str | Path, chat: Chat, max_tokens: int, hostfile: str | Path | None
) -> tuple[list[float | None], str]:
    """Of the pairs that can be scored; the checks name the others."""
    request = request_for(("preference",), model, Fields(), chat=chat, max_tokens=max_tokens, hostfile=hostfile)
    check = RowCheck(("preference",), Fields())
    able = []
    for at, row in enumerate(rows):
        try:
            check(row.value)
        except BadField:
            continue
        able.append(at)
    scores, _, computed_by = score_rows([rows[at] for at in able], request) if able else ([], {}, "nobody")
    gaps: list[float | None] = [None] * len(rows)
    for at, found in zip(able, scores, strict=True):
        gaps[at] = None if found is None else found["preference"]["margin_mean"]
    spec = describe_model(model)
    version = KIND_VERSION["preference"]
    return gaps, f"margin_mean of preference v{version} by {spec.name} ({spec.hash[:8]}), nats per token, {computed_by}"
