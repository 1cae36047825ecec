"""Canary rows, scored alone and batched: some models' scores change with padding, and some builds compute wrongly.

Computes what the coordinator compares; the comparison and its bounds are in domain.canary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from realign_cluster.scoring.encode import Scored
from realign_cluster.scoring.generate import Generator
from realign_cluster.scoring.kinds.base import completion_scores
from realign_cluster.scoring.router import RouterMargin, watch_routers
from realign_cluster.scoring.scorer import Scorer
from realign_cluster.scoring.segments import plan_segments

REPLAYED_TOKENS = 16


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
    it repeats. Where the job draws answers, `generate` compares reading with drawing: see `replay_canaries`.
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
    if scorer.generator is not None and rows:
        reader = scorer.for_kinds(scorer.job.model_copy(update={"kinds": ("loglik",)}))
        for of_rows, replayed in zip((alone, batched), replay_canaries(reader, scorer.generator, rows), strict=True):
            for of_row, found in zip(of_rows, replayed, strict=True):
                of_row["generate"] = found
    return Canaries(
        alone=tuple(alone), batched=tuple(batched), tokens=tuple(tokens), tokens_per_byte=tokens_per_byte(scorer, rows)
    )


def replay_canaries(
    scorer: Scorer, generator: Generator, rows: Sequence[bytes]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The first tokens of each row's response: read alone, and a token at a time in one batch, as answers are drawn.

    `scorer` is of the kind loglik. What it refuses is left out of both: {} in its place.
    """
    alone: list[dict[str, Any]] = [{} for _ in rows]
    together: list[dict[str, Any]] = [{} for _ in rows]
    answers: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    for at, prepared in enumerate(scorer.prepare(rows).rows):
        for scored in prepared.sequences.get("log-probability", ())[:1]:
            if scored.spans:
                start, end = scored.spans[0]
                cut = min(end, start + REPLAYED_TOKENS)
                answers[at] = scored.ids[:start], scored.ids[start:cut]
                values = np.zeros(cut - start, dtype=np.float32)
                head = Scored(ids=scored.ids[:cut], spans=((start, cut),))
                scorer.forward.run(plan_segments([head], 0, 0), values)
                alone[at] = completion_scores(head, values)
    if answers:
        for at, values in zip(answers, generator.replay(list(answers.values())), strict=True):
            together[at] = completion_scores(Scored(ids=(), spans=()), values)
    return alone, together


def tokens_per_byte(scorer: Scorer, rows: Sequence[bytes]) -> float | None:
    """Over the text of the fields that are scored, without special tokens or templates."""
    size = tokens = 0
    for row in rows:
        size += scorer.text_bytes(row)
        tokens += scorer.count_text_tokens(row)
    return tokens / size if size else None
