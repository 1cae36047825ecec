"""Several verifiers as one: the mean of what those that have an answer say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from realign_cluster.domain.errors import UsageError
from realign_cluster.metrics.verifiers.report import CalibrationReport
from realign_cluster.metrics.verifiers.verdict import (
    EVEN_ODDS,
    Label,
    Pair,
    Verdict,
    Verifier,
    fingerprint_of,
    undefined,
)

MEAN_VERSION = 1  # raise it whenever the same verdicts would make another one


class Ensemble:
    def __init__(self, members: Sequence[Verifier]) -> None:
        """Raises UsageError without members."""
        if not members:
            raise UsageError("an ensemble has members")
        self.members = tuple(members)

    def score(self, pairs: Sequence[Pair]) -> list[Verdict]:
        columns = [member.score(pairs) for member in self.members]
        return [mean_verdict(answers) for answers in zip(*columns, strict=True)]

    def facts(self) -> Mapping[str, Any]:
        members = [dict(member.facts()) for member in self.members]
        return {"verifier": "ensemble", "version": MEAN_VERSION, "members": members}

    def fingerprint(self) -> str:
        return fingerprint_of(self.facts())

    def calibration_report(self) -> CalibrationReport | None:
        """Of the ensemble as a whole there is none: calibrate it as any verifier."""
        return None


def mean_verdict(answers: Sequence[Verdict]) -> Verdict:
    """The mean of the probabilities there are; undefined without any. Not supported, a claim is contradicted if at
    least half of those that answered say so. The span is that of the answer whose probability is closest to the mean
    among those that have one.
    """
    given = [(answer.supported, answer) for answer in answers if answer.supported is not None]
    if not given:
        return undefined("; ".join(answer.reason for answer in answers))
    mean = sum(supported for supported, _ in given) / len(given)
    against = sum(answer.label == "contradicted" for _, answer in given)
    label: Label = "contradicted" if 2 * against >= len(given) else "unverifiable"
    if mean >= EVEN_ODDS:
        label = "supported"
    nearest = sorted(given, key=lambda each: abs(each[0] - mean))
    span = next((answer.span for _, answer in nearest if answer.span is not None), None)
    silent = "; ".join(answer.reason for answer in answers if answer.supported is None)
    return Verdict(supported=mean, label=label, span=span, reason=silent)
