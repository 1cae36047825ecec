"""The form of a training row, what is wrong with it, and how it is written."""

from __future__ import annotations

from typing import Any

import pytest

from realign_cluster.domain.rows import BadField
from realign_cluster.domain.training_rows import WrongForm, canonical_row, form_of

USER, ANSWER = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}
OTHER = {"role": "assistant", "content": "No idea."}
SYSTEM = {"role": "system", "content": ""}


@pytest.mark.parametrize(
    ("row", "method", "form"),
    [
        ({"messages": [USER, ANSWER]}, "sft", "chat"),
        ({"prompt": "p", "completion": "c"}, "sft", "completions"),
        ({"prompt": "p", "response": "r", "quality": "good"}, "sft", "completions"),
        ({"text": "t"}, "sft", "text"),
        ({"prompt": "p", "chosen": "c", "rejected": "r"}, "dpo", "preference"),
        ({"chosen": [USER, ANSWER], "rejected": [USER, OTHER]}, "orpo", "preference"),
        # mlx-lm's order where several fit
        ({"prompt": "p", "completion": "c", "messages": [USER], "text": "t"}, "sft", "completions"),
        ({"prompt": "p", "messages": [USER, ANSWER], "text": "t"}, "sft", "chat"),
        ({"prompt": "p", "response": "r", "text": "t"}, "sft", "text"),
        # the method decides before the order does
        ({"prompt": "p", "chosen": "c", "rejected": "r", "messages": [USER, ANSWER]}, "sft", "chat"),
        ({"prompt": "p", "chosen": "c", "rejected": "r", "messages": [USER, ANSWER]}, "ipo", "preference"),
        # columns that a table fills with null are not there
        ({"messages": None, "text": "t", "chosen": None}, "sft", "text"),
        ({"prompt": "p"}, "sft", "completions"),
        ({"chosen": "c"}, "cdpo", "preference"),
    ],
)
def test_the_form_of_a_row(row: dict[str, Any], method: Any, form: str) -> None:
    assert form_of(row, method) == form


@pytest.mark.parametrize(
    ("row", "method", "message"),
    [
        (
            {"prompt": "p", "completion": "c"},
            "dpo",
            'dpo learns from preference {"prompt", "chosen", "rejected"} rows, '
            'this is a completions row {"prompt", "completion"}',
        ),
        ({"text": "t"}, "orpo", "orpo learns from preference .* this is a text row"),
        (
            {"prompt": "p", "chosen": "c", "rejected": "r"},
            "sft",
            'sft learns from chat {"messages"} or completions .* or text .* rows, this is a preference row',
        ),
    ],
)
def test_a_form_that_the_method_does_not_learn_from(row: dict[str, Any], method: Any, message: str) -> None:
    with pytest.raises(WrongForm, match=message):
        form_of(row, method)


@pytest.mark.parametrize(
    ("row", "method", "message"),
    [
        ({"conversations": []}, "sft", 'has the fields conversations; expected {"messages"} or '),
        ({"claim": "c"}, "dpo", 'has the fields claim; expected {"prompt", "chosen", "rejected"}$'),
        ({}, "sft", "has no fields; expected"),
        ({"text": None}, "sft", "has the fields text; expected"),
        (dict.fromkeys("abcdefghijklmnop", 1), "sft", r"has the fields a, .*, l, \.\.\.; expected"),
    ],
)
def test_a_row_without_a_form(row: dict[str, Any], method: Any, message: str) -> None:
    with pytest.raises(BadField) as bad:
        form_of(row, method)
    assert bad.match(message)
    assert bad.value.field == ""


@pytest.mark.parametrize(
    ("row", "form", "written"),
    [
        ({"messages": [SYSTEM, USER, ANSWER], "id": 3}, "chat", {"messages": [SYSTEM, USER, ANSWER]}),
        (
            {"messages": [USER | {"name": "Ann", "weight": None}, ANSWER]},
            "chat",
            {"messages": [USER | {"name": "Ann"}, ANSWER]},
        ),
        ({"prompt": "p", "response": "r", "quality": "good"}, "completions", {"prompt": "p", "completion": "r"}),
        ({"prompt": "p", "completion": None, "response": "r"}, "completions", {"prompt": "p", "completion": "r"}),
        ({"prompt": [USER], "completion": [ANSWER]}, "completions", {"prompt": "Why?", "completion": "Because."}),
        (
            {"prompt": [SYSTEM, USER], "completion": "c", "tools": []},
            "completions",
            {"prompt": [SYSTEM, USER], "completion": "c"},
        ),
        (
            {"prompt": "p", "completion": [ANSWER, USER, OTHER]},
            "completions",
            {"prompt": "p", "completion": [ANSWER, USER, OTHER]},
        ),
        ({"text": " t\n", "source": "web"}, "text", {"text": " t\n"}),
        (
            {"prompt": "p", "chosen": "c", "rejected": "r"},
            "preference",
            {"prompt": "p", "chosen": "c", "rejected": "r"},
        ),
        (
            {"chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
            "preference",
            {"prompt": "Why?", "chosen": "Because.", "rejected": "No idea."},
        ),
        (  # as in ultrafeedback_binarized: the prompt once more as a text
            {"prompt": "Why?", "chosen": [SYSTEM, USER, ANSWER], "rejected": [SYSTEM, USER, OTHER]},
            "preference",
            {"prompt": [SYSTEM, USER], "chosen": "Because.", "rejected": "No idea."},
        ),
        (
            {"prompt": "Why?", "chosen": [ANSWER], "rejected": [OTHER]},
            "preference",
            {"prompt": "Why?", "chosen": "Because.", "rejected": "No idea."},
        ),
    ],
)
def test_a_row_is_written_in_one_way(row: dict[str, Any], form: Any, written: dict[str, Any]) -> None:
    assert canonical_row(row, form) == written
    assert canonical_row(written, form) == written


MISSING_ROLE = "message 0 has no 'role', expected a text"


@pytest.mark.parametrize(
    ("row", "form", "field", "message"),
    [
        ({"messages": "hi"}, "chat", "messages", 'is a text, expected a list of {"role", "content"}'),
        ({"messages": []}, "chat", "messages", "is an empty list of messages"),
        ({"messages": [{"from": "human", "value": "hi"}]}, "chat", "messages", MISSING_ROLE),
        ({"messages": [{"role": "human", "content": "hi"}]}, "chat", "messages", "message 0 has the role 'human', exp"),
        ({"messages": [USER]}, "chat", "messages", "has no message of 'assistant'"),
        (
            {"messages": [USER, {"role": "assistant", "content": " \n"}]},
            "chat",
            "messages",
            "message 1 of 'assistant' is empty, expected a text",
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": []}]},
            "chat",
            "messages",
            "message 1 has null as 'content', expected a text",
        ),
        (
            {"messages": [USER, ANSWER | {"tool_calls": [{}]}]},
            "chat",
            "messages",
            "message 1 has a list as 'tool_calls', messages may hold texts only",
        ),
        ({"messages": [USER, ANSWER], "tools": [{}]}, "chat", "tools", "definitions of tools cannot be trained with"),
        ({"completion": "c"}, "completions", "prompt", "missing"),
        ({"prompt": "p"}, "completions", "completion", "missing"),
        ({"prompt": "p", "response": None}, "completions", "response", "is null, expected a text or a list"),
        ({"prompt": 3, "completion": "c"}, "completions", "prompt", "is a number, expected a text or a list"),
        ({"prompt": "p", "completion": ""}, "completions", "completion", "is empty, expected a text"),
        ({"prompt": "\t", "completion": "c"}, "completions", "prompt", "is empty, expected a text"),
        (
            {"prompt": "p", "completion": "c", "response": "r"},
            "completions",
            "response",
            "stands beside 'completion', leave one of them out",
        ),
        (
            {"prompt": "p", "completion": [ANSWER, USER]},
            "completions",
            "completion",
            "ends with a message of 'user', expected one of 'assistant'",
        ),
        ({"text": ["t"]}, "text", "text", "is a list, expected a text"),
        ({"text": " "}, "text", "text", "is empty, expected a text"),
        ({"prompt": "p", "chosen": "c"}, "preference", "rejected", "missing"),
        ({"prompt": "p", "chosen": "c", "rejected": None}, "preference", "rejected", "is null, expected"),
        ({"prompt": "p", "chosen": "c", "rejected": "c"}, "preference", "rejected", "is the same as 'chosen'"),
        ({"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, "preference", "rejected", "is the same as 'chosen'"),
        ({"chosen": "c", "rejected": "r"}, "preference", "prompt", "missing, and chosen and rejected are not conv"),
        ({"prompt": "p", "chosen": "", "rejected": "r"}, "preference", "chosen", "is empty, expected a text"),
        (
            {"chosen": [USER, ANSWER], "rejected": [SYSTEM, OTHER]},
            "preference",
            "chosen",
            "no prompt, and the conversations chosen and rejected share no first message",
        ),
        (
            {"chosen": [USER, ANSWER], "rejected": [USER, ANSWER, USER, OTHER]},
            "preference",
            "chosen",
            "no prompt, and one of the conversations chosen and rejected is the beginning of the other",
        ),
        (
            {"chosen": [SYSTEM, USER, ANSWER], "rejected": [SYSTEM, USER | {"content": "How?"}, OTHER]},
            "preference",
            "chosen",
            "begins with a message of 'user', expected one of 'assistant'",
        ),
        (
            {"prompt": [USER], "chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
            "preference",
            "chosen",
            "begins with a message of 'user', expected one of 'assistant'",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_field(row: dict[str, Any], form: Any, field: str, message: str) -> None:
    with pytest.raises(BadField) as bad:
        canonical_row(row, form)
    assert bad.value.field == field
    assert message in bad.value.message
