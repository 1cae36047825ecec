"""Curves from a verifier's scores to probabilities, fitted to human labels, and the threshold to read them by.

Platt's curve (J. Platt 1999, with his targets, so that few labels give no certainty) or isotonic regression. Both keep
the order of scores.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import model_validator
from scipy.optimize import minimize
from scipy.special import expit, logit
from scipy.stats import beta

from realign_cluster.domain.errors import UsageError
from realign_cluster.metrics.verifiers.report import Record

Method = Literal["platt", "isotonic"]
CLOSEST_TO_CERTAIN = 1e-6  # scores of 0 and 1 have no log odds


class Curve(Record):
    """platt: `points` holds (slope, intercept) over the log odds of the score. isotonic: corners (score, probability)
    of a line that never falls, level beyond its ends.
    """

    method: Method
    points: tuple[tuple[float, float], ...]

    @model_validator(mode="after")
    def _keeps_the_order(self) -> Curve:
        if self.method == "platt":
            if len(self.points) != 1 or self.points[0][0] < 0:
                raise ValueError("a platt curve has one point, and a slope that is not negative")
            return self
        steps = list(itertools.pairwise(self.points))
        if not self.points or any(after[0] <= before[0] or after[1] < before[1] for before, after in steps):
            raise ValueError("the corners of an isotonic curve go up, and its scores rise")
        return self

    def probability(self, score: float) -> float:
        if self.method == "platt":
            slope, intercept = self.points[0]
            return float(expit(slope * _log_odds([score])[0] + intercept))
        corners = np.array(self.points)
        return float(np.interp(score, corners[:, 0], corners[:, 1]))


def fit_platt(scores: Sequence[float], supported: Sequence[bool]) -> Curve:
    """Maximum likelihood on targets (n+ + 1) / (n+ + 2) and 1 / (n- + 2). A verifier that is worse than chance gets
    slope 0, which says so, and is not turned round.
    """
    odds = _log_odds(scores)
    truth = np.asarray(supported, dtype=bool)
    n_positive, n_negative = int(truth.sum()), int((~truth).sum())
    target = np.where(truth, (n_positive + 1) / (n_positive + 2), 1 / (n_negative + 2))

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        logits = parameters[0] * odds + parameters[1]
        difference = expit(logits) - target
        value = float(np.mean(np.logaddexp(0.0, logits) - target * logits))
        return value, np.array([np.mean(difference * odds), np.mean(difference)])

    found = minimize(loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=[(0.0, None), (None, None)]).x
    return Curve(method="platt", points=((float(found[0]), float(found[1])),))


def fit_isotonic(scores: Sequence[float], supported: Sequence[bool]) -> Curve:
    """Least squares under a line that never falls, by pooling adjacent violators (Ayer et al. 1955); equal scores are
    one item. Between blocks the curve is straight.
    """
    values, position = np.unique(np.asarray(scores, dtype=np.float64), return_inverse=True)
    weights = np.bincount(position).astype(np.float64)
    means = np.bincount(position, weights=np.asarray(supported, dtype=np.float64)) / weights
    blocks: list[tuple[float, float, float, float]] = []  # mean, weight, first score, last score
    for mean, weight, value in zip(means, weights, values, strict=True):
        block = (float(mean), float(weight), float(value), float(value))
        while blocks and blocks[-1][0] >= block[0]:
            before = blocks.pop()
            total = before[1] + block[1]
            block = ((before[0] * before[1] + block[0] * block[1]) / total, total, before[2], block[3])
        blocks.append(block)
    corners: list[tuple[float, float]] = []
    for mean, _, first, last in blocks:
        corners.extend([(first, mean)] if first == last else [(first, mean), (last, mean)])
    return Curve(method="isotonic", points=tuple(corners))


def choose_threshold(
    scores: Sequence[float], supported: Sequence[bool], *, max_false_positive_rate: float, confidence: float = 0.95
) -> float:
    """The lowest score from which on calling items supported keeps the share of those called so among the not
    supported below the limit, by the exact one-sided upper bound.

    Thresholds are tried from the strictest down to the first that fails, so that trying many costs no confidence
    (fixed sequence testing). Raises UsageError when even zero errors among the labels would not do.
    """
    if not 0.0 < max_false_positive_rate < 1.0:
        raise UsageError(
            f"a false positive rate of at most {max_false_positive_rate} is asked for, it is between 0 and 1"
        )
    negatives = np.sort([score for score, truth in zip(scores, supported, strict=True) if not truth])[::-1]
    if not len(negatives) or _upper_bound(0, len(negatives), confidence) > max_false_positive_rate:
        needed = int(np.ceil(np.log(1 - confidence) / np.log(1 - max_false_positive_rate)))
        raise UsageError(
            f"{len(negatives)} labels that are not supported cannot show a false positive rate below"
            f" {max_false_positive_rate:g}",
            f"give at least {needed}",
        )
    passed: float | None = None
    for threshold in sorted({*scores}, reverse=True):
        errors = int((negatives >= threshold).sum())
        if _upper_bound(errors, len(negatives), confidence) > max_false_positive_rate:
            break
        passed = float(threshold)
    if passed is None:
        raise UsageError(
            "the highest scores are of items that are not supported: no threshold keeps the false positive rate below"
            f" {max_false_positive_rate:g}",
            "use another verifier",
        )
    return passed


def _upper_bound(errors: int, n: int, confidence: float) -> float:
    """Clopper and Pearson, one-sided."""
    return 1.0 if errors >= n else float(beta.ppf(confidence, errors + 1, n - errors))


def _log_odds(scores: Sequence[float]) -> np.ndarray:
    clipped: np.ndarray = np.clip(np.asarray(scores, dtype=np.float64), CLOSEST_TO_CERTAIN, 1 - CLOSEST_TO_CERTAIN)
    odds: np.ndarray = logit(clipped)
    return odds
