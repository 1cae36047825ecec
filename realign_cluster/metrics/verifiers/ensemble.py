"""Several verifiers as one: the weighted mean of their log odds, or of their calibrated probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.special import expit, logit

from realign_cluster.domain.errors import UsageError
from realign_cluster.metrics.verifiers.curves import CLOSEST_TO_CERTAIN
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

Combine = Literal["log odds", "calibrated mean"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    verifier: Verifier
    weight: float = 1.0


class Ensemble:
    """Undefined where a member is. Not supported, a claim is contradicted if members with more than half of the weight
    say so. The span is that of the member whose probability is closest to the ensemble's among those that have one.
    """

    def __init__(self, members: Sequence[Member], *, combine: Combine = "log odds") -> None:
        """Raises UsageError without members, for weights that are not positive, and for a calibrated mean of members
        that were not calibrated.
        """
        if not members or any(not member.weight > 0 for member in members):
            raise UsageError("an ensemble has members, each with a weight above 0")
        if combine == "calibrated mean":
            raw = [at for at, member in enumerate(members, 1) if member.verifier.calibration_report() is None]
            if raw:
                raise UsageError(
                    f"member {raw[0]} of the ensemble is not calibrated", "calibrate it, or combine log odds"
                )
        self.members = tuple(members)
        self.combine: Combine = combine

    def score(self, pairs: Sequence[Pair]) -> list[Verdict]:
        columns = [member.verifier.score(pairs) for member in self.members]
        return [self._together(answers) for answers in zip(*columns, strict=True)]

    def facts(self) -> Mapping[str, Any]:
        members = [{"weight": member.weight, "of": dict(member.verifier.facts())} for member in self.members]
        return {"verifier": "ensemble", "version": 1, "combine": self.combine, "members": members}

    def fingerprint(self) -> str:
        return fingerprint_of(self.facts())

    def calibration_report(self) -> CalibrationReport | None:
        """Of the ensemble as a whole there is none: calibrate it as any verifier."""
        return None

    def _together(self, answers: Sequence[Verdict]) -> Verdict:
        for at, answer in enumerate(answers, 1):
            if answer.supported is None:
                return undefined(f"member {at} of the ensemble: {answer.reason}")
        given = np.array([answer.supported for answer in answers], dtype=np.float64)
        weights = np.array([member.weight for member in self.members]) / sum(member.weight for member in self.members)
        if self.combine == "log odds":
            odds = logit(np.clip(given, CLOSEST_TO_CERTAIN, 1 - CLOSEST_TO_CERTAIN))
            supported = float(expit(weights @ odds))
        else:
            supported = min(float(weights @ given), 1.0)
        against = sum(weight for weight, answer in zip(weights, answers, strict=True) if answer.label == "contradicted")
        label: Label = "contradicted" if against > EVEN_ODDS else "unverifiable"
        if supported >= EVEN_ODDS:
            label = "supported"
        nearest = sorted(range(len(answers)), key=lambda at: abs(given[at] - supported))
        span = next((answers[at].span for at in nearest if answers[at].span is not None), None)
        return Verdict(supported=supported, label=label, span=span)
