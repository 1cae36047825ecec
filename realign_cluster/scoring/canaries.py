"""Canary rows, scored alone and batched: some models' scores change with padding, and some builds compute wrongly.

Computes what the coordinator compares; the comparison and its bounds are in domain.canary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import orjson

from realign_cluster.scoring.router import RouterMargin, watch_routers
from realign_cluster.scoring.scorer import Scorer


@dataclass(frozen=True, slots=True, kw_only=True)
class Canaries:
    """`scores` objects per canary row; `tokens` are the scored ones of each. Without canaries `tokens_per_byte` is
    unknown.
    """

    alone: tuple[dict[str, Any], ...]
    batched: tuple[dict[str, Any], ...]
    tokens: tuple[int, ...]
    tokens_per_byte: float | None


def score_canaries(scorer: Scorer, rows: Sequence[bytes], *, mixture: bool) -> Canaries:
    """Each row by itself, then all in one batch. Where a job computes every row alone anyway, the second shows that
    it repeats.
    """
    alone: list[dict[str, Any]] = []
    tokens = []
    for row in rows:
        unit = scorer.prepare([row])
        with watch_routers(scorer.forward.split.model) if mixture else nullcontext(RouterMargin()) as margin:
            scores: dict[str, Any] = orjson.loads(scorer.compute(unit)[0])
        if margin.smallest is not None:
            scores["router_margin"] = margin.smallest  # beside the kinds: see domain.canary
        alone.append(scores)
        tokens.append(sum(prepared.slots for prepared in unit.rows))
    batched = orjson.loads(b"[" + scorer.compute(scorer.prepare(rows))[0].replace(b"\n", b",") + b"]") if rows else []
    return Canaries(
        alone=tuple(alone), batched=tuple(batched), tokens=tuple(tokens), tokens_per_byte=tokens_per_byte(scorer, rows)
    )


def tokens_per_byte(scorer: Scorer, rows: Sequence[bytes]) -> float | None:
    """Over the text of the fields that are scored, without special tokens or templates."""
    size = tokens = 0
    for row in rows:
        size += scorer.text_bytes(row)
        tokens += scorer.count_text_tokens(row)
    return tokens / size if size else None
