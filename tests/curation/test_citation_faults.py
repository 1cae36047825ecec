"""What is wrong with citations: known answers, and that a fault that is put in is found as that fault."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realign_cluster.curation.citation_faults import (
    FAULTS,
    CitedSentence,
    Fault,
    judge_citations,
    with_fault,
)

SOURCES = ("1", "2", "3", "4")


def sentence(cites: str, supported_by: str, needs: bool = True) -> CitedSentence:
    return CitedSentence(
        text=f"Says {supported_by}.", cites=tuple(cites), supported_by=frozenset(supported_by), needs_citation=needs
    )


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ([sentence("1", "1"), sentence("2", "23")], "right"),
        ([sentence("1", "1"), sentence("", "", needs=False)], "right"),
        ([sentence("1", "1"), sentence("", "2")], "missing"),
        ([sentence("2", "1"), sentence("", "2")], "missing"),
        ([sentence("2", "1"), sentence("1", "2")], "swapped"),
        ([sentence("2", "1"), sentence("3", "2"), sentence("1", "3")], "swapped"),
        ([sentence("2", "1"), sentence("2", "2")], "wrong"),
        ([sentence("9", "1")], "wrong"),
        ([sentence("1", "")], "wrong"),
        ([sentence("2", "1"), sentence("4", "2")], "wrong"),
        ([sentence("14", "1"), sentence("2", "2")], "irrelevant"),
        ([sentence("1", "1"), sentence("29", "2")], "irrelevant"),
    ],
)
def test_known_answers(answer: list[CitedSentence], verdict: str) -> None:
    assert judge_citations(answer) == verdict


sets = st.sets(st.sampled_from(SOURCES), min_size=1, max_size=3)
right_answers = st.lists(
    sets.flatmap(lambda by: st.tuples(st.just(by), st.sets(st.sampled_from(sorted(by)), min_size=1))),
    min_size=1,
    max_size=4,
)


@given(right_answers, st.sampled_from(FAULTS), st.integers(0, 9))
def test_a_fault_that_is_put_in_is_found(made: list[tuple[set[str], set[str]]], fault: Fault, seed: int) -> None:
    answer = [sentence("".join(sorted(cites)), "".join(by)) for by, cites in made]
    assert judge_citations(answer) == "right"
    faulty = with_fault(answer, fault, SOURCES, seed=seed, name="a")
    assert faulty == with_fault(answer, fault, SOURCES, seed=seed, name="a")
    if faulty is None:
        assert fault in ("swapped", "wrong")  # sources have to differ; the other two are always possible
        return
    assert judge_citations(faulty) == fault
    assert [(each.text, each.supported_by) for each in faulty] == [(each.text, each.supported_by) for each in answer]


def test_seeds_put_faults_in_other_places() -> None:
    answer = [sentence(each, each) for each in SOURCES]
    for fault in FAULTS:
        made = {with_fault(answer, fault, SOURCES, seed=seed, name="a") for seed in range(12)}
        assert None not in made
        assert len(made) > 3


def test_where_a_fault_cannot_be() -> None:
    assert with_fault([sentence("1", "1")], "swapped", SOURCES, seed=0, name="a") is None
    assert with_fault([sentence("1", "1")], "wrong", ("1",), seed=0, name="a") is None
    with pytest.raises(ValueError, match="wrong already"):
        with_fault([sentence("2", "1")], "missing", SOURCES, seed=0, name="a")
    with pytest.raises(ValueError, match="without sentences"):
        judge_citations([])
