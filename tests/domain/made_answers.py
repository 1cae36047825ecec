"""Answers with a known truth, made in thousands of runs at once, and what bounds other than ours would say of them.

All arrays are (runs, answers): how many claims of an answer are right, and how many it has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from realign_cluster.domain.exact_bounds import clopper_pearson_lower, wilson

Numbers = npt.NDArray[np.float64]
MOST_CLAIMS = 8


@dataclass(frozen=True, slots=True)
class Answers:
    right: Numbers
    claims: Numbers

    @property
    def scores(self) -> Numbers:
        return self.right / self.claims


def varying(generator: np.random.Generator, truth: float, runs: int, answers: int) -> Answers:
    """Each answer has a rate of its own, Beta(6 truth, 6 (1 - truth)). Pooled and per answer the truth is the same."""
    claims = generator.integers(1, MOST_CLAIMS + 1, (runs, answers))
    rates = generator.beta(6 * truth, 6 * (1 - truth), (runs, answers))
    return Answers(generator.binomial(claims, rates).astype(float), claims.astype(float))


def all_or_none(generator: np.random.Generator, truth: float, runs: int, answers: int) -> Answers:
    """The claims of an answer are all right or all wrong."""
    claims = generator.integers(1, MOST_CLAIMS + 1, (runs, answers)).astype(float)
    return Answers(claims * (generator.random((runs, answers)) < truth), claims)


def rare_disasters(generator: np.random.Generator, truth: float, runs: int, answers: int) -> Answers:
    """Few answers are long and all wrong (8 claims), the others short and right (1 to 5). The truth is pooled."""
    wrong = 1.0 - truth
    disaster = generator.random((runs, answers)) < 3 * wrong / (MOST_CLAIMS - (MOST_CLAIMS - 3) * wrong)
    claims = np.where(disaster, MOST_CLAIMS, generator.integers(1, 6, (runs, answers))).astype(float)
    return Answers(np.where(disaster, 0.0, claims), claims)


Making = Callable[[np.random.Generator, float, int, int], Answers]


def wilson_passes(answers: Answers, threshold: float) -> npt.NDArray[np.bool_]:
    """As if claims were independent items. One-sided 95 %."""
    low, _ = wilson(answers.right.sum(axis=1).astype(int), answers.claims.sum(axis=1).astype(int), 0.9)
    return np.asarray(low >= threshold)


def exact_passes(answers: Answers, threshold: float) -> npt.NDArray[np.bool_]:
    """Clopper-Pearson on the pooled claims, as if they were independent."""
    right, claims = answers.right.sum(axis=1).astype(int), answers.claims.sum(axis=1).astype(int)
    return np.asarray(clopper_pearson_lower(right, claims, 0.05) >= threshold)


def bootstrap_passes(right: Numbers, claims: Numbers, threshold: float, resamples: int = 400) -> npt.NDArray[np.bool_]:
    """Percentile bootstrap over answers, one-sided 95 %. All runs share the resamples' weights: one matrix product."""
    answers = right.shape[1]
    generator = np.random.default_rng(99)
    weights = generator.multinomial(answers, np.full(answers, 1 / answers), resamples).T.astype(float)
    return np.asarray(np.quantile((right @ weights) / (claims @ weights), 0.05, axis=1) >= threshold)
