"""Whether a measurement clears a gate: PASS, FAIL or INSUFFICIENT, with the bound that says so.

PASS when the one-sided bound clears the threshold, FAIL when the opposite one misses it, else INSUFFICIENT. Nothing
measured is INSUFFICIENT. A wrong PASS has probability alpha at most: `benchmarks/gate_errors.py` counts how often it
happens. Must not know stages, remedies, or who asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from realign_cluster.domain import betting, exact_bounds, judge_error
from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.gate import Bounds, Conjunction, Direction, Gate, Measurement, Outcome, Verdict
from realign_cluster.domain.gate_power import Need, items_to_decide
from realign_cluster.domain.judge_error import VerifierLabels

Numbers = npt.NDArray[np.float64]


def judge_gate(
    gate: Gate,
    measurement: Measurement,
    *,
    labels: VerifierLabels | None = None,
    minutes_per_item: float | None = None,
) -> Verdict:
    """The verdict. `labels`: what people said of the verifier's verdicts; the bound is then one on the rate that
    people would find. `minutes_per_item`: of this cluster, for what INSUFFICIENT would cost. Raises UsageError for a
    measurement of another metric or verifier, values that are not the gate's kind of evidence, and labels for values
    outside [0, 1].
    """
    _check(gate, measurement, labels)
    scores, sizes, outside = scaled(gate, measurement)
    if not scores.size or not sizes.sum():
        return _insufficient(gate, measurement, _nothing(measurement))
    if sizes.max() > 1.0:
        most = sizes.max() * gate.most_units
        why = f"an item has {most:g} units, the gate's bound was made for {gate.most_units:g} at most"
        return _insufficient(gate, measurement, why)
    if labels is not None and (why_not := labels.unusable()):
        return _insufficient(gate, measurement, why_not)
    bounds = _bounds(gate, scores, sizes, labels)
    outcome, reason = compare(gate.direction, gate.threshold, bounds)
    flattered = outside.below if gate.direction == "at least" else outside.above
    blackened = outside.above if gate.direction == "at least" else outside.below
    if (outcome == "PASS" and flattered) or (outcome == "FAIL" and blackened):
        count = flattered if outcome == "PASS" else blackened
        why = f"{count} values are outside {gate.lowest:g} to {gate.highest:g}, for which the bound was made"
        return _insufficient(gate, measurement, why, bounds)
    if outcome != "INSUFFICIENT":
        return _verdict(gate, measurement, outcome, reason, bounds)
    passing = _clears(gate.direction, gate.threshold, bounds.value)
    need = items_to_decide(gate, scores, sizes, labels, passing=passing)
    reason += "; " + need.text(passing=passing)
    reason += " for what is known of the verifier's errors" if labels and need.items is None else ""
    minutes = None if minutes_per_item is None else minutes_per_item * need.count
    reason += "" if minutes is None else f", {minutes:,.0f} minutes here"
    return _verdict(gate, measurement, outcome, reason, bounds, need=need, minutes=minutes)


def compare(direction: Direction, threshold: float, bounds: Bounds) -> tuple[Outcome, str]:
    """Outcome and reason from bounds, however they were made."""
    least = direction == "at least"
    clearing, missing = (bounds.lower, bounds.upper) if least else (bounds.upper, bounds.lower)
    names = ("lower", "upper") if least else ("upper", "lower")
    if _clears(direction, threshold, clearing):
        return "PASS", f"the {names[0]} bound {clearing:.4f} is {direction} {threshold:g}"
    if not _clears(direction, threshold, missing):
        return "FAIL", f"the {names[1]} bound {missing:.4f} is not {direction} {threshold:g}"
    return "INSUFFICIENT", f"the bounds {bounds.lower:.4f} and {bounds.upper:.4f} leave {threshold:g} between them"


def of_look(verdict: Verdict, *, look: int, looks: int) -> Verdict:
    """The same verdict as that of the `look`-th set of items, from 1, `looks` having been declared before the first and
    alpha divided by them. A look beyond has nothing left of alpha: it cannot pass, whatever the bound says.
    """
    reason, outcome = verdict.reason, verdict.outcome
    promised = (  # a PASS by more items
        verdict.items_needed is not None
        and verdict.value is not None
        and _clears(verdict.direction, verdict.threshold, verdict.value)
    )
    if look > looks and outcome == "PASS":
        outcome = "INSUFFICIENT"
        reason += f", but this is look {look} of {looks} declared, by other items: nothing is left of alpha"
    elif look >= looks and promised:
        reason += f"; added to these they make look {look + 1} of {looks} declared, which cannot pass"
    return replace(verdict, look=look, looks=looks, outcome=outcome, reason=reason)


def judge_all(name: str, verdicts: Sequence[Verdict]) -> Conjunction:
    """Gates that must all pass. Each keeps its alpha: the whole passes wrongly only if a part that should not pass
    does, and that one alone has probability alpha at most (an intersection-union test; Berger 1982). FAIL as soon as
    one fails: with k parts a wrong FAIL of the whole has up to k times the probability of one.
    """
    decisive: tuple[Outcome, ...] = ("FAIL", "INSUFFICIENT")
    for outcome in decisive:
        if found := [verdict for verdict in verdicts if verdict.outcome == outcome]:
            reason = "; ".join(f"{verdict.metric}: {verdict.reason}" for verdict in found)
            return Conjunction(name=name, outcome=outcome, parts=tuple(verdicts), reason=reason)
    if not verdicts:
        return Conjunction(name=name, outcome="INSUFFICIENT", parts=(), reason="nothing was judged")
    return Conjunction(name=name, outcome="PASS", parts=tuple(verdicts), reason=f"all {len(verdicts)} pass")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """How many values were clipped, by side."""

    below: int
    above: int


def scaled(gate: Gate, measurement: Measurement) -> tuple[Numbers, Numbers, Outside]:
    """Scores and sizes (n,) with 0 <= score <= size, sizes as parts of `most_units`, in the order in which they are
    bet on: of arrival for looks at any time, else by a hash of the item's name, which nobody chose and no value has a
    part in.
    """
    order = order_of(measurement.items) if gate.looks == "once" else np.arange(len(measurement.items))
    units = np.asarray(measurement.units or np.ones(len(measurement.items)), dtype=np.float64)
    fractions = (np.asarray(measurement.values, dtype=np.float64) - gate.lowest * units) / (gate.highest - gate.lowest)
    slack = 1e-9 * np.maximum(units, 1.0)  # of sums of rounded numbers
    outside = Outside(below=int((fractions < -slack).sum()), above=int((fractions > units + slack).sum()))
    sizes = units / gate.most_units
    return (np.clip(fractions, 0.0, units) / gate.most_units)[order], sizes[order], outside


def order_of(items: Sequence[str]) -> npt.NDArray[np.int64]:
    """The positions of items in the order of a hash of their names."""
    names = [blake2b(item.encode(), digest_size=16).digest() for item in items]
    return np.array(sorted(range(len(names)), key=names.__getitem__), dtype=np.int64)


def _bounds(gate: Gate, scores: Numbers, sizes: Numbers, labels: VerifierLabels | None) -> Bounds:
    alpha = gate.alpha_each
    value = float(scores.sum() / sizes.sum())
    if labels is None:
        lower, upper = _raw_bounds(gate, scores, sizes, alpha)
    else:
        lower, upper = _raw_bounds(gate, scores, sizes, alpha / judge_error.SHARES)
        value = judge_error.corrected_rate(value, labels)
        lower = judge_error.corrected_lower(lower, labels, alpha)
        upper = judge_error.corrected_upper(upper, labels, alpha)
    return Bounds(value=gate.from_fraction(value), lower=gate.from_fraction(lower), upper=gate.from_fraction(upper))


def _raw_bounds(gate: Gate, scores: Numbers, sizes: Numbers, alpha: float) -> tuple[float, float]:
    if gate.evidence == "items" and gate.looks == "once":
        successes = int(scores.sum())
        return (
            exact_bounds.clopper_pearson_lower(successes, scores.size, alpha),
            exact_bounds.clopper_pearson_upper(successes, scores.size, alpha),
        )
    return (
        betting.lower_bound(scores, sizes, alpha=alpha, looks=gate.looks),
        betting.upper_bound(scores, sizes, alpha=alpha, looks=gate.looks),
    )


def _clears(direction: Direction, threshold: float, value: float) -> bool:
    return value >= threshold if direction == "at least" else value <= threshold


def _nothing(measurement: Measurement) -> str:
    if measurement.undefined:
        return f"nothing to judge: undefined on all {measurement.undefined} items"
    return "nothing to judge: no items" if not measurement.items else "nothing to judge: the items have no units"


def _check(gate: Gate, measurement: Measurement, labels: VerifierLabels | None) -> None:
    if gate.metric != measurement.metric:
        raise UsageError(f"gate {gate.metric}: the measurement is of {measurement.metric}")
    if (gate.evidence == "ratio") != bool(measurement.units) and measurement.items:
        having = "" if measurement.units else "no "
        raise UsageError(f"gate {gate.metric}: evidence {gate.evidence!r}, but the items have {having}units")
    if gate.scale != measurement.scale and measurement.items:
        raise UsageError(f"gate {gate.metric}: on scale {gate.scale}, measured on scale {measurement.scale}")
    if gate.evidence == "items" and not set(measurement.values) <= {0.0, 1.0}:
        raise UsageError(f"gate {gate.metric}: a yes/no item has another value than 0 and 1", 'evidence "scores"')
    if any(unit < 0 for unit in measurement.units):
        raise UsageError(f"gate {gate.metric}: an item has fewer than 0 units")
    if labels is None:
        return
    if labels.verifier != measurement.verifier:
        raise UsageError(
            f"gate {gate.metric}: measured by {measurement.verifier or 'none'}, labels of {labels.verifier or 'none'}",
            "label what the verifier in use says",
        )
    if (gate.lowest, gate.highest, gate.scale) != (0.0, 1.0, "plain"):
        raise UsageError(f"gate {gate.metric}: a verifier's errors are those of a rate, in [0, 1]")


def _insufficient(gate: Gate, measurement: Measurement, reason: str, bounds: Bounds | None = None) -> Verdict:
    return _verdict(gate, measurement, "INSUFFICIENT", reason, bounds)


def _verdict(
    gate: Gate,
    measurement: Measurement,
    outcome: Outcome,
    reason: str,
    bounds: Bounds | None,
    *,
    need: Need | None = None,
    minutes: float | None = None,
) -> Verdict:
    least = gate.direction == "at least"
    return Verdict(
        metric=gate.metric,
        outcome=outcome,
        direction=gate.direction,
        threshold=gate.threshold,
        value=None if bounds is None else bounds.value,
        bound=None if bounds is None else bounds.lower if least else bounds.upper,
        opposite_bound=None if bounds is None else bounds.upper if least else bounds.lower,
        items=len(measurement.items),
        undefined=measurement.undefined,
        alpha_each=gate.alpha_each,
        verifier=measurement.verifier,
        dataset=measurement.dataset,
        reason=reason,
        items_needed=None if need is None else need.items,
        undecidable_below=None if need is None else need.undecidable_below,
        minutes_needed=minutes,
    )
