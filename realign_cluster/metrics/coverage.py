"""How much of what an answer claims is attributed at all: claims with a citation that leads somewhere / claims, pooled.

Says nothing of whether the citation is right, so it is gamed by citing everything: never shown without precision.
"""

from __future__ import annotations

from collections.abc import Iterable

from realign_cluster.metrics.measured import PooledRatio, pooled_ratio
from realign_cluster.metrics.reading import ReadAnswer


def attribution_coverage(answers: Iterable[ReadAnswer]) -> PooledRatio:
    """An answer without a claim worth checking is undefined: it counts nothing."""
    return pooled_ratio(
        "attribution coverage", "claims with a resolvable citation / claims",
        (
            (answer.item, sum(any(s is not None for s in claim.sources) for claim in answer.claims), len(answer.claims))
            for answer in answers
        ),
    )  # fmt: skip
