"""Several verifiers as one."""

from __future__ import annotations

import pytest

from realign_cluster.domain.errors import UsageError
from realign_cluster.metrics.verifiers.ensemble import Ensemble
from realign_cluster.metrics.verifiers.verdict import Label, Pair, Span, Verdict, Verifier, undefined
from tests.metrics.verifiers.made import Chosen

PAIR = Pair(claim="c", evidence="evidence")
NEAR, FAR = Span(start=0, end=1), Span(start=2, end=3)


def says(supported: float, label: Label = "unverifiable", span: Span | None = None) -> Chosen:
    return Chosen(lambda pair: Verdict(supported=supported, label=label, span=span), name=f"{supported} {label}")


def silent(reason: str) -> Chosen:
    return Chosen(lambda pair: undefined(reason), name=reason)


def together(*members: Verifier) -> Verdict:
    (verdict,) = Ensemble(members).score([PAIR])
    return verdict


def test_probabilities_are_averaged():
    assert isinstance(Ensemble([says(0.5)]), Verifier)
    verdict = together(says(0.9), says(0.2), says(0.7))
    assert verdict.supported == pytest.approx(0.6)
    assert verdict.label == "supported"
    assert together(says(0.9), says(0.0)).label == "unverifiable"


@pytest.mark.parametrize(("against", "others", "label"), [(1, 1, "contradicted"), (1, 2, "unverifiable")])
def test_contradicted_where_at_least_half_say_so(against: int, others: int, label: Label):
    members = [says(0.1, "contradicted")] * against + [says(0.3)] * others
    assert together(*members).label == label


def test_the_span_is_of_the_member_that_is_closest():
    assert together(says(0.9, "supported", NEAR), says(0.8, span=NEAR), says(0.1, span=FAR)).span == NEAR
    assert together(says(0.9, "supported"), says(0.2, span=FAR)).span == FAR


def test_those_that_have_no_answer_do_not_count():
    verdict = together(says(0.9, "supported"), silent("the service has no answer"))
    assert (verdict.supported, verdict.reason) == (0.9, "the service has no answer")
    nobody = together(silent("the claim is empty"), silent("the service has no answer"))
    assert (nobody.supported, nobody.reason) == (None, "the claim is empty; the service has no answer")


def test_it_has_members():
    with pytest.raises(UsageError, match="members"):
        Ensemble([])


def test_members_are_in_the_fingerprint():
    made = {Ensemble([says(0.5), says(second)]).fingerprint() for second in (0.1, 0.2)}
    assert len(made | {Ensemble([says(0.5)]).fingerprint()}) == 3
