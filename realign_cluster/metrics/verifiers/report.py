"""How well a verifier agrees with human labels, and what is written down of it.

Pure arithmetic on (probability, human label). Must not know verifiers or how scores were made.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict
from scipy.stats import binomtest

from realign_cluster.metrics import calibration
from realign_cluster.metrics.detector import auroc
from realign_cluster.metrics.measured import ItemId

SIDES = (True, False)
UNDEFINED = "undefined"


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Rate(Record):
    """`count` of `n` with the exact two-sided 95 % bounds (Clopper and Pearson 1934). Of nothing, all are None."""

    count: int
    n: int
    value: float | None
    low: float | None
    high: float | None


class CalibrationReport(Record):
    """On `n` items with a human label, not used to fit anything. `unanswered` items had no verdict and count in no
    figure but `confusion`. `ece` is over 15 equal-mass bins with ties kept together. None where a class is missing.
    """

    verifier: str  # fingerprint
    dataset: str
    n: int
    unanswered: int
    threshold: float
    auroc: float | None
    ece: float | None
    brier: float | None
    sensitivity: Rate  # supported by people, and called so
    specificity: Rate  # not supported by people, and not called so
    confusion: dict[str, dict[str, int]]  # human label -> what the verifier said -> count

    @property
    def false_positive_rate(self) -> float | None:
        return None if self.specificity.value is None else 1.0 - self.specificity.value

    @property
    def informed(self) -> float | None:
        """Youden's J, sensitivity + specificity - 1."""
        if self.sensitivity.value is None or self.specificity.value is None:
            return None
        return self.sensitivity.value + self.specificity.value - 1.0


def exact_rate(count: int, n: int) -> Rate:
    if n == 0:
        return Rate(count=0, n=0, value=None, low=None, high=None)
    bounds = binomtest(count, n).proportion_ci(0.95, method="exact")
    return Rate(count=count, n=n, value=count / n, low=float(bounds.low), high=float(bounds.high))


def area_under_roc(scores: Sequence[float], supported: Sequence[bool]) -> float | None:
    """The probability that a supported item scores above one that is not (`detector.auroc`). None without items of
    both kinds.
    """
    sides = {side: [score for score, truth in zip(scores, supported, strict=True) if truth is side] for side in SIDES}
    return auroc(sides[True], sides[False])


def expected_calibration_error(scores: Sequence[float], supported: Sequence[bool]) -> float | None:
    """`calibration.calibration_error` over its 15 equal-mass bins. None of nothing."""
    return calibration.calibration_error(scores, supported).error


def brier_score(scores: Sequence[float], supported: Sequence[bool]) -> float | None:
    """`calibration.brier_score` of the probabilities. None of nothing."""
    items = enumerate(zip(scores, supported, strict=True))
    return calibration.brier_score([(ItemId(str(at)), score, truth) for at, (score, truth) in items]).value


def report_of(
    *,
    verifier: str,
    dataset: str,
    threshold: float,
    scores: Sequence[float | None],
    said: Sequence[str | None],
    human: Sequence[str],
    supported: Sequence[bool],
) -> CalibrationReport:
    """One item a place: the verifier's probability and label (None where it gave none), the human label as it is
    named in the data, and whether that means supported. Raises ValueError for lists of unequal length or NaN.
    """
    if not len(scores) == len(said) == len(human) == len(supported):
        raise ValueError("scores, labels and human labels are not of the same items")
    answered = [(score, truth) for score, truth in zip(scores, supported, strict=True) if score is not None]
    values, truths = [score for score, _ in answered], [truth for _, truth in answered]
    if any(math.isnan(value) for value in values):
        raise ValueError("a probability is NaN")
    confusion: dict[str, Counter[str]] = {}
    for label, answer in zip(human, said, strict=True):
        confusion.setdefault(label, Counter())[answer or UNDEFINED] += 1
    positive = [value >= threshold for value, truth in answered if truth]
    negative = [value < threshold for value, truth in answered if not truth]
    return CalibrationReport(
        verifier=verifier,
        dataset=dataset,
        n=len(scores),
        unanswered=len(scores) - len(answered),
        threshold=threshold,
        auroc=area_under_roc(values, truths),
        ece=expected_calibration_error(values, truths),
        brier=brier_score(values, truths),
        sensitivity=exact_rate(sum(positive), len(positive)),
        specificity=exact_rate(sum(negative), len(negative)),
        confusion={label: dict(sorted(counts.items())) for label, counts in sorted(confusion.items())},
    )
