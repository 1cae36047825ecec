"""The --keep-if language: what it decides, what it refuses, and that it runs nothing."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.expression import KEEP_IF, UNDEFINED, TypeMismatch, compile_keep_if

KINDS = ("ifd", "ifd-ppl", "judge", "loglik", "preference")
ROW = {
    "label": "yes", "n": 3, "text": "abc", "list": ["en", "de"], "deep": {"er": {"key with space": 4}}, "flag": True,
    "dotted.key": 5, "nothing": None,
}  # fmt: skip
SCORES = {
    "ifd": {"value": 0.8, "nll_conditioned": 1.0, "nll_alone": 1.25, "tokens": 9, "truncated": False},
    "ifd-ppl": {
        "value": None,
        "nll_conditioned": None,
        "nll_alone": None,
        "tokens": 0,
        "truncated": False,
        "undefined": "empty",
    },
    "judge": {"probabilities": {"yes": 0.75, "no": 0.25}, "label": "yes", "truncated": False},
    "preference": {"chosen": {"sum": -3.0}, "rejected": {"sum": -5.0}, "margin_sum": 2.0, "margin_mean": 0.5},
}


GENERATED = {
    "generate": {
        "samples": [{"text": "Yes. 1.5", "finish": "stop"}, {"text": "No", "finish": "length"}],
        "seed": 7,
        "truncated": False,
    }
}


@pytest.mark.parametrize(
    "text",
    [
        'scores.generate.samples.0.finish == "stop"',
        'scores.generate.samples[1].finish == "length" and 1.5 < scores.generate.seed',
        'len(scores.generate.samples) == 2 and "1.5" in scores.generate.samples.0.text',
        'scores.generate.samples.0.text != "a.1.b" and row.list.1 == "de"',
        "not scores.generate.truncated",
    ],
)
def test_keeps_by_position(text):
    assert compile_keep_if(text, ("generate",)).decide(ROW, GENERATED) is None
    assert compile_keep_if(text, ("generate",)).text == text


def test_a_sample_that_is_not_there_is_undefined():
    rule = compile_keep_if('scores.generate.samples.2.finish == "stop"', ("generate",))
    assert rule.decide(ROW, GENERATED) == UNDEFINED


def decide(text):
    return compile_keep_if(text, KINDS).decide(ROW, SCORES)


@pytest.mark.parametrize(
    "text",
    [
        'scores.ifd.value < 1 and row.label == "yes"',
        "0.5 < scores.ifd.value <= 0.8",
        'scores.judge.probabilities["yes"] >= 3 * scores.judge.probabilities.no',
        'row.label in ["yes", "maybe"] and row.label not in ("no",)',
        '"en" in row.list',
        '"b" in row.text',
        '"er" in row.deep',
        "len(row.text) == 3 and len(row.list) == 2",
        'row.deep.er["key with space"] % 3 == 1',
        'row["deep"]["er"]["key with space"] // 3 == 1',
        'row.list[0] == "en" and row.list[-1] == "de"',
        "row.dotted.key == 5",
        "row.flag",
        "row.flag == true and not (row.n > 3)",
        "-row.n + 1 == -2",
        "row.n != true",
        'row.label != 3 and row.label < "z"',
        "scores.preference.chosen.sum - scores.preference.rejected.sum == scores.preference.margin_sum",
        "  row.n == 3  ",
        "row.n == 3 or scores['ifd-ppl'].value < 1",
    ],
)
def test_keeps(text):
    assert decide(text) is None


@pytest.mark.parametrize(
    "text", ["scores.ifd.value >= 1", 'row.label == "no"', "not row.flag", "row.flag and row.n > 3"]
)
def test_drops_what_is_false(text):
    assert decide(text) == KEEP_IF


@pytest.mark.parametrize(
    "text",
    [
        'scores["ifd-ppl"].value < 1',
        "row.nothing == 1",
        "not (row.missing == 1)",
        "row.deep.none.at.all > 1",
        "len(row.nothing) > 1",
        "row.nothing in [1, 2]",
        "row.n / 0 > 1",
        "row.list[7] == 1",
        "1 < row.missing < 2",
    ],
)
def test_a_null_or_missing_operand_is_undefined(text):
    assert decide(text) == UNDEFINED


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("row.label < 3", "cannot compare a text with a number"),
        ("row.text + 1 > 2", "needs numbers, found a text"),
        ("row.n", "expected true or false, found a number"),
        ("len(row.n) > 1", "found a number"),
        ("1 in row.n", "cannot look for a number in a number"),
        ("row.flag < 2", "cannot compare true or false"),
    ],
)
def test_values_that_do_not_fit_are_an_error(text, message):
    with pytest.raises(TypeMismatch, match=message):
        decide(text)


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("scores.idf.value < 1", 1, "did you mean 'ifd'"),
        ("row.n < 1 and scores.ifd.valu < 1", 15, "did you mean 'value'"),
        ("scores.ifd.value.x < 1", 1, "plain value"),
        ("rwo.n < 1", 1, "did you mean 'row'"),
        ("scores.ifd-ppl.value < 1", 12, 'scores["ifd-ppl"]'),
        ("row.n <", 8, ""),
        ("row == 1", 1, "row needs a field"),
        ("scores < 1", 1, "scores needs a kind"),
        ("row.n == null", 10, "never true"),
        ("row.n == None", 10, "never true"),
        ("row.n is 3", 10, "write =="),
        ("2 ** 9 > row.n", 1, "not part of the language"),
        ("print(1)", 1, "calls are not allowed"),
        ("row.text.upper() == 1", 1, "calls are not allowed"),
        ("len(row.text, 2) > 1", 1, "calls are not allowed"),
        ("[x for x in row.list]", 1, "not part of the language"),
        ("(lambda: 1)() == 1", 1, "calls are not allowed"),
        ("row[row.n] == 1", 1, "a subscript is"),
        ("row.list[0:1] == 1", 1, "a subscript is"),
        ("'a'.b == 1", 1, "only row and scores"),
        ("f'{row.n}' == 1", 1, "not part of the language"),
        ("row.n if row.flag else 1", 1, "not part of the language"),
        ("row.n == 99999999999999999999999", 10, "too large"),
        ("row.n < 1; row.n", 10, ""),
        ("row.é == rwo.n", 10, "did you mean"),
        ("", 1, ""),
    ],
)
def test_what_is_not_the_language_is_refused_with_its_column(text, column, message):
    with pytest.raises(UsageError) as caught:
        compile_keep_if(text, KINDS)
    assert f"column {column}:" in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "text", ["(" * 3000, "not " * 900 + "true", "-" * 3000 + "1", "1" + "+1" * 1500, "x" * 5000, "a\0b"]
)
def test_bombs_are_refused_quickly(text):
    with pytest.raises(UsageError):
        compile_keep_if(text, KINDS)


@settings(max_examples=300)
@given(st.text(alphabet="rowscore.ifdvalue ()[]<>=!+-*/%\"'0123456789andnotinlen,:", max_size=60))
def test_any_text_is_compiled_or_refused_as_usage(text):
    try:
        keep_if = compile_keep_if(text, KINDS)
        keep_if.decide(ROW, SCORES)
    except (UsageError, TypeMismatch):
        pass


def test_knows_whether_it_needs_the_row():
    assert not compile_keep_if("scores.ifd.value < 1", KINDS).needs_row
    assert compile_keep_if("scores.ifd.value < 1 or row.n == 1", KINDS).needs_row


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False, allow_infinity=False))
def test_arithmetic_and_order_are_those_of_numbers(a, b):
    keep_if = compile_keep_if("row.a - row.b > 0", ())
    assert (keep_if.decide({"a": a, "b": b}, {}) is None) == (a - b > 0)


@pytest.mark.parametrize("text", ["scores.ifd < 1", "scores.ifd", "scores.ifd.value < 1 and scores['ifd'] > 0"])
def test_an_object_of_scores_is_refused_before_anything_is_scored(text):
    with pytest.raises(UsageError, match="is an object, not a value") as caught:
        compile_keep_if(text, ("ifd",))
    assert "scores.ifd.value" in caught.value.fix
