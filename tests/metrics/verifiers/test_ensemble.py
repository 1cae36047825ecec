"""Several verifiers as one."""

from __future__ import annotations

import math

import pytest

from realign_cluster.domain.errors import UsageError
from realign_cluster.metrics.verifiers.calibration import calibrate
from realign_cluster.metrics.verifiers.ensemble import Ensemble, Member
from realign_cluster.metrics.verifiers.lexical import LexicalVerifier
from realign_cluster.metrics.verifiers.verdict import Label, Pair, Span, Verdict, Verifier, undefined
from tests.metrics.verifiers.made import Chosen, by_number, drawn

PAIR = Pair(claim="c", evidence="evidence")
NEAR, FAR = Span(start=0, end=1), Span(start=2, end=3)


def says(supported: float, label: Label = "unverifiable", span: Span | None = None) -> Chosen:
    return Chosen(lambda pair: Verdict(supported=supported, label=label, span=span), name=f"{supported} {label}")


def sigmoid(odds: float) -> float:
    return 1 / (1 + math.exp(-odds))


def test_log_odds_are_weighed():
    members = [Member(verifier=says(sigmoid(2.0)), weight=3.0), Member(verifier=says(sigmoid(-1.0)))]
    (verdict,) = Ensemble(members).score([PAIR])
    assert verdict.supported == pytest.approx(sigmoid((3 * 2.0 - 1.0) / 4))
    assert verdict.label == "supported"


def test_certainty_of_one_does_not_drown_the_rest_in_infinity():
    (verdict,) = Ensemble([Member(verifier=says(1.0)), Member(verifier=says(0.0))]).score([PAIR])
    assert verdict.supported == pytest.approx(0.5)


def test_contradicted_by_more_than_half_of_the_weight():
    against, silent = says(0.1, "contradicted", FAR), says(0.3, "unverifiable", NEAR)
    (verdict,) = Ensemble([Member(verifier=against, weight=2.0), Member(verifier=silent)]).score([PAIR])
    assert verdict.label == "contradicted"
    (verdict,) = Ensemble([Member(verifier=against), Member(verifier=silent)]).score([PAIR])
    assert verdict.label == "unverifiable"
    assert verdict.span in (NEAR, FAR)


def test_the_span_is_of_the_member_that_is_closest():
    members = [Member(verifier=says(0.9, "supported", NEAR), weight=5.0), Member(verifier=says(0.2, span=FAR))]
    assert Ensemble(members).score([PAIR])[0].span == NEAR
    members = [Member(verifier=says(0.9, "supported"), weight=5.0), Member(verifier=says(0.2, span=FAR))]
    assert Ensemble(members).score([PAIR])[0].span == FAR


def test_undefined_where_a_member_is():
    silent = Chosen(lambda pair: undefined("the service has no answer"))
    (verdict,) = Ensemble([Member(verifier=says(0.9)), Member(verifier=silent)]).score([PAIR])
    assert verdict.reason == "member 2 of the ensemble: the service has no answer"


def test_a_mean_needs_calibrated_members():
    scores, truths = drawn(400, 1, slope=0.5, intercept=0.0)
    pairs = [Pair(claim=str(score), evidence=f"text {at}") for at, score in enumerate(scores)]
    human = [str(truth) for truth in truths]
    one = calibrate(Chosen(by_number), pairs, human, truths, dataset="drawn", method="isotonic")
    other = calibrate(Chosen(by_number, name="other"), pairs, human, truths, dataset="drawn")
    mean = Ensemble([Member(verifier=one, weight=1.0), Member(verifier=other, weight=3.0)], combine="calibrated mean")
    assert isinstance(mean, Verifier)
    for pair, first, second, both in zip(pairs, one.score(pairs), other.score(pairs), mean.score(pairs), strict=True):
        assert first.supported is not None
        assert second.supported is not None
        assert both.supported == pytest.approx((first.supported + 3 * second.supported) / 4), pair
    with pytest.raises(UsageError, match="member 2 of the ensemble is not calibrated"):
        Ensemble([Member(verifier=one), Member(verifier=LexicalVerifier())], combine="calibrated mean")
    assert calibrate(mean, pairs, human, truths, dataset="drawn").calibration_report() is not None


@pytest.mark.parametrize("weights", [(), (1.0, 0.0), (1.0, -1.0), (1.0, math.nan)])
def test_weights_are_above_zero(weights: tuple[float, ...]):
    with pytest.raises(UsageError, match="weight above 0"):
        Ensemble([Member(verifier=says(0.5), weight=weight) for weight in weights])


def test_members_and_weights_are_in_the_fingerprint():
    made = {
        Ensemble([Member(verifier=says(0.5), weight=first), Member(verifier=says(second))]).fingerprint()
        for first in (1.0, 2.0)
        for second in (0.1, 0.2)
    }
    assert len(made) == 4
