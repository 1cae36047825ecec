"""Checks of preference pairs: each passes on good pairs and fails on the fault that it is for, with the rows."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from realign_cluster.curation.decontaminate import EvaluationSet
from realign_cluster.curation.pair_checks import check_pairs
from realign_cluster.curation.pair_report import CheckName, PairLimits, PairReport

COUNT = 240
Rows = list[dict[str, Any]]
QUESTION = "Which of the two rivers that meet below the old castle of Varn carries more water in spring?"


def good_pairs() -> Rows:
    draw = random.Random(11)

    def words(count: int) -> str:
        return " ".join(f"w{draw.randrange(3000)}" for _ in range(count))

    return [
        {
            "prompt": words(12),
            "chosen": words(draw.randrange(8, 20)),
            "rejected": words(draw.randrange(8, 20)),
            "group": f"g{at // 2}",
        }
        for at in range(COUNT)
    ]


def report(rows: Rows, gap: float | None = 0.3, **options: Any) -> PairReport:
    draw = random.Random(1)
    gaps = [None if gap is None else draw.gauss(gap, 0.2) for _ in rows]
    given: dict[str, Any] = {
        "gaps": gaps,
        "scorer": "margin_mean by tiny",
        "limits": PairLimits(pairs=200),
        "evaluation_sets": [EvaluationSet(name="quiz", items=((QUESTION,),))],
        "other_splits": {"test": [{"prompt": "another question", "chosen": "a", "rejected": "b", "group": "t"}]},
    }
    return check_pairs(rows, **given | options)


def test_good_pairs_pass_every_check() -> None:
    found = report(good_pairs())
    assert found.passed, found.text()
    assert (found.pairs, found.failed, found.undefined) == (COUNT, (), ())
    assert len(found.text().splitlines()) == len(found.checks) == 10
    assert found.gap is not None
    assert found.gap.mean == pytest.approx(0.3, abs=0.05)
    assert found.gap.standard_error == pytest.approx(0.2 / COUNT**0.5, rel=0.15)
    assert found.gap.reversed_fraction == pytest.approx(0.0668, abs=0.05)
    assert found.length is not None
    assert found.length.correlation == pytest.approx(0.0, abs=0.2)


def empty(rows: Rows) -> None:
    rows[4]["rejected"] = "  "
    rows[9]["prompt"] = [{"role": "user", "content": ""}]


def identical(rows: Rows) -> None:
    rows[2]["rejected"] = rows[2]["chosen"] + "\n"
    rows[3]["rejected"] = rows[3]["chosen"]


def duplicate(rows: Rows) -> None:
    rows[7] = dict(rows[6])


def contradict(rows: Rows) -> None:
    rows[7] = rows[6] | {"chosen": rows[6]["rejected"], "rejected": rows[6]["chosen"]}


def unreadable(rows: Rows) -> None:
    rows[0] = {"text": "no pair"}
    rows[5]["chosen"] = 3


def leak_prompt(rows: Rows) -> None:
    rows[12]["prompt"] = "Another question?"


def leak_group(rows: Rows) -> None:
    rows[13]["group"] = "t"


@pytest.mark.parametrize(
    ("spoil", "check", "at"),
    [
        (empty, "empty fields", (5, 10)),
        (identical, "identical", (3, 4)),
        (duplicate, "duplicates", (8,)),
        (contradict, "contradictions", (7, 8)),
        (unreadable, "readable", (1, 6)),
        (leak_prompt, "leakage", (13,)),
        (leak_group, "leakage", (14,)),
    ],
)
def test_a_fault_fails_its_check_and_no_other(
    spoil: Callable[[Rows], None], check: CheckName, at: tuple[int, ...]
) -> None:
    rows = good_pairs()
    spoil(rows)
    found = report(rows)
    assert [each.name for each in found.failed] == [check]
    assert found.check(check).rows == at
    assert not found.passed


def test_a_gap_that_is_too_small() -> None:
    found = report(good_pairs(), gap=0.1)
    assert [each.name for each in found.failed] == ["gap"]
    assert found.check("gap").value == pytest.approx(0.1, abs=0.05)
    assert "by margin_mean by tiny, at least 0.15 is wanted" in found.check("gap").reason
    assert report(good_pairs(), gap=0.1, limits=PairLimits(pairs=200, gap=0.05)).passed


def test_a_gap_is_that_of_the_pairs_that_are_pairs() -> None:
    rows = good_pairs()
    identical(rows)
    gaps: list[float | None] = [0.5] * COUNT
    gaps[2] = gaps[3] = -900.0  # of the identical ones
    gaps[7] = None
    found = report(rows, gaps=gaps)
    assert found.gap is not None
    assert (found.gap.mean, found.gap.pairs, found.check("gap").rows) == (0.5, COUNT - 3, (8,))
    assert "1 pairs have no score" in found.check("gap").reason


def test_a_gap_is_not_a_length() -> None:
    rows = good_pairs()
    gaps = [float(len(row["chosen"].split()) - len(row["rejected"].split())) for row in rows]
    found = check_pairs(rows, gaps=gaps, scorer="words", limits=PairLimits(pairs=200))
    assert found.length is not None
    assert found.length.correlation == pytest.approx(1.0)


def test_pairs_that_prefer_the_longer_answer() -> None:
    rows = good_pairs()
    for row in rows:
        row["chosen"] += " and one two three four five six seven"
    found = report(rows)
    assert [each.name for each in found.failed] == ["length bias"]
    assert found.length is not None
    assert found.length.predicted > 0.8
    assert found.length.bound < found.length.predicted
    assert "choose the longer answer" in found.check("length bias").reason
    for row in rows:
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    assert "choose the shorter answer" in report(rows).check("length bias").reason


@pytest.mark.parametrize(("count", "fails"), [(14, False), (20, True)])
def test_length_bias_needs_evidence(count: int, fails: bool) -> None:
    """Chosen longer 13 of 14 times: the lower bound (two rules, so 97.5 %) is 0.661; 19 of 20: 0.751."""
    rows = [{"prompt": f"p{at}", "chosen": "a b c" if at else "a", "rejected": f"x y{at}"} for at in range(count)]
    found = check_pairs(rows).check("length bias")
    assert (found.status == "failed") == fails
    assert ("66.1%" in found.reason) != fails


@pytest.mark.parametrize(("planted", "status"), [(24, "passed"), (25, "failed")])
def test_a_tenth_may_be_contaminated(planted: int, status: str) -> None:
    rows = good_pairs()
    for at in range(planted):
        rows[at * 3]["prompt"] = f"w{at} Context. {QUESTION} Answer."
    found = report(rows)
    assert found.check("contamination").status == status
    assert found.check("contamination").value == 1 - planted / COUNT
    assert found.check("contamination").rows == tuple(at * 3 + 1 for at in range(planted))
    assert f"{planted} by 13-gram" in found.check("contamination").reason


def test_what_was_not_given_is_undefined_and_does_not_pass() -> None:
    found = check_pairs(good_pairs(), limits=PairLimits(pairs=200))
    assert {each.name for each in found.undefined} == {"gap", "contamination", "leakage"}
    assert found.failed == ()
    assert not found.passed
    assert report(good_pairs(), gap=None).check("gap").reason == "no pair has a score"


def test_too_few_and_none_at_all() -> None:
    assert check_pairs(good_pairs()).check("enough pairs").reason == "240 pairs, at least 1,000 are wanted"
    found = report([])
    assert found.check("enough pairs").status == "failed"
    assert [each.name for each in found.undefined] == ["gap", "length bias", "contamination"]


def test_near_duplicates_fail_where_a_limit_is_set() -> None:
    rows = good_pairs()
    rows[1] = rows[0] | {"rejected": rows[0]["rejected"] + " end"}
    assert report(rows).check("duplicates").status == "passed"
    found = report(rows, limits=PairLimits(pairs=200, near_duplicate_fraction=0.0)).check("duplicates")
    assert (found.status, found.rows) == ("failed", (2,))


def test_conversations_are_pairs_too() -> None:
    turns = [{"role": "user", "content": "Why?"}]
    rows = [
        {
            "chosen": [*turns, {"role": "assistant", "content": f"Because {at} is even."}],
            "rejected": [*turns, {"role": "assistant", "content": f"No idea {at}."}],
        }
        for at in range(3)
    ]
    found = check_pairs(rows, other_splits={"valid": [{"prompt": "why", "chosen": "a", "rejected": "b"}]})
    assert found.pairs == 3
    assert found.check("leakage").rows == (1, 2, 3)
    assert [leak.kind for leak in found.leaks] == ["content"] * 3
