"""Several looks, attempts or comparisons, and what each may then claim."""

from __future__ import annotations

from collections.abc import Sequence


def split_alpha(alpha: float, attempts: int) -> float:
    """The error each of so many attempts may have, so that together they have `alpha` (Bonferroni). Only for attempts
    on the same items: each on a fresh hold-out keeps all of alpha.
    """
    if attempts < 1:
        raise ValueError("at least one attempt")
    return alpha / attempts


def holm(p_values: Sequence[float], alpha: float = 0.05) -> tuple[bool, ...]:
    """Which hypotheses are rejected, in the order given (Holm 1979): family-wise error `alpha` whatever the dependence.
    Only where any one of several improvements is enough; where all are needed, each is tested at alpha as it is.
    """
    rejected = [False] * len(p_values)
    for rank, at in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        if p_values[at] > alpha / (len(p_values) - rank):
            break
        rejected[at] = True
    return tuple(rejected)
