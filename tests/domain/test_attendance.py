"""Who is waited for before a job: who was there before, is named still, and is not there now."""

from __future__ import annotations

from realign_cluster.domain.attendance import Attendance
from realign_cluster.domain.ids import NodeName


def names(letters: str) -> frozenset[NodeName]:
    return frozenset(map(NodeName, letters))


def test_nobody_is_waited_for_before_the_first_job() -> None:
    assert Attendance().away(names("a"), names("abc")) == ()


def test_who_was_there_is_waited_for_unless_it_was_taken_out() -> None:
    before = Attendance().begins(names("abc"))
    assert before.away(names("a"), names("abcd")) == ("b", "c")
    assert before.away(names("a"), names("ac")) == ("c",)
    assert before.away(names("abcd"), names("abcd")) == ()


def test_who_stayed_away_is_not_waited_for_again_until_it_has_been_there() -> None:
    without = Attendance(there=names("ab")).begins(names("a"))
    assert without.away(names("a"), names("ab")) == ()
    assert without.begins(names("ab")).away(names("a"), names("ab")) == ("b",)


def test_a_job_that_nobody_is_there_for_changes_nothing() -> None:
    before = Attendance(there=names("ab"))
    assert before.begins(()) == before
