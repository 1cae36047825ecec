"""Whether the same question is attributed alike: in two samples of one prompt, or in two citation formats.

Agreement of two sets of cited sources is their Jaccard index, |both| / |either|, from 0 to 1. Where neither cites
anything there is nothing to agree on: undefined.
"""

from __future__ import annotations

from collections.abc import Iterable, Set

from realign_cluster.metrics.measured import ItemId, MeanOverItems, SourceId, mean_over_items


def agreement(first: Set[SourceId], second: Set[SourceId]) -> float | None:
    either = first | second
    return len(first & second) / len(either) if either else None


def attribution_consistency(pairs: Iterable[tuple[ItemId, Set[SourceId], Set[SourceId]]]) -> MeanOverItems:
    """Mean over prompts of the agreement of the sources that two answers to each cite."""
    return mean_over_items(
        "attribution consistency", "sources cited by both / by either, mean over prompts",
        ((item, agreement(first, second)) for item, first, second in pairs),
    )  # fmt: skip
