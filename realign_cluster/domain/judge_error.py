"""A verifier that errs: from the rate it reports to the rate a human would find, with the doubt about its errors in the
bound.

Two ways. Rogan and Gladen (1978) need labels of the verifier's errors, which may come from other items than those
measured, if it errs alike on both. Prediction-powered inference (Angelopoulos et al. 2023) needs labels on a random
part of the items themselves and assumes nothing about the errors. Bounds of several quantities share alpha
(Bonferroni), so they hold without a normal approximation, and are wider than such an approximation would be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from realign_cluster.domain.betting import lower_bound, upper_bound
from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.exact_bounds import clopper_pearson_lower, clopper_pearson_upper

FEWEST_LABELS: Final = 200
LEAST_DISCRIMINATION: Final = 0.3
SHARES: Final = 3  # of alpha: the reported rate, sensitivity, specificity


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifierLabels:
    """What a verifier said where people said what is true. "Positive" is what the metric counts: supported claims for
    factuality, hallucinated ones for a hallucination rate. Labelled items must be independent of each other and of
    those measured.
    """

    verifier: str  # fingerprint
    true_positives: int
    false_negatives: int
    true_negatives: int
    false_positives: int

    def __post_init__(self) -> None:
        if min(self.true_positives, self.false_negatives, self.true_negatives, self.false_positives) < 0:
            raise UsageError("labels of a verifier: counts below zero")

    @property
    def labels(self) -> int:
        return self.positives + self.negatives

    @property
    def positives(self) -> int:
        return self.true_positives + self.false_negatives

    @property
    def negatives(self) -> int:
        return self.true_negatives + self.false_positives

    @property
    def sensitivity(self) -> float | None:
        return self.true_positives / self.positives if self.positives else None

    @property
    def specificity(self) -> float | None:
        return self.true_negatives / self.negatives if self.negatives else None

    def unusable(self) -> str | None:
        """Why no bound can be had through this verifier; None if one can."""
        if self.labels < FEWEST_LABELS:
            return f"the verifier has {self.labels} human labels, {FEWEST_LABELS} are needed"
        if self.sensitivity is None or self.specificity is None:
            return f"the verifier's {self.labels} human labels are all of one kind"
        discrimination = self.sensitivity + self.specificity - 1.0
        if discrimination < LEAST_DISCRIMINATION:
            return (
                f"the verifier hardly tells apart what it judges: sensitivity {self.sensitivity:.3f} + specificity "
                f"{self.specificity:.3f} - 1 = {discrimination:.3f}, below {LEAST_DISCRIMINATION:g}"
            )
        return None


def corrected_rate(reported: float, labels: VerifierLabels) -> float:
    """Rogan-Gladen: (reported + specificity - 1) / (sensitivity + specificity - 1), cut to [0, 1]. Needs usable
    labels.
    """
    assert labels.sensitivity is not None
    assert labels.specificity is not None
    return _true_rate(reported, labels.sensitivity, 1.0 - labels.specificity)


def corrected_lower(reported_lower: float, labels: VerifierLabels, alpha: float) -> float:
    """Lower bound on the true rate from a lower bound on the reported one made at alpha / 3: the rate falls in
    sensitivity and in the false-positive rate, so both are taken at their upper bounds.
    """
    return _true_rate(reported_lower, *_most_credulous(labels, alpha))


def corrected_upper(reported_upper: float, labels: VerifierLabels, alpha: float) -> float:
    return _true_rate(reported_upper, *_least_credulous(labels, alpha))


def reported_to_show(rate: float, labels: VerifierLabels, alpha: float) -> float:
    """What the reported rate's lower bound must reach for the true rate's to reach `rate`."""
    sensitivity, false_positive = _most_credulous(labels, alpha)
    return false_positive + rate * (sensitivity - false_positive)


def reported_to_stay_below(rate: float, labels: VerifierLabels, alpha: float) -> float:
    """What the reported rate's upper bound must not exceed for the true rate's not to exceed `rate`."""
    sensitivity, false_positive = _least_credulous(labels, alpha)
    return false_positive + rate * (sensitivity - false_positive)


def prediction_powered(
    unlabelled: npt.ArrayLike, labelled: npt.ArrayLike, truths: npt.ArrayLike, alpha: float
) -> tuple[float | None, float, float]:
    """(estimate, lower, upper) of the mean truth: the verifier's mean score on `unlabelled` items plus its mean error,
    truth - score, on `labelled` ones. All in [0, 1]; `labelled` and `truths` of one length, a random part of the same
    items. Each bound is one-sided at alpha, half of it for each term. The estimate is None where either is empty.
    """
    scores = np.asarray(unlabelled, dtype=np.float64)
    errors = np.asarray(truths, dtype=np.float64) - np.asarray(labelled, dtype=np.float64)
    if not scores.size or not errors.size:
        return None, 0.0, 1.0
    half = alpha / 2
    error = (errors + 1.0) / 2
    low = lower_bound(scores, alpha=half) + 2.0 * lower_bound(error, alpha=half) - 1.0
    high = upper_bound(scores, alpha=half) + 2.0 * upper_bound(error, alpha=half) - 1.0
    return float(scores.mean() + errors.mean()), max(0.0, low), min(1.0, high)


def _most_credulous(labels: VerifierLabels, alpha: float) -> tuple[float, float]:
    """Upper bounds of sensitivity and of the false-positive rate."""
    each = alpha / SHARES
    return (
        clopper_pearson_upper(labels.true_positives, labels.positives, each),
        clopper_pearson_upper(labels.false_positives, labels.negatives, each),
    )


def _least_credulous(labels: VerifierLabels, alpha: float) -> tuple[float, float]:
    each = alpha / SHARES
    return (
        clopper_pearson_lower(labels.true_positives, labels.positives, each),
        clopper_pearson_lower(labels.false_positives, labels.negatives, each),
    )


def _true_rate(reported: float, sensitivity: float, false_positive: float) -> float:
    if reported <= false_positive:
        return 0.0
    if reported >= sensitivity:
        return 1.0
    return (reported - false_positive) / (sensitivity - false_positive)
