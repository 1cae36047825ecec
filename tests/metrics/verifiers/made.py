"""A verifier whose answers a test chooses, and labelled scores drawn from a known law."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from realign_cluster.metrics.verifiers.report import CalibrationReport
from realign_cluster.metrics.verifiers.verdict import Pair, Verdict, fingerprint_of


class Chosen:
    """Answers each pair by `answer`, and remembers what it was asked."""

    def __init__(self, answer: Callable[[Pair], Verdict], name: str = "chosen") -> None:
        self.answer, self.name = answer, name
        self.asked: list[Pair] = []

    def score(self, pairs: Sequence[Pair]) -> list[Verdict]:
        self.asked.extend(pairs)
        return [self.answer(pair) for pair in pairs]

    def facts(self) -> Mapping[str, Any]:
        return {"verifier": self.name}

    def fingerprint(self) -> str:
        return fingerprint_of(self.facts())

    def calibration_report(self) -> CalibrationReport | None:
        return None


def by_number(pair: Pair) -> Verdict:
    """The claim's text is the probability."""
    score = float(pair.claim)
    return Verdict(supported=score, label="supported" if score >= 0.5 else "unverifiable")


def drawn(count: int, seed: int, *, slope: float, intercept: float) -> tuple[list[float], list[bool]]:
    """Scores, and labels that are true with probability 1 / (1 + exp(-(slope * log odds + intercept)))."""
    generator = np.random.default_rng(seed)
    odds = generator.normal(0.0, 2.0, count)
    truths = generator.random(count) < 1 / (1 + np.exp(-(slope * odds + intercept)))
    return (1 / (1 + np.exp(-odds))).tolist(), truths.tolist()
