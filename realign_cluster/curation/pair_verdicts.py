"""The verdict of each check of preference pairs: from what was measured to passed, failed or undefined, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from realign_cluster.curation.decontaminate import Decontamination
from realign_cluster.curation.deduplicate import Deduplicated
from realign_cluster.curation.pair_report import Check, CheckName, Gap, Leak, LengthBias, Status

LISTED_ROWS: Final = 100


def judge_number(pairs: int, least: int) -> Check:
    status: Status = "passed" if pairs >= least else "failed"
    reason = f"{pairs:,} pairs, at least {least:,} are wanted"
    return Check(name="enough pairs", status=status, reason=reason, value=pairs, threshold=least, unit="pairs")


def judge_none_of(name: CheckName, faulty: Mapping[int, str], what: str) -> Check:
    if not faulty:
        return Check(name=name, status="passed", reason=f"no {what}", value=0, threshold=0, unit="rows")
    first, why = next(iter(faulty.items()))
    return Check(
        name=name,
        status="failed",
        reason=f"{len(faulty):,} {what}, the first is row {first}{f': {why}' if why else ''}",
        value=len(faulty),
        threshold=0,
        unit="rows",
        rows=tuple(faulty)[:LISTED_ROWS],
    )


def judge_duplicates(found: Deduplicated, numbers: Sequence[int], largest_near: float | None) -> Check:
    exact = [numbers[each.index] for each in found.duplicates if each.kind == "exact"]
    near = [numbers[each.index] for each in found.duplicates if each.kind == "near"]
    share = len(near) / found.texts if found.texts else 0.0
    too_near = largest_near is not None and share > largest_near
    allowed = "" if largest_near is None else f", {largest_near:.1%} may be"
    return Check(
        name="duplicates",
        status="failed" if exact or too_near else "passed",
        reason=f"{len(exact):,} exact and {len(near):,} near duplicates of {found.texts:,} pairs ({share:.1%} near"
        f"{allowed})",
        value=float(len(exact)),
        threshold=0,
        unit="pairs",
        rows=tuple(exact + (near if too_near else []))[:LISTED_ROWS],
    )


def judge_gap(gap: Gap | None, gaps: Mapping[int, float | None] | None, least: float) -> Check:
    if gap is None:
        reason = "no scorer was named" if gaps is None else "no pair has a score"
        return Check(name="gap", status="undefined", reason=reason, threshold=least)
    without = [row for row, each in (gaps or {}).items() if each is None]
    about = "" if gap.standard_error is None else f" (standard error {gap.standard_error:.3f})"
    missing = f"; {len(without):,} pairs have no score" if without else ""
    return Check(
        name="gap",
        status="passed" if gap.mean >= least else "failed",
        reason=f"{gap.mean:.3f}{about} over {gap.pairs:,} pairs by {gap.scorer}, at least {least:g} is wanted; "
        f"{gap.reversed_fraction:.1%} are scored the other way round{missing}",
        value=gap.mean,
        threshold=least,
        unit=gap.scorer,
        rows=tuple(without)[:LISTED_ROWS],
    )


def judge_length_bias(length: LengthBias | None, largest: float) -> Check:
    if length is None:
        return Check(name="length bias", status="undefined", reason="there are no pairs", threshold=largest)
    side = "longer" if 2 * length.longer_chosen >= length.unequal else "shorter"
    return Check(
        name="length bias",
        status="failed" if length.bound > largest else "passed",
        reason=f"of {length.unequal:,} pairs of unequal length {length.predicted:.1%} choose the {side} answer (at "
        f"least {length.bound:.1%} with 95 % confidence, {largest:.0%} may be); on average "
        f"{length.mean_chosen_words:.1f} words are chosen, {length.mean_rejected_words:.1f} rejected",
        value=length.predicted,
        threshold=largest,
        unit="fraction of pairs",
    )


def judge_contamination(found: Decontamination | None, numbers: Sequence[int], least: float) -> Check:
    if found is None or found.clean_fraction is None:
        reason = "no evaluation set was given" if found is None else "there are no pairs"
        return Check(name="contamination", status="undefined", reason=reason, threshold=least)
    variants = [f"{count:,} by {name}" for each in found.sets for name, count in each.by_variant().items() if count]
    by = f" ({', '.join(variants)})" if variants else ""
    return Check(
        name="contamination",
        status="passed" if found.clean_fraction >= least else "failed",
        reason=f"{found.clean_fraction:.1%} of the pairs hold no evaluation item{by}, at least {least:.0%} is wanted",
        value=found.clean_fraction,
        threshold=least,
        unit="fraction of pairs",
        rows=tuple(numbers[row] for row in found.dropped)[:LISTED_ROWS],
    )


def judge_leakage(leaks: tuple[Leak, ...] | None) -> Check:
    if leaks is None:
        return Check(name="leakage", status="undefined", reason="no other split was given", threshold=0, unit="rows")
    if not leaks:
        reason = "no prompt and no group is in another split"
        return Check(name="leakage", status="passed", reason=reason, value=0, threshold=0, unit="rows")
    rows = sorted({leak.row for leak in leaks})
    first = leaks[0]
    return Check(
        name="leakage",
        status="failed",
        reason=f"{len(rows):,} rows share a prompt or a group with another split, the first is row {first.row}: "
        f"{first.kind} of row {first.other} of {first.split}: {first.what}",
        value=len(rows),
        threshold=0,
        unit="rows",
        rows=tuple(rows)[:LISTED_ROWS],
    )
