"""How far two computations of the same scores may be apart, field by field.

The bounds are the contract's, in nats per token, and are carried through to sums, ratios and probabilities. A field of
another name that holds a number counts as nats per token. Must not know nodes or reports.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

FLOAT32_NATS_PER_TOKEN = 1e-3
SIXTEEN_BIT_NATS_PER_TOKEN = 0.02  # 16-bit and quantised
ROUTER_MARGIN = 1e-4  # below it a mixture may route a token otherwise: listed, not asserted


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldDifference:
    """`bound` is None where the two must be equal (counts, flags, labels, what is undefined)."""

    kind: str
    field: str
    left: Any
    right: Any
    difference: float | None
    bound: float | None


def tolerance_of(dtype: str) -> float:
    """Nats per token that two correct computations may differ by."""
    return FLOAT32_NATS_PER_TOKEN if dtype in ("float32", "float64") else SIXTEEN_BIT_NATS_PER_TOKEN


def differences(
    left: Mapping[str, Any], right: Mapping[str, Any], *, nats_per_token: float, tokens: int
) -> tuple[FieldDifference, ...]:
    """Every field of two `scores` objects that is further apart than it may be. `tokens`: scored tokens of the row,
    used where an object does not carry its own count.
    """
    found: list[FieldDifference] = []
    for kind in sorted(set(left) | set(right)):
        one, other = left.get(kind), right.get(kind)
        if kind == "error":  # the whole row was refused: what counts is the code, a message may name sizes
            one, other = _code(one), _code(other)
        found.extend(_compare(kind, "", one, other, nats_per_token, max(tokens, 1)))
    return tuple(found)


def _compare(kind: str, path: str, left: Any, right: Any, nats: float, tokens: int) -> Iterator[FieldDifference]:
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        if path.endswith("probabilities"):
            yield from _probabilities(kind, path, left, right, nats * _label_tokens(left, tokens))
            return
        for field in sorted(set(left) | set(right)):
            if field == "label" and "probabilities" in left and "probabilities" in right:
                yield from _label(kind, path, left, right, nats * _label_tokens(left["probabilities"], tokens))
                continue
            inner = f"{path}.{field}" if path else field
            if field in left and field in right and _is_number(left[field]) and _is_number(right[field]):
                bound = field_bound(kind, field, left, right, nats=nats, tokens=tokens)
                yield from _numbers(kind, inner, left[field], right[field], bound)
            else:
                own = left.get("tokens")
                count = own if isinstance(own, int) and own > 0 else tokens
                yield from _compare(kind, inner, left.get(field), right.get(field), nats, count)
        return
    if _is_number(left) and _is_number(right):
        yield from _numbers(kind, path, left, right, nats)
        return
    yield from _unequal(kind, path, left, right)


def field_bound(
    kind: str, field: str, left: Mapping[str, Any], right: Mapping[str, Any], *, nats: float, tokens: int
) -> float | None:
    """Largest allowed difference of `field`; None: must be equal. `nats` is per token."""
    own = left.get("tokens")
    count = own if isinstance(own, int) and not isinstance(own, bool) and own > 0 else tokens
    match field:
        case "tokens" | "truncated" | "version" | "row" | "chunks" | "prompt_tokens":
            return None
        case "sum":
            return nats * count
        case "margin_sum":
            return nats * (_tokens_of(left, "chosen", tokens) + _tokens_of(left, "rejected", tokens))
        case "margin_mean":
            return 2 * nats
        case "value" if kind == "ifd":
            return _ratio_bound(left, right, nats)
        case "value" if kind == "ifd-ppl":
            # exp of a difference of two means, each off by at most `nats`
            return max(float(left["value"]), float(right["value"])) * math.expm1(2 * nats)
        case _:
            return nats


def _ratio_bound(left: Mapping[str, Any], right: Mapping[str, Any], nats: float) -> float:
    """Of conditioned / alone with each off by at most `nats`: (c + t) / (a - t) - c / a, infinite where a <= t."""
    alone = min(_number(left.get("nll_alone")), _number(right.get("nll_alone")))
    conditioned = max(_number(left.get("nll_conditioned")), _number(right.get("nll_conditioned")))
    if not alone > nats:
        return math.inf
    return (conditioned + nats) / (alone - nats) - conditioned / alone


def _probabilities(
    kind: str, path: str, left: Mapping[str, Any], right: Mapping[str, Any], nats_per_label: float
) -> Iterator[FieldDifference]:
    """Softmax over labels whose log-probabilities are each off by at most `nats_per_label`: the odds move by exp(2
    x that).
    """
    for label in sorted(set(left) | set(right)):
        inner = f"{path}.{label}"
        one, other = left.get(label), right.get(label)
        if _is_number(one) and _is_number(other):
            bound = max(probability_bound(float(one), nats_per_label), probability_bound(float(other), nats_per_label))
            yield from _numbers(kind, inner, one, other, bound)
        else:
            yield from _unequal(kind, inner, one, other)


def probability_bound(probability: float, nats_per_label: float) -> float:
    """Largest change of a probability when the log-odds move by twice `nats_per_label`."""
    odds = math.exp(min(2 * nats_per_label, 700.0))
    up = probability * odds / (1 - probability + probability * odds) - probability
    down = probability - probability / (probability + (1 - probability) * odds) if probability > 0 else 0.0
    return max(up, down, 1e-12)


def _label(
    kind: str, path: str, left: Mapping[str, Any], right: Mapping[str, Any], nats_per_label: float
) -> Iterator[FieldDifference]:
    """The labels may differ only where the two best are closer than their bounds."""
    if left.get("label") == right.get("label"):
        return
    probabilities = left["probabilities"]
    if (
        isinstance(probabilities, Mapping)
        and left.get("label") in probabilities
        and right.get("label") in probabilities
    ):
        mine, other = probabilities[left["label"]], probabilities[right["label"]]
        if _is_number(mine) and _is_number(other):
            slack = probability_bound(float(mine), nats_per_label) + probability_bound(float(other), nats_per_label)
            if abs(mine - other) <= slack:
                return
    field = f"{path}.label" if path else "label"
    yield from _unequal(kind, field, left.get("label"), right.get("label"))


def _numbers(kind: str, path: str, left: float, right: float, bound: float | None) -> Iterator[FieldDifference]:
    if bound is None:
        yield from _unequal(kind, path, left, right)
        return
    if not (math.isfinite(left) and math.isfinite(right)):
        yield FieldDifference(kind=kind, field=path, left=left, right=right, difference=None, bound=bound)
        return
    difference = abs(left - right)
    if difference > bound:
        yield FieldDifference(kind=kind, field=path, left=left, right=right, difference=difference, bound=bound)


def _unequal(kind: str, path: str, left: Any, right: Any) -> Iterator[FieldDifference]:
    if left != right:
        yield FieldDifference(kind=kind, field=path, left=left, right=right, difference=None, bound=None)


def _label_tokens(probabilities: Any, tokens: int) -> int:
    """At most this many tokens of a label: one per byte and a leading space, and no more than were scored in the
    row.
    """
    if not isinstance(probabilities, Mapping):
        return tokens
    return max(1, min(tokens, 1 + max((len(str(label).encode()) for label in probabilities), default=1)))


def _tokens_of(scores: Mapping[str, Any], part: str, otherwise: int) -> int:
    inner = scores.get(part)
    tokens = inner.get("tokens") if isinstance(inner, Mapping) else None
    return tokens if isinstance(tokens, int) and tokens > 0 else otherwise


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> float:
    return float(value) if _is_number(value) else math.nan


def _code(error: Any) -> Any:
    return error.get("code") if isinstance(error, Mapping) else error
