"""How far two judges say the same of the same items: the fraction, and Cohen's kappa, which takes out chance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from realign_cluster.metrics.measured import ItemId, MeanOverItems, mean_over_items


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """`same` is 0 or 1 for each item. `kappa` = (observed - expected) / (1 - expected), at most 1; None without items,
    or where both always say one and the same thing.
    """

    same: MeanOverItems
    kappa: float | None


def agreement_of(judged: Sequence[tuple[ItemId, Hashable, Hashable]]) -> Agreement:
    same = mean_over_items(
        "agreement", "items judged alike / items", ((item, float(first == second)) for item, first, second in judged)
    )
    if same.value is None:
        return Agreement(same=same, kappa=None)
    firsts, seconds = Counter(first for _, first, _ in judged), Counter(second for _, _, second in judged)
    products = sum(count * seconds[label] for label, count in firsts.items())
    pairs = len(judged) ** 2
    if products == pairs:
        return Agreement(same=same, kappa=None)
    return Agreement(same=same, kappa=(same.value - products / pairs) / (1 - products / pairs))
