"""What is prefilled once, counted in tokens through the model; and rows computed alone give the same bytes wherever
they are.
"""

from __future__ import annotations

from pathlib import Path

import orjson

from tests.scoring.making import make_scorer, score

EVIDENCE = " ".join(f"Node amber-{at} stands in room {at} and has {at} GB of memory." for at in range(30))
CLAIMS = [{"evidence": EVIDENCE, "claim": f"Node amber-{at} has {at} GB of memory."} for at in (3, 7, 11, 19)]


def test_four_claims_on_one_evidence_cost_little_more_than_one(tiny_model: Path) -> None:
    scorer = make_scorer(tiny_model, "judge", labels=("supported", "not_supported"))
    _, one = score(scorer, CLAIMS[:1])
    found, four = score(scorer, CLAIMS)
    assert four.tokens < 1.3 * one.tokens
    alone = [score(scorer, [row])[0][0] for row in CLAIMS]
    assert found == alone


def test_claims_on_different_evidence_share_nothing(tiny_model: Path) -> None:
    scorer = make_scorer(tiny_model, "judge", labels=("supported", "not_supported"))
    other = {"evidence": EVIDENCE.replace("amber", "cedar"), "claim": CLAIMS[0]["claim"]}
    _, one = score(scorer, CLAIMS[:1])
    _, two = score(scorer, [CLAIMS[0], other])
    assert two.tokens > 1.9 * one.tokens


def test_a_pair_shares_its_prompt(tiny_model: Path) -> None:
    scorer = make_scorer(tiny_model, "preference")
    row = {"prompt": EVIDENCE, "chosen": "Thirty nodes.", "rejected": "I do not know."}
    _, pair = score(scorer, [row])
    _, same = score(scorer, [row | {"rejected": row["chosen"]}])
    assert pair.tokens < 1.1 * same.tokens


def test_kinds_share_equal_sequences(tiny_model: Path) -> None:
    row = {"prompt": "Name a colour.", "response": "Blue is a colour, and so are green and red."}
    _, ifd = score(make_scorer(tiny_model, "ifd"), [row])
    _, all_three = score(make_scorer(tiny_model, "loglik", "ifd", "ifd-ppl"), [row])
    assert all_three.tokens == ifd.tokens


def test_reproducible_rows_do_not_depend_on_their_neighbours(tiny_model: Path) -> None:
    rows = [
        *CLAIMS,
        {"evidence": "Short.", "claim": "It is short."},
        *({"evidence": EVIDENCE[: 200 + 90 * at], "claim": "Node amber-1 stands in room 1."} for at in range(4)),
    ]
    scorer = make_scorer(tiny_model, "judge", labels=("yes", "no, not at all"), reproducible=True)
    raw = [orjson.dumps(row) for row in rows]
    together = scorer.compute(scorer.prepare(raw))[0].split(b"\n")
    alone = [scorer.compute(scorer.prepare([row]))[0] for row in raw]
    backwards = scorer.compute(scorer.prepare(raw[::-1]))[0].split(b"\n")[::-1]
    assert together == alone == backwards


def test_reproducible_completions_do_not_depend_on_their_neighbours(tiny_model: Path) -> None:
    rows = [
        {
            "prompt": f"Question {at}? " * at,
            "response": "Answer. " * (40 - at),
            "chosen": f"A {at}",
            "rejected": "B" * at,
        }
        for at in range(1, 30, 4)
    ]
    scorer = make_scorer(tiny_model, "loglik", "ifd", "preference", reproducible=True)
    raw = [orjson.dumps(row) for row in rows]
    together = scorer.compute(scorer.prepare(raw))[0].split(b"\n")
    assert together == [scorer.compute(scorer.prepare([row]))[0] for row in raw]
    halves = [scorer.compute(scorer.prepare(part))[0] for part in (raw[:3], raw[3:])]
    assert together == b"\n".join(halves).split(b"\n")
