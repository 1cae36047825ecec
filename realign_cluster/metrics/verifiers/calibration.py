"""A verifier whose scores were made into probabilities against human labels, with the threshold from which on it says
"supported". What is fitted on one half of the labels is reported on the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from realign_cluster.domain.errors import UsageError
from realign_cluster.metrics.verifiers.curves import Curve, Method, choose_threshold, fit_isotonic, fit_platt
from realign_cluster.metrics.verifiers.report import CalibrationReport, Record, report_of
from realign_cluster.metrics.verifiers.verdict import EVEN_ODDS, Label, Pair, Verdict, Verifier, fingerprint_of
from realign_cluster.store.durable import write_durably


class Calibration(Record):
    """Belongs to one verifier (its fingerprint) and one dataset."""

    verifier: str
    dataset: str
    fitted_on: int  # labels
    curve: Curve
    threshold: float  # on the calibrated probability
    report: CalibrationReport

    def save(self, path: Path) -> None:
        write_durably(path, self.model_dump_json(indent=1).encode() + b"\n")


def load_calibration(path: Path) -> Calibration:
    """Raises UsageError for a file that is none."""
    try:
        return Calibration.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        what = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error.strerror
        raise UsageError(f"{path} is no calibration of a verifier: {what}", "calibrate the verifier again") from None


class Calibrated:
    """A verifier whose probabilities and labels are those of a calibration."""

    def __init__(self, verifier: Verifier, calibration: Calibration) -> None:
        """Raises UsageError for a calibration of another verifier."""
        if (given := verifier.fingerprint()) != calibration.verifier:
            raise UsageError(
                f"the calibration is of verifier {calibration.verifier}, this one is {given}",
                "calibrate it again, or use the weights, prompt and rules that were calibrated",
            )
        self.verifier = verifier
        self.calibration = calibration

    def score(self, pairs: Sequence[Pair]) -> list[Verdict]:
        return [
            calibrated(verdict, self.calibration.curve, self.calibration.threshold)
            for verdict in self.verifier.score(pairs)
        ]

    def facts(self) -> Mapping[str, Any]:
        applied = self.calibration.model_dump(mode="json", include={"curve", "threshold", "dataset"})
        return {"verifier": "calibrated", "of": dict(self.verifier.facts()), "calibration": applied}

    def fingerprint(self) -> str:
        return fingerprint_of(self.facts())

    def calibration_report(self) -> CalibrationReport | None:
        return self.calibration.report


def calibrated(verdict: Verdict, curve: Curve, threshold: float) -> Verdict:
    """What spoke against the claim still does: one that is no longer supported is contradicted only if it was."""
    if verdict.supported is None:
        return verdict
    supported = curve.probability(verdict.supported)
    label: Label = "contradicted" if verdict.label == "contradicted" else "unverifiable"
    if supported >= threshold:
        label = "supported"
    return Verdict(supported=supported, label=label, span=verdict.span, reason=verdict.reason)


def calibrate(
    verifier: Verifier,
    pairs: Sequence[Pair],
    human: Sequence[str],
    supported: Sequence[bool],
    *,
    dataset: str,
    method: Method = "platt",
    max_false_positive_rate: float | None = None,
) -> Calibrated:
    """Fits curve and threshold on half of the pairs, and reports on the other half; pairs on the same evidence stay
    together. `human` are the labels as people gave them, `supported` whether that means supported. Without
    `max_false_positive_rate` the threshold is 0.5; with it, the lowest whose exact upper bound is below it.

    Raises UsageError when there are too few labels for that, or of one kind only.
    """
    verdicts = verifier.score(pairs)
    halves: dict[str, int] = {}
    half = [halves.setdefault(pair.text, len(halves) % 2) for pair in pairs]
    known = [
        (verdict.supported, truth)
        for verdict, truth, side in zip(verdicts, supported, half, strict=True)
        if side == 0 and verdict.supported is not None
    ]
    scores, truths = [score for score, _ in known], [truth for _, truth in known]
    if all(truths) or not any(truths):
        raise UsageError(
            f"{dataset}: of {len(truths)} labels to calibrate on {sum(truths)} are supported",
            "give labels of both kinds",
        )
    curve = fit_platt(scores, truths) if method == "platt" else fit_isotonic(scores, truths)
    threshold = EVEN_ODDS
    if max_false_positive_rate is not None:
        probabilities = [curve.probability(score) for score in scores]
        threshold = choose_threshold(probabilities, truths, max_false_positive_rate=max_false_positive_rate)
    after = [calibrated(verdict, curve, threshold) for verdict in verdicts]
    held_out = [at for at, side in enumerate(half) if side == 1]
    calibration = Calibration(
        verifier=verifier.fingerprint(),
        dataset=dataset,
        fitted_on=len(known),
        curve=curve,
        threshold=threshold,
        report=report_of(
            verifier=verifier.fingerprint(),
            dataset=f"{dataset}, the half that was not fitted",
            threshold=threshold,
            scores=[after[at].supported for at in held_out],
            said=[after[at].label for at in held_out],
            human=[human[at] for at in held_out],
            supported=[supported[at] for at in held_out],
        ),
    )
    return Calibrated(verifier, calibration)
