"""Checks whether preference pairs are fit to be trained on: reads the rows, measures, and has each figure judged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from statistics import fmean, stdev
from typing import Any, Final, Literal

from scipy.stats import beta, spearmanr

from realign_cluster.curation.decontaminate import EvaluationSet, decontaminate
from realign_cluster.curation.deduplicate import deduplicate
from realign_cluster.curation.pair_report import Check, Gap, Leak, LengthBias, PairLimits, PairReport
from realign_cluster.curation.pair_verdicts import (
    judge_contamination,
    judge_duplicates,
    judge_gap,
    judge_leakage,
    judge_length_bias,
    judge_none_of,
    judge_number,
)
from realign_cluster.curation.words import plain_text, words_of
from realign_cluster.domain.rows import BadField, lookup
from realign_cluster.domain.training_rows import canonical_row

CONFIDENCE: Final = 0.95
LIMITS: Final = PairLimits()


@dataclass(slots=True, kw_only=True)
class _Read:
    """Pairs as texts, by row number (from 1), and the rows that are none."""

    texts: dict[int, tuple[str, str, str]] = field(default_factory=dict)  # prompt, chosen, rejected
    unreadable: dict[int, str] = field(default_factory=dict)
    empty: dict[int, str] = field(default_factory=dict)  # the field
    identical: list[int] = field(default_factory=list)


def check_pairs(
    rows: Sequence[Mapping[str, Any]],
    *,
    gaps: Sequence[float | None] | None = None,
    scorer: str = "",
    evaluation_sets: Sequence[EvaluationSet] = (),
    other_splits: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    group_field: str = "group",
    limits: PairLimits = LIMITS,
) -> PairReport:
    """`rows` hold prompt, chosen and rejected, in TRL's forms. `gaps`: of each row score chosen - score rejected, None
    where it is undefined, by `scorer`; those of rows that are no pairs do not count. `other_splits`: what must share no
    prompt and no group with these rows.
    """
    read = _read(rows)
    numbers = list(read.texts)
    scored = None if gaps is None else {row: gaps[row - 1] for row in numbers}
    gap = _gap(scored, scorer)
    length = _length_bias(read, scored)
    duplicates = deduplicate(["\n".join(read.texts[row]) for row in numbers])
    found = decontaminate([read.texts[row] for row in numbers], evaluation_sets) if evaluation_sets else None
    leaks = None if other_splits is None else find_leaks(rows, other_splits, group_field)
    checks = (
        judge_number(len(numbers), limits.pairs),
        judge_none_of("readable", read.unreadable, "rows are no preference pairs"),
        judge_none_of("empty fields", read.empty, "rows have an empty field"),
        judge_none_of("identical", dict.fromkeys(read.identical, ""), "rows choose the answer that they reject"),
        judge_duplicates(duplicates, numbers, limits.near_duplicate_fraction),
        _contradictions(read),
        judge_gap(gap, scored, limits.gap),
        judge_length_bias(length, limits.length_bias),
        judge_contamination(found, numbers, limits.clean_fraction),
        judge_leakage(leaks),
    )
    return PairReport(
        pairs=len(numbers),
        checks=checks,
        gap=gap,
        length=length,
        duplicates=duplicates,
        decontamination=found,
        leaks=leaks or (),
    )


def _read(rows: Sequence[Mapping[str, Any]]) -> _Read:
    read = _Read()
    for number, row in enumerate(rows, start=1):
        texts = {name: plain_text(row.get(name)) for name in ("prompt", "chosen", "rejected")}
        empty = [name for name, text in texts.items() if text is not None and not text.strip()]
        if empty:
            read.empty[number] = empty[0]
        elif texts["chosen"] is not None and row["chosen"] == row.get("rejected"):
            read.identical.append(number)
        else:
            try:
                pair = canonical_row(row, "preference")
            except BadField as error:
                read.unreadable[number] = str(error)
                continue
            prompt, chosen, rejected = (plain_text(pair[name]) or "" for name in ("prompt", "chosen", "rejected"))
            if chosen.strip() == rejected.strip():
                read.identical.append(number)
            else:
                read.texts[number] = (prompt, chosen, rejected)
    return read


def _contradictions(read: _Read) -> Check:
    """Pairs that choose what another pair of the same prompt rejects in favour of it."""
    rows_of: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for row, texts in read.texts.items():
        rows_of[texts].append(row)
    faulty = {
        row: f"row {rows_of[prompt, rejected, chosen][0]} chooses the other answer"
        for row, (prompt, chosen, rejected) in read.texts.items()
        if (prompt, rejected, chosen) in rows_of
    }
    return judge_none_of("contradictions", faulty, "pairs are there in both directions")


def _gap(gaps: Mapping[int, float | None] | None, scorer: str) -> Gap | None:
    known = [gap for gap in (gaps or {}).values() if gap is not None]
    if not known:
        return None
    return Gap(
        scorer=scorer,
        pairs=len(known),
        mean=fmean(known),
        standard_error=stdev(known) / sqrt(len(known)) if len(known) > 1 else None,
        reversed_fraction=sum(gap < 0 for gap in known) / len(known),
    )


def _length_bias(read: _Read, gaps: Mapping[int, float | None] | None) -> LengthBias | None:
    lengths = {row: (len(words_of(chosen)), len(words_of(other))) for row, (_, chosen, other) in read.texts.items()}
    if not lengths:
        return None
    unequal = [chosen > rejected for chosen, rejected in lengths.values() if chosen != rejected]
    longer = sum(unequal)
    right = max(longer, len(unequal) - longer)
    scored = [(row, gap) for row, gap in (gaps or {}).items() if gap is not None]
    differences = [lengths[row][0] - lengths[row][1] for row, _ in scored]
    varied = len(set(differences)) > 1 and len({gap for _, gap in scored}) > 1
    return LengthBias(
        mean_chosen_words=fmean(chosen for chosen, _ in lengths.values()),
        mean_rejected_words=fmean(rejected for _, rejected in lengths.values()),
        unequal=len(unequal),
        longer_chosen=longer,
        predicted=right / len(unequal) if unequal else 0.5,
        # two rules were tried: half of the error for each
        bound=float(beta.ppf((1 - CONFIDENCE) / 2, right, len(unequal) - right + 1)) if right else 0.0,
        correlation=float(spearmanr(differences, [gap for _, gap in scored])[0]) if varied else None,
    )


def find_leaks(
    rows: Sequence[Mapping[str, Any]], others: Mapping[str, Sequence[Mapping[str, Any]]], group_field: str
) -> tuple[Leak, ...]:
    """Prompts (by their words) and group keys that are in `rows` and in another split; each row at most once a kind
    and split.
    """
    leaks = []
    for split, other_rows in others.items():
        for kind, key in (("content", _prompt_words), ("group", lambda row: _group(row, group_field))):
            first: dict[Any, int] = {}
            for number, row in enumerate(other_rows, start=1):
                if (found := key(row)) is not None:
                    first.setdefault(found, number)
            for number, row in enumerate(rows, start=1):
                found = key(row)
                if found is not None and found in first:
                    what = " ".join(found)[:80] if kind == "content" else str(found)
                    leak: Literal["content", "group"] = "content" if kind == "content" else "group"
                    leaks.append(Leak(row=number, split=split, other=first[found], kind=leak, what=what))
    return tuple(leaks)


def _prompt_words(row: Mapping[str, Any]) -> tuple[str, ...] | None:
    try:
        pair = canonical_row(row, "preference")
    except BadField:
        pair = dict(row)
    return words_of(plain_text(pair.get("prompt")) or "") or None


def _group(row: Mapping[str, Any], group_field: str) -> str | None:
    value = lookup(row, group_field)
    return str(value) if isinstance(value, str | int) and value != "" else None
