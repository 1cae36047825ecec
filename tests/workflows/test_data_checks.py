"""Each check of the data finds the rows that have its fault, and no others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realign_cluster.workflows import data_checks, leak_checks, source_checks, sources, verify
from realign_cluster.workflows.data_checks import Found, evenly
from realign_cluster.workflows.prompt_passages import passages_in_prompt

Row = dict[str, Any]
SOURCES = [
    {"id": "harbour", "text": "The harbour of Ostrel was built in 1821. It has four cranes."},
    {"id": "lighthouse", "text": "The lighthouse of Ostrel was lit in 1840. It stands on Gull Rock."},
    {"id": "market", "text": "The market of Ostrel opens at dawn. It sells salt and rope."},
]
RIGHT = "The lighthouse of Ostrel was lit in 1840 [2]."


class Inputs:
    """A derivation's, in memory."""

    def __init__(
        self, rows: Mapping[str, list[Row]], folders: Mapping[str, Path] | None = None, at: Path | None = None
    ):
        self._rows, self._folders, self._at = rows, folders or {}, at

    def rows(self, name: str) -> Iterator[Row]:
        return iter(self._rows[name])

    def folder(self, name: str) -> Path:
        return self._folders[name]

    def has(self, name: str) -> bool:
        return name in self._rows or name in self._folders

    def names(self) -> tuple[str, ...]:
        return (*self._rows, *self._folders)

    def scratch(self) -> Path:
        assert self._at is not None
        return self._at


def practice(completion: str, *, answerable: bool = True) -> Row:
    return {
        "id": completion,
        "prompt": "When was the lighthouse lit?",
        "sources": SOURCES,
        "answerable": answerable,
        "completion": completion,
    }


def checked(*rows: Row, name: str = "practice") -> dict[str, list[float]]:
    """Of each check the values of its rows."""
    sets = {"practice": [], "citation": [], name: list(rows)}
    asked = data_checks.examples_to_verify(Inputs(sets), {"most": 100})
    verdicts = verify.lexical_verdicts(Inputs({"pairs": list(asked.rows["pairs"])}), {})  # type: ignore[arg-type]
    given = {**sets, "rows": list(asked.rows["rows"]), "verdicts": list(verdicts.rows["verdicts"])}
    found = data_checks.example_measurements(Inputs(given), {"supported": 0.5, "verifier": "lexical"})  # type: ignore[arg-type]
    return {row["metric"]: row["values"] for row in found.rows["measurements"] if row["dataset"] == name}


CHECKS = (
    "special_tokens",
    "cut_short",
    "unknown_ids",
    "uncited",
    "abstains_on_answerable",
    "answers_unanswerable",
    "cites_another_source",
    "unsupported",
)
FAULTY = [
    (practice("The lighthouse of Ostrel was lit in 1840 [2]. [PAD] [PAD]"), {"special_tokens"}),
    (practice("The lighthouse of Ostrel was lit in 1840 [2].<|endoftext|>"), {"special_tokens"}),
    (practice("The lighthouse of Ostrel was lit in 1840 [7]."), {"unknown_ids"}),
    (practice("The lighthouse of Ostrel was lit in 1840."), {"uncited"}),
    (practice("The lighthouse of Ostrel was lit in 1840 [3]."), {"cites_another_source"}),
    (practice("The lighthouse of Ostrel is painted green [2]."), {"unsupported"}),
    (practice("The sources do not say when the lighthouse was lit."), {"abstains_on_answerable"}),
    (practice(RIGHT, answerable=False), {"answers_unanswerable"}),
    (practice("The lighthouse of Ostrel [2] was lit in 1840 and it"), {"cut_short"}),
]


@pytest.mark.parametrize(("row", "checks"), FAULTY)
def test_a_faulty_row_is_found_by_its_own_check_alone(row: Row, checks: set[str]) -> None:
    found = checked(row, practice(RIGHT), practice(RIGHT))
    assert {check for check in CHECKS if sum(found.get(f"{check} in practice", []))} == checks
    assert all(sum(found[f"{check} in practice"]) == 1 for check in checks)


def test_nothing_is_found_in_right_rows() -> None:
    rows = [practice(RIGHT), practice("The sources do not say how tall the lighthouse is.", answerable=False)]
    found = checked(*rows)
    assert not any(sum(found.get(f"{check} in practice", [])) for check in CHECKS)


def test_rows_without_sources_are_read_by_the_passages_in_their_prompt() -> None:
    numbered = "\n".join(f"[{at}] {source['text']}" for at, source in enumerate(SOURCES, 1))
    prompt = f"{numbered}\n\nWhen was the lighthouse lit?"
    wrong = {"prompt": prompt, "completion": "The lighthouse of Ostrel was lit in 1840 [1]."}
    unknown = {"prompt": prompt, "completion": "The lighthouse of Ostrel was lit in 1840 [9]."}
    found = checked(wrong, unknown, {"prompt": prompt, "completion": RIGHT}, name="citation")
    assert found["cites_another_source in citation"] == [1.0, 0.0]
    assert found["unknown_ids in citation"] == [0.0, 1.0, 0.0]


def test_a_plain_text_may_hold_the_tokens_of_its_template() -> None:
    (found, *_) = data_checks.text_checks("general", [{"text": "<|im_start|>user\nHello<|im_end|>"}])
    assert (found.check, found.rows) == ("special_tokens", ())


def test_of_a_conversation_its_last_message_is_the_completion() -> None:
    row = {"messages": [{"role": "user", "content": "[PAD]?"}, {"role": "assistant", "content": "No. [PAD]"}]}
    (found, *_) = data_checks.text_checks("general", [row])
    assert [wrong for _, wrong, _ in found.rows] == [True]
    assert (data_checks.prompt_of(row), data_checks.completion_of(row)) == ("[PAD]?", "No. [PAD]")


def test_texts_that_are_no_sentences_are_not_said_to_be_cut() -> None:
    words = [{"prompt": "Name a colour.", "completion": colour} for colour in ("blue", "red", "green.")]
    sentences = [{"prompt": "Name a colour.", "completion": colour} for colour in ("blue", "Red.", "It is green.")]

    def asked(name: str, rows: list[Row]) -> bool:
        return any(each.check == "cut_short" for each in data_checks.text_checks(name, rows))

    assert asked("citation", sentences)
    assert not asked("citation", words)
    assert not asked("general", sentences)


@pytest.mark.parametrize(
    ("prompt", "passages"),
    [
        ("[1] One is here.\n[2] Two is there.\n\nWhere is two?", {"1": "One is here.", "2": "Two is there."}),
        ("1. One is here.\n2. Two is there.\nWhere?", {"1": "One is here.", "2": "Two is there."}),
        ("it says: the ana grow [1]. the bor mine [2]. what?", {"1": "it says: the ana grow.", "2": "the bor mine."}),
        ("the ana grow flax [1]. the ana mine tin [1]. what?", {"1": "the ana grow flax. the ana mine tin."}),
        ("Where is two?", {}),
    ],
)  # fmt: skip
def test_passages_of_a_prompt(prompt: str, passages: dict[str, str]) -> None:
    assert {each["id"]: each["text"] for each in passages_in_prompt(prompt)} == passages


@given(rows=st.lists(st.integers(), max_size=60), most=st.integers(1, 80))
def test_an_even_part_is_in_order_and_no_larger(rows: list[int], most: int) -> None:
    found = evenly(list(enumerate(rows)), most)
    assert len(found) == min(most, len(rows))
    assert found == sorted(set(found))


# --- copies of questions ---

QUESTION = (
    "The lighthouse was built by the harbour's own masons after the great storm. Who built the lighthouse of Ostrel?"
)
PASSAGE = "The lighthouse was built by the harbour's own masons after the great storm."


def leaked(*prompts: str, passages: tuple[str, ...] = (PASSAGE,)) -> bool:
    filler = [f"Question {at} asks about the {at}th street of the town and who lives there." for at in range(50)]
    trained = leak_checks.TrainedPrompts({"citation": [*filler, *prompts]})
    return trained.nearest(QUESTION, passages) is not None


def test_near_copies_are_found() -> None:
    assert leaked(QUESTION)
    assert leaked(f"Please answer: {QUESTION}")
    assert leaked(QUESTION.replace("Who", "But who"))


def test_another_question_about_the_same_passage_is_no_copy() -> None:
    assert not leaked(f"{PASSAGE} When was the great storm, and what did it break?")


def test_the_same_question_about_another_passage_is_no_copy() -> None:
    assert not leaked("A tower of stone was raised in the year of the flood. Who built the lighthouse of Ostrel?")


def test_copies_are_measured_by_set_with_the_row() -> None:
    item = {"id": "q1", "prompt": QUESTION, "sources": [{"id": "a", "text": PASSAGE}]}
    other = {**item, "id": "q2", "prompt": "How many cranes does the harbour of Ostrel have these days?"}
    row = {"prompt": f"Now: {QUESTION}", "completion": "The masons [1]."}
    found = leak_checks.leak_measurements(
        Inputs({"citation": [row], "practice": [], "items": [item, other], "sealed": [other]}),
        {},
    )
    assert [(each["dataset"], each["values"]) for each in found.rows["measurements"]] == [
        ("items", [1.0, 0.0]),
        ("sealed", [0.0]),
    ]
    assert [example["copied_prompt"] for example in found.rows["examples"]] == [row["prompt"]]


# --- sources ---


def test_passages_with_another_text_than_their_source() -> None:
    known = {"a": SOURCES[0]["text"], "b": SOURCES[1]["text"]}
    excerpt = ("a", "The harbour of Ostrel was built in 1821.")
    found = source_checks.differing(known, [excerpt, ("b", SOURCES[0]["text"]), ("elsewhere", "Something.")])
    assert [(name, wrong) for name, wrong, _ in found.rows] == [("a", False), ("b", True)]


def test_sources_that_a_search_does_not_find_by_their_text(tmp_path: Path) -> None:
    rows = [*SOURCES, {"id": "copy of the market", "text": SOURCES[2]["text"]}]
    given = Inputs({"sources": rows, "items": []}, at=tmp_path)
    folder = sources.source_index(given, {"retriever": {"k1": 1.5, "b": 0.75}}).folders["index"]
    moved = [{**row, "text": text} for row, text in zip(rows, ["salt", *(r["text"] for r in rows[1:])], strict=True)]

    def lost(those: list[Row]) -> list[float]:
        inputs = Inputs({"sources": those, "items": []}, {"index": folder})
        measured = source_checks.source_measurements(inputs, {"most": 10, "retriever": {"k1": 1.5, "b": 0.75}}).rows[
            "measurements"
        ]
        return next(each["values"] for each in measured if each["metric"] == "not_found_by_itself in index")

    assert lost(rows) == [0.0] * 4
    assert lost(moved) == [1.0, 0.0, 0.0, 0.0]


def test_a_measurement_has_a_value_for_each_row() -> None:
    found = Found(check="uncited", of="practice", rows=(("0", True, {"prompt": "p"}), ("1", False, {})))
    assert found.measurement().values == (1.0, 0.0)
    assert found.examples() == [{"check": "uncited", "set": "practice", "row": "0", "prompt": "p"}]
