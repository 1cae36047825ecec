"""Looking fields up by role, and saying what is wrong with a value."""

import pytest

from realign_cluster.domain.job import Fields
from realign_cluster.domain.rows import MISSING, BadField, RowCheck, implicit_prompt, lookup, text_bytes

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("a", {"b": [{"c": 7}]}),
        ("a.b.0.c", 7),
        ("x.y", "exact key wins"),
        ("a.b.1", MISSING),
        ("a.b.-1", MISSING),
        ("a.b.c", MISSING),
        ("a.b.0.c.d", MISSING),
        ("nothing", MISSING),
        ("none", None),
    ],
)
def test_lookup_takes_the_exact_key_first_then_the_dotted_path(path, found):
    row = {"a": {"b": [{"c": 7}]}, "x.y": "exact key wins", "x": {"y": "not this"}, "none": None}
    assert lookup(row, path) == found or lookup(row, path) is found


@pytest.mark.parametrize(
    ("row", "field", "message"),
    [
        ({"response": "r"}, "prompt", "missing"),
        ({"prompt": None, "response": "r"}, "prompt", "is null, expected a text or a list of"),
        ({"prompt": 3, "response": "r"}, "prompt", "is a number"),
        ({"prompt": True, "response": "r"}, "prompt", "is true or false"),
        ({"prompt": "p", "response": {}}, "response", "is an object"),
        ({"prompt": [], "response": "r"}, "prompt", "empty list of messages"),
        ({"prompt": ["hi"], "response": "r"}, "prompt", "message 0 is a text"),
        ({"prompt": [*MESSAGES, {"role": "user"}], "response": "r"}, "prompt", "message 1 has no 'content'"),
        ({"prompt": [{"role": "user", "content": None}], "response": "r"}, "prompt", "message 0 has null as 'content'"),
    ],
)
def test_wrong_values_are_named_with_what_would_be_right(row, field, message):
    with pytest.raises(BadField) as caught:
        RowCheck(("loglik",), Fields())(row)
    assert caught.value.field == field
    assert message in caught.value.message


def test_the_field_is_named_as_the_user_gave_it():
    with pytest.raises(BadField, match=r"chat\.0\.text: missing"):
        RowCheck(("loglik",), Fields(prompt="chat.0.text"))({"chat": [], "response": "r"})


def test_text_is_measured_in_utf8_bytes_over_all_roles():
    check = RowCheck(("loglik", "ifd"), Fields())
    assert check({"prompt": "ab", "response": "cdé"})[0] == 2 + 4
    assert check({"prompt": MESSAGES, "response": "x"})[0] == text_bytes(MESSAGES) + 1


def test_evidence_is_a_text_or_a_list_of_texts():
    check = RowCheck(("judge",), Fields())
    assert check({"claim": "c", "evidence": ["one", "two"]})[0] == 1 + 8
    with pytest.raises(BadField, match="item 1 of the list is a number"):
        check({"claim": "c", "evidence": ["one", 2]})
    with pytest.raises(BadField, match="claim: is a list"):
        check({"claim": MESSAGES, "evidence": "e"})


def test_a_long_shared_prefix_is_reported_so_that_its_rows_stay_together():
    check = RowCheck(("judge",), Fields())
    assert check({"claim": "c", "evidence": "e" * 50})[1] == "e" * 50
    assert check({"claim": "c" * 51, "evidence": "e" * 50})[1] is None
    assert check({"claim": "c", "evidence": ""})[1] is None


def test_noop_needs_nothing():
    check = RowCheck(("noop",), Fields())
    assert not check.reads_text
    assert check({}) == (0, None)


def conversation(*contents):
    return [{"role": "user" if at % 2 == 0 else "assistant", "content": text} for at, text in enumerate(contents)]


def test_preference_takes_implicit_prompts():
    row = {"chosen": conversation("q", "good"), "rejected": conversation("q", "bad")}
    check = RowCheck(("preference",), Fields())
    assert check(row)[0] > 0
    assert check({**row, "prompt": None})[0] > 0
    prompt, chosen, rejected = implicit_prompt(row["chosen"], row["rejected"])
    assert (prompt, chosen[0]["content"], rejected[0]["content"]) == (conversation("q"), "good", "bad")


@pytest.mark.parametrize(
    ("chosen", "rejected", "message"),
    [
        ("good", "bad", "not conversations"),
        (conversation("q", "good"), conversation("other", "bad"), "share no first message"),
        (conversation("q", "good"), conversation("q"), "beginning of the other"),
    ],
)
def test_implicit_prompts_that_are_none(chosen, rejected, message):
    with pytest.raises(BadField, match=message):
        RowCheck(("preference",), Fields())({"chosen": chosen, "rejected": rejected})


def test_a_prompt_that_another_kind_needs_is_not_optional():
    row = {"chosen": conversation("q", "good"), "rejected": conversation("q", "bad"), "response": "r"}
    with pytest.raises(BadField, match="prompt: missing"):
        RowCheck(("preference", "loglik"), Fields())(row)
