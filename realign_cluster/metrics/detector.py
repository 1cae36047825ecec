"""How well a verifier tells what is supported from what is not, against labels: its own quality, not the model's rate.

"Positive" is what it raises an alarm for. A false positive is an alarm at an item that is fine. For the detector of
hallucinations the positive label is "hallucinated", for a verifier of attribution "supported": the caller says which by
what it passes as `positive`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from realign_cluster.metrics.measured import ItemId, MeanOverItems, mean_over_items


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """`score`: the higher, the more it is thought to be positive. `alarm`: what was decided."""

    item: ItemId
    positive: bool
    alarm: bool
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorQuality:
    """`false_positives` are 0 or 1 for each item whose label is negative, `false_negatives` for each that is positive.

    `auroc`: the chance that a positive scores above a negative, ties half; None if one of them is missing.
    """

    false_positives: MeanOverItems
    false_negatives: MeanOverItems
    auroc: float | None


def detector_quality(items: Sequence[Labelled]) -> DetectorQuality:
    return DetectorQuality(
        false_positives=mean_over_items(
            "false-positive rate", "alarms / negatives",
            ((one.item, float(one.alarm)) for one in items if not one.positive),
        ),
        false_negatives=mean_over_items(
            "false-negative rate", "no alarm / positives",
            ((one.item, float(not one.alarm)) for one in items if one.positive),
        ),
        auroc=auroc([one.score for one in items if one.positive], [one.score for one in items if not one.positive]),
    )  # fmt: skip


def auroc(positives: Sequence[float], negatives: Sequence[float]) -> float | None:
    """Area under the ROC curve as the Mann-Whitney statistic over the number of pairs, mid-ranks for ties."""
    if not len(positives) or not len(negatives):
        return None
    scores = np.concatenate([np.asarray(positives, dtype=np.float64), np.asarray(negatives, dtype=np.float64)])
    if np.isnan(scores).any():
        raise ValueError("a score is not a number: it has no rank")
    ranks = rankdata(scores)[: len(positives)]
    pairs_won = float(ranks.sum()) - len(positives) * (len(positives) + 1) / 2
    return pairs_won / (len(positives) * len(negatives))
