"""Shapes, undefined values, truncation and refusals of the score kinds, on the tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from realign_cluster.domain.job import FIELDS_OF_KIND, KIND_VERSION, Fields
from realign_cluster.scoring.kinds import KINDS
from tests.scoring.making import make_scorer, score

LONG = " ".join(f"word{at}" for at in range(200))


def test_the_registry_is_the_domains() -> None:
    assert set(KINDS) == set(FIELDS_OF_KIND)
    assert {name: kind.version for name, kind in KINDS.items()} == KIND_VERSION


def test_shapes(tiny_model: Path) -> None:
    row = {
        "prompt": "Why?",
        "response": "Because.",
        "chosen": "Because of the rain.",
        "rejected": "No.",
        "claim": "It rains.",
        "evidence": ["It rains.", "It is Monday."],
    }
    (found,), _ = score(make_scorer(tiny_model, "loglik", "ifd", "ifd-ppl", "preference", "judge", "noop"), [row])
    ifd = {"value", "nll_conditioned", "nll_alone", "tokens", "truncated"}
    assert {kind: set(scores) for kind, scores in found.items()} == {
        "loglik": {"sum", "mean", "tokens", "truncated"},
        "ifd": ifd,
        "ifd-ppl": ifd,
        "preference": {"chosen", "rejected", "margin_sum", "margin_mean"},
        "judge": {"probabilities", "label", "truncated"},
        "noop": set(),
    }
    assert set(found["preference"]["chosen"]) == {"sum", "mean", "tokens"}
    assert set(found["judge"]["probabilities"]) == {"supported", "not_supported"}


def test_an_empty_response_is_undefined(tiny_model: Path) -> None:
    rows = [
        {"prompt": "Why?", "response": "", "chosen": "", "rejected": "No."},
        {"prompt": "", "response": "Because.", "chosen": "Yes.", "rejected": "No."},
    ]
    (empty, whole), _ = score(make_scorer(tiny_model, "loglik", "ifd", "ifd-ppl", "preference"), rows)
    nothing = {"sum": None, "mean": None, "tokens": 0, "undefined": "empty response"}
    assert empty["loglik"] == nothing | {"truncated": False}
    assert empty["ifd"]["value"] is None
    assert empty["ifd"]["undefined"] == "empty response"
    assert empty["ifd-ppl"]["value"] is None
    assert empty["preference"]["chosen"] == nothing
    assert empty["preference"]["margin_sum"] is None
    assert empty["preference"]["undefined"] == "chosen: empty response"
    assert "undefined" not in whole["loglik"]
    assert "undefined" not in whole["ifd"]


def test_too_long_is_refused_by_row(tiny_model: Path) -> None:
    scorer = make_scorer(tiny_model, "loglik", max_tokens=64, truncate="refuse")
    rows = [{"prompt": "Why?", "response": "Because."}, {"prompt": LONG, "response": "Because."}]
    (short, long), _ = score(scorer, rows)
    assert "loglik" in short
    assert long["error"]["code"] == "too-long"
    assert "limit of 64" in long["error"]["message"]


@pytest.mark.parametrize("truncate", ["left", "right"])
def test_truncation_is_marked(tiny_model: Path, truncate: str) -> None:
    scorer = make_scorer(tiny_model, "loglik", "ifd", max_tokens=64, truncate=truncate)
    (found,), work = score(scorer, [{"prompt": "Say words.", "response": LONG}])
    assert found["loglik"]["truncated"] is True
    assert found["ifd"]["truncated"] is True
    assert found["loglik"]["tokens"] == found["ifd"]["tokens"] <= 63
    assert work.tokens <= 2 * 63


@pytest.mark.parametrize("truncate", ["left", "right"])
def test_a_judgement_that_is_too_long_loses_evidence_only(tiny_model: Path, truncate: str) -> None:
    row = {"claim": "It rains.", "evidence": LONG}
    (found,), work = score(make_scorer(tiny_model, "judge", max_tokens=120, truncate=truncate), [row])
    assert found["judge"]["truncated"] is True
    assert found["judge"]["label"] in ("supported", "not_supported")
    assert work.tokens <= 122
    (refused,), _ = score(make_scorer(tiny_model, "judge", max_tokens=8, truncate=truncate), [row])
    assert refused["error"]["code"] == "too-long"


def test_implicit_prompts(tiny_model: Path) -> None:
    user = {"role": "user", "content": "Name a colour."}
    implicit = {
        "chosen": [user, {"role": "assistant", "content": "Blue."}],
        "rejected": [user, {"role": "assistant", "content": "Seven."}],
    }
    explicit = {"prompt": "Name a colour.", "chosen": "Blue.", "rejected": "Seven."}
    found, _ = score(make_scorer(tiny_model, "preference"), [implicit, explicit, {"chosen": "a", "rejected": "b"}])
    assert found[0] == found[1]
    assert found[2]["error"]["code"] == "bad-row"


def test_fields_by_path(tiny_model: Path) -> None:
    scorer = make_scorer(tiny_model, "loglik", fields=Fields(prompt="a.b.0", response="the.answer"))
    found, _ = score(scorer, [{"a": {"b": ["Why?"]}, "the.answer": "Because."}, {"a": {}, "the.answer": "Because."}])
    assert found[0]["loglik"]["tokens"] > 0
    assert found[1]["error"] == {"code": "bad-row", "message": "a.b.0: missing"}


def test_lone_surrogates_are_scored_as_replacement_characters(tiny_model: Path) -> None:
    scorer = make_scorer(tiny_model, "loglik")
    payload, _ = scorer.compute(
        scorer.prepare(
            [rb'{"prompt": "x \ud800", "response": "y \udc00 z"}', '{"prompt": "x �", "response": "y � z"}'.encode()]
        )
    )
    lone, replaced = (orjson.loads(line) for line in payload.split(b"\n"))
    assert lone == replaced
    assert lone["loglik"]["tokens"] > 0


def test_numbers_are_never_nan(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = make_scorer(tiny_model, "loglik", "ifd", "judge")
    original = scorer.forward.run

    def overflow(trees: Any, results: Any, progress: Any = None) -> Any:
        work = original(trees, results, progress)
        results[0] = float("nan")
        results[-1] = float("-inf")
        return work

    monkeypatch.setattr(scorer.forward, "run", overflow)
    (found,), _ = score(scorer, [{"prompt": "Why?", "response": "So.", "claim": "It rains.", "evidence": "It rains."}])
    assert found["loglik"] == {
        "sum": None,
        "mean": None,
        "tokens": found["loglik"]["tokens"],
        "truncated": False,
        "undefined": "the model's log-likelihood is not finite",
    }
    assert found["ifd"]["value"] is None
    assert found["judge"]["label"] is None


def test_the_tiny_model_learnt_something(tiny_model: Path) -> None:
    row = {"prompt": "What is a token?", "response": "A token is a piece of text that a language model reads."}
    other = row | {"response": "Reads model language a that text of piece a is token a."}
    (right, scrambled), _ = score(make_scorer(tiny_model, "loglik"), [row, other])
    assert right["loglik"]["mean"] > scrambled["loglik"]["mean"] + 1.0
    assert right["loglik"]["mean"] > -2.5


def test_a_label_with_nothing_before_it_is_undefined(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A template of nothing but empty fields, for a tokenizer that adds no start token."""
    monkeypatch.setattr("realign_cluster.scoring.encode._ids_added_at_the_start", lambda tokenizer: ())
    scorer = make_scorer(tiny_model, "judge", template="{evidence}{claim}", labels=("yes", "no"), chat="plain")
    (found, whole), _ = score(scorer, [{"claim": "", "evidence": ""}, {"claim": "It rains.", "evidence": ""}])
    assert found["judge"] == {
        "probabilities": {"yes": None, "no": None},
        "label": None,
        "truncated": False,
        "undefined": "nothing before the response to predict it from",
    }
    assert "undefined" not in whole["judge"]
