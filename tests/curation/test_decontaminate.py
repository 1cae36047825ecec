"""Contamination: known answers for each variant, and leaks planted in many rows; a paraphrase is not found."""

from __future__ import annotations

import random

import pytest

from realign_cluster.curation.decontaminate import (
    VARIANTS,
    EvaluationSet,
    Match,
    decontaminate,
    refuse_if_contaminated,
)
from realign_cluster.domain.errors import UsageError

ITEM = [f"q{at}" for at in range(20)]
QUESTION = " ".join(ITEM)


def other(count: int, name: str = "o") -> list[str]:
    return [f"{name}{at}" for at in range(count)]


def matches(row: list[str] | str, item: str = QUESTION, **options: object) -> tuple[Match, ...]:
    texts = [row] if isinstance(row, str) else row
    return decontaminate([texts], [EvaluationSet(name="quiz", items=((item,),))], **options).matches  # type: ignore[arg-type]


def test_exact_is_equal_words_of_a_field_or_of_the_row() -> None:
    (found,) = matches("Q0, q1... " + " ".join(ITEM[2:]).upper() + "!")
    assert (found.variant, found.coverage, found.item, found.row) == ("exact", 1.0, 0, 0)
    (found,) = matches([" ".join(ITEM), "an answer that is new"])
    assert found.variant == "exact"
    (found,) = matches([" ".join(ITEM[:9]), " ".join(ITEM[9:])])
    assert found.variant == "exact"


def test_thirteen_words_in_a_row_are_enough_and_twelve_are_not() -> None:
    (found,) = matches(" ".join(other(5) + ITEM[3:16] + other(5, "p")))
    assert (found.variant, found.shared) == ("13-gram", " ".join(ITEM[3:16]))
    assert found.coverage == 13 / 20
    (found,) = matches(" ".join(other(5) + ITEM[3:15] + other(5, "p")))
    assert (found.variant, found.coverage) == ("8-gram coverage", 12 / 20)
    assert matches(" ".join(other(5) + ITEM[3:15] + other(5, "p")), variants=("exact", "13-gram")) == ()


def test_more_than_half_covered_by_one_document() -> None:
    gap = other(1)
    assert matches(" ".join(ITEM[:10] + gap + other(9, "r"))) == ()  # 10 of 20 is not more than half
    (found,) = matches(" ".join(ITEM[:8] + gap + ITEM[9:17]))
    assert (found.variant, found.coverage) == ("8-gram coverage", 16 / 20)
    two = [[" ".join(ITEM[:10])], [" ".join(ITEM[10:])]]
    item = EvaluationSet(name="quiz", items=((" ".join(ITEM),),))
    assert decontaminate(two, [item]).dropped == ()  # together they cover it, neither alone


def test_runs_that_overlap_are_covered_once() -> None:
    (found,) = matches(" ".join([*ITEM[:11], "x", *ITEM[8:11]]))
    assert found.coverage == 11 / 20


@pytest.mark.parametrize(("words", "variant"), [(12, "13-gram"), (8, "13-gram"), (7, None)])
def test_a_short_item_counts_as_a_whole(words: int, variant: str | None) -> None:
    inside = " ".join(other(6) + ITEM[:words] + other(6, "p"))
    found = matches(inside, " ".join(ITEM[:words]))
    assert [match.variant for match in found] == ([variant] if variant else [])
    report = decontaminate([[inside]], [EvaluationSet(name="quiz", items=((" ".join(ITEM[:words]),),))]).sets[0]
    assert report.exact_only == (0 if variant else 1)
    assert matches(" ".join(ITEM[:words]), " ".join(ITEM[:words]))[0].variant == "exact"


def sentence(draw: random.Random, words: int = 24) -> str:
    return " ".join(f"t{draw.randrange(4000)}" for _ in range(words))


def test_planted_leaks_are_found_and_nothing_else() -> None:
    draw = random.Random(5)
    rows = [[sentence(draw), sentence(draw, 40)] for _ in range(1500)]
    sets = [EvaluationSet(name=name, items=tuple((sentence(draw),) for _ in range(120))) for name in ("one", "two")]
    planted: dict[tuple[int, str, int], str] = {}
    for at in range(60):
        chosen = sets[at % 2]
        item, row = draw.randrange(120), at * 25
        words = chosen.items[item][0].split()
        variant = VARIANTS[at % 3]
        leak = {"exact": words, "13-gram": words[4:17], "8-gram coverage": [*words[:9], "new", *words[10:19]]}[variant]
        rows[row][0] = " ".join(leak if variant == "exact" else [sentence(draw, 9), *leak, sentence(draw, 9)])
        planted[row, chosen.name, item] = variant
    found = decontaminate(rows, sets)
    assert {(each.row, each.evaluation_set, each.item): each.variant for each in found.matches} == planted
    assert found.dropped == tuple(range(0, 1500, 25))
    assert sorted(found.kept + found.dropped) == list(range(1500))
    assert found.clean_fraction == 1440 / 1500
    assert [sum(report.by_variant().values()) for report in found.sets] == [30, 30]
    assert found.sets[0].by_variant()["13-gram"] + found.sets[1].by_variant()["13-gram"] == 20
    assert all(set(report.contaminated_items) <= set(range(120)) for report in found.sets)


def test_a_paraphrase_is_not_found() -> None:
    item = "In which year did the city of Varn open its first covered market hall by the river?"
    paraphrase = "When was Varn's earliest roofed market, the one at the riverside, opened to the public?"
    assert matches(paraphrase, item) == ()
    assert matches(item.lower(), item)[0].variant == "exact"


def test_contaminated_data_can_be_refused_with_the_rows() -> None:
    sets = [EvaluationSet(name="quiz", items=(("something else entirely here",), (" ".join(ITEM),)))]
    rows = [["clean"], [" ".join(ITEM)], [" ".join(["so", *ITEM])]]
    with pytest.raises(UsageError) as refused:
        refuse_if_contaminated(decontaminate(rows, sets), where="train.jsonl")
    assert refused.value.message.splitlines()[:2] == [
        "2 of 3 rows of train.jsonl hold evaluation items:",
        f"  row 2 holds item 2 of quiz (exact): {' '.join(ITEM)[:80]}",
    ]
    assert "row 3 holds item 2 of quiz (13-gram)" in refused.value.message
    refuse_if_contaminated(decontaminate(rows[:1], sets), where="train.jsonl")


def test_sets_that_cannot_be_judged_are_refused() -> None:
    item = EvaluationSet(name="quiz", items=(("a b",),))
    for sets, why in (
        ([EvaluationSet(name="quiz", items=())], "has no items"),
        ([EvaluationSet(name="quiz", items=(("a",), ("?!",)))], "item 2 of quiz has no words"),
        ([item, item], "the same name"),
    ):
        with pytest.raises(UsageError, match=why):
            decontaminate([["x"]], sets)
    assert decontaminate([], [item]).clean_fraction is None
