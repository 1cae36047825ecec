"""Pairs from samples and verdicts: each reason makes its pairs and no others, with their provenance."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from realign_cluster.curation.preference_pairs import (
    FAMILIES,
    REASONS,
    JudgedItem,
    JudgedSample,
    PreferencePair,
    make_pairs,
)
from realign_cluster.domain.errors import UsageError

RIGHT = JudgedSample(id="right", text="Ann founded it [1].", citation="right", support="supported")
FAULTY = [
    JudgedSample(id=fault, text=f"Ann founded it {mark}.", citation=fault, support="supported")  # type: ignore[arg-type]
    for fault, mark in (("wrong", "[2]"), ("missing", ""), ("swapped", "[3]"), ("irrelevant", "[1][2]"))
]
INVENTED = JudgedSample(id="invented", text="Bob founded it [1].", citation="wrong", support="hallucinated")
SILENT = JudgedSample(id="silent", text="The sources do not say.", abstains=True)
ANSWERABLE = JudgedItem(
    id="a1", prompt="Who founded it?", answerable=True, samples=(INVENTED, *FAULTY, RIGHT, SILENT), group="it"
)
UNANSWERABLE = JudgedItem(id="u1", prompt="Who sold it?", answerable=False, samples=(INVENTED, RIGHT, SILENT))


def named(pairs: tuple[PreferencePair, ...]) -> set[tuple[str, str, str]]:
    return {(pair.reason, pair.chosen.id, pair.rejected.id) for pair in pairs}


def test_every_reason_makes_its_pairs() -> None:
    made = make_pairs([ANSWERABLE, UNANSWERABLE], per_reason=9)
    assert named(made.pairs) == {
        ("right citation over wrong", "right", "wrong"),
        ("right citation over wrong", "right", "invented"),
        ("right citation over missing", "right", "missing"),
        ("right citation over swapped", "right", "swapped"),
        ("right citation over irrelevant", "right", "irrelevant"),
        ("supported over hallucinated", "right", "invented"),
        ("answer over abstention", "right", "silent"),
        ("abstention over hallucination", "silent", "invented"),
    }
    assert made.possible == made.taken == {reason: 2 if "wrong" in reason else 1 for reason in REASONS}
    assert made.without == ()
    assert set(FAMILIES.values()) == {"citation", "support", "answer", "abstention"}


def test_a_pair_says_where_it_comes_from() -> None:
    made_wrong = replace(FAULTY[0], made_from="right")
    (pair,) = make_pairs([replace(ANSWERABLE, samples=(RIGHT, made_wrong))]).pairs
    assert pair.row() == {
        "prompt": "Who founded it?",
        "chosen": "Ann founded it [1].",
        "rejected": "Ann founded it [2].",
        "group": "it",
        "provenance": {
            "item": "a1",
            "chosen": "right",
            "rejected": "wrong",
            "reason": "right citation over wrong",
            "made_from": "right",
        },
    }


def test_nothing_is_chosen_that_was_found_wanting_or_not_judged() -> None:
    unjudged = JudgedSample(id="unjudged", text="Cid founded it.")
    cited_lie = JudgedSample(id="lie", text="Dan founded it [1].", citation="right", support="hallucinated")
    item = replace(ANSWERABLE, samples=(unjudged, cited_lie, SILENT, INVENTED, *FAULTY))
    assert make_pairs([item], per_reason=9).pairs == ()
    assert make_pairs([item]).without == ("a1",)
    unjudged_where_none_is = replace(UNANSWERABLE, samples=(SILENT, unjudged, RIGHT))
    assert make_pairs([unjudged_where_none_is]).pairs == ()


def test_answers_that_read_the_same_are_no_pair() -> None:
    twin = replace(FAULTY[0], text=f" {RIGHT.text}\n")
    assert make_pairs([replace(ANSWERABLE, samples=(RIGHT, twin))]).pairs == ()


def many(count: int) -> list[JudgedItem]:
    draw = random.Random(3)
    items = []
    for at in range(count):
        answerable = at % 4 != 0
        samples = [replace(draw.choice((RIGHT, SILENT, INVENTED, *FAULTY)), id=f"s{n}") for n in range(8)]
        samples = [replace(sample, text=f"{sample.text} ({n})") for n, sample in enumerate(samples)]
        items.append(JudgedItem(id=f"i{at}", prompt=f"Q{at}?", answerable=answerable, samples=tuple(samples)))
    return items


def test_the_seed_alone_decides_what_is_drawn() -> None:
    items = many(60)
    one = make_pairs(items, seed=1)
    assert one == make_pairs(items, seed=1)
    assert named(one.pairs) != named(make_pairs(items, seed=2).pairs)
    turned = [replace(item, samples=item.samples[::-1]) for item in reversed(items)]
    again = make_pairs(turned, seed=1)
    keys = [{(p.item.id, p.reason, p.chosen.id, p.rejected.id) for p in made.pairs} for made in (one, again)]
    assert keys[0] == keys[1]
    assert max(Counter((pair.item.id, pair.reason) for pair in one.pairs).values()) == 1


def test_families_get_their_shares() -> None:
    items = many(400)
    made = make_pairs(items, shares={"citation": 2, "answer": 1, "abstention": 1})
    found = Counter(pair.family for pair in made.pairs)
    assert found["citation"] == pytest.approx(2 * found["answer"], abs=2)
    assert found["answer"] == pytest.approx(found["abstention"], abs=1)
    assert found["support"] == 0
    everything = Counter(pair.family for pair in make_pairs(items).pairs)
    assert any(found[family] >= everything[family] - 1 for family in ("citation", "answer", "abstention"))
    order = [pair.item.id for pair in made.pairs]
    assert order == sorted(order, key=lambda name: int(name[1:]))


@pytest.mark.parametrize(
    ("shares", "why"),
    [({}, "shares of"), ({"citation": 0}, "shares of"), ({"citation": 1, "abstention": 1}, "no pair can be made for")],
)
def test_shares_that_cannot_be(shares: dict[object, float], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        make_pairs([ANSWERABLE], shares=shares)  # type: ignore[arg-type]


def test_ids_are_unique() -> None:
    with pytest.raises(UsageError, match="two items have the id a1"):
        make_pairs([ANSWERABLE, ANSWERABLE])
    with pytest.raises(UsageError, match="two samples of a1"):
        make_pairs([replace(ANSWERABLE, samples=(RIGHT, RIGHT))])
