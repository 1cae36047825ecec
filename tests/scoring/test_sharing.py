"""What is prefilled once, counted in tokens through the model; and rows computed alone give the same bytes wherever
they are.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import orjson

from realign_cluster.scoring.segments import join_trunks, plan_segments
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


def pairs(*rows: tuple[str, str, str]) -> list[bytes]:
    return [orjson.dumps({"prompt": prompt, "chosen": chosen, "rejected": other}) for prompt, chosen, other in rows]


def test_a_reproducible_row_has_its_own_shape_among_rows_that_a_window_is_too_short_for(
    model_folder: Callable[..., Path],
) -> None:
    """Whether a prefix is shared within a row follows from that row, not from the longest one nearby."""
    scorer = make_scorer(model_folder("gemma3_text"), "preference", reproducible=True, chat="plain")
    long = EVIDENCE[:2000]
    rows = pairs((EVIDENCE[:200], "Thirty.", "I do not know."), (long, "Thirty nodes.", "I do not know."))
    together, work = scorer.compute(scorer.prepare(rows))
    alone = [scorer.compute(scorer.prepare([row])) for row in rows]
    assert work.shapes == alone[0][1].shapes + alone[1][1].shapes
    assert together == b"\n".join(payload for payload, _ in alone)


def test_a_reproducible_row_is_not_joined_to_one_that_wants_other_tokens_of_the_same_prefix(tiny_model: Path) -> None:
    """As many rows of logits as when it is alone: another number of them may be rounded otherwise."""
    begin = EVIDENCE[:300]
    rows = pairs((f"{begin} It", " is so.", " was not."), (begin, " It is so.", " It was not."))
    scorer = make_scorer(tiny_model, "preference", reproducible=True, chat="plain")
    (one, other) = (scorer.prepare([row]).rows[0] for row in rows)
    (first,), (second,) = one.sequences.values(), other.sequences.values()
    trees = [*plan_segments(first, 0, 0), *plan_segments(second, 0, one.slots)]
    assert trees[0].tokens == trees[1].tokens
    assert len(trees[0].positions) < len(trees[1].positions)
    assert len(join_trunks(trees)) == 2
    together, _ = scorer.compute(scorer.prepare(rows))
    assert together == b"\n".join(scorer.compute(scorer.prepare([row]))[0] for row in rows)
