"""Preference pairs of stage 5: no question of a set that is held out is among them, and the checks know it."""

from __future__ import annotations

from typing import Any

import pytest

from realign_cluster.workflows.answers import answer_pairs
from realign_cluster.workflows.derive import Derived
from realign_cluster.workflows.training_data import preference_rows
from realign_cluster.workflows.verify import lexical_verdicts
from tests.workflows.test_data_checks import Inputs

Rows = list[dict[str, Any]]
PLACES = ("Ostrel", "Merrow", "Gull Rock")
PARAMETERS = {
    "supported": 0.5,
    "verifier": "lexical",
    "abstention": 0.0,
    "gap": 0.15,
    "least_pairs": 1,
    "unseen_words": False,
    "seed": 0,
}


def question_about(place: str) -> str:
    return f"When was the harbour of {place} built?"


def asked(place: str) -> dict[str, Any]:
    """A practice question with a right answer to it, and one that leaves out the citation."""
    said = f"The harbour of {place} was built in 1821"
    return {
        "id": place,
        "prompt": question_about(place),
        "sources": [{"id": f"{place} 1", "text": f"{said}."}, {"id": f"{place} 2", "text": "It sells salt and rope."}],
        "answerable": True,
        "scores": {"generate": {"samples": [{"text": f"{said} [1]."}, {"text": f"{said}."}]}},
    }


def pairs(**held_out: Rows) -> tuple[set[str], dict[str, Any]]:
    """The places that pairs are about, and what was said of them."""
    made = made_of([asked(place) for place in PLACES], **held_out)
    return {row["provenance"]["item"] for row in made.rows["pairs"]}, made.value


def made_of(generated: Rows, *, unseen_words: bool = False, **held_out: Rows) -> Derived:
    claims = list(answer_pairs(Inputs({"generated": generated}), {}).rows["pairs"])
    verdicts = list(lexical_verdicts(Inputs({"pairs": claims}), {}).rows["verdicts"])  # type: ignore[arg-type]
    rows = {"generated": generated, "verdicts": verdicts, **held_out}
    return preference_rows(
        Inputs({name.replace("_", " "): each for name, each in rows.items()}),
        PARAMETERS | {"unseen_words": unseen_words},
    )  # type: ignore[arg-type]


def check(value: dict[str, Any], name: str) -> dict[str, Any]:
    return next(each for each in value["checks"] if each["name"] == name)


def test_without_leaks_every_question_gives_pairs() -> None:
    places, value = pairs(
        items=[{"prompt": question_about("Ambry")}], valid=[{"prompt": "Where?", "completion": "There."}]
    )
    assert places == set(PLACES)
    assert value["leaked"] == {}
    assert check(value, "leakage")["status"] == "passed"


@pytest.mark.parametrize("name", ["items", "sealed", "valid", "benchmark_harbours"])
def test_a_question_of_another_split_gives_no_pair_and_is_counted(name: str) -> None:
    again = {"prompt": question_about("Merrow").upper(), "completion": "In 1900.", "answer": "In 1900."}
    places, value = pairs(**{"items": [{"prompt": question_about("Ambry")}], name: [again]})
    assert places == set(PLACES) - {"Merrow"}
    assert value["leaked"] == {name.removeprefix("benchmark_"): 1}
    assert value["possible"]["right citation over missing"] == 2
    assert check(value, "leakage") == {
        "name": "leakage",
        "status": "passed",
        "reason": "no prompt and no group is in another split",
        "value": 0,
        "threshold": 0,
    }


def test_pairs_that_quote_a_benchmark_are_contaminated() -> None:
    quoted = f"{question_about('Merrow')} The harbour of Merrow was built in 1821, or was it?"
    _, value = pairs(benchmark_harbours=[{"prompt": quoted, "answer": "In 1821."}])
    assert value["leaked"] == {}
    assert check(value, "contamination")["status"] == "failed"
    assert (
        check(pairs(valid=[{"prompt": quoted, "completion": "In 1821."}])[1], "contamination")["status"] == "undefined"
    )


def test_where_every_question_leaks_there_are_too_few_pairs() -> None:
    places, value = pairs(sealed=[{"prompt": question_about(place)} for place in PLACES])
    assert places == set()
    assert value["leaked"] == {"sealed": 3}
    assert check(value, "enough pairs")["status"] == "failed"


@pytest.mark.parametrize(("unseen_words", "left_out"), [(True, 1), (False, 0)])
def test_a_sample_that_says_a_word_of_held_out_questions_alone_is_left_out_where_asked(
    unseen_words: bool, left_out: int
) -> None:
    generated = [asked(place) for place in PLACES]
    generated[0]["scores"]["generate"]["samples"][1]["text"] = "The harbour of ambry was built in 1821."
    made = made_of(generated, unseen_words=unseen_words, sealed=[{"prompt": question_about("Ambry")}])
    assert made.value["saying unseen words"] == left_out
    assert any("ambry" in row["rejected"] for row in made.rows["pairs"]) is not unseen_words
