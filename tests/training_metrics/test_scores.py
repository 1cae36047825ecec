"""IFD and gaps as callers get them: those of the scoring code, row by row, whatever is wrong with single rows."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from realign_cluster.domain.errors import RunFailed, UsageError
from realign_cluster.node.local_scoring import score_here
from realign_cluster.training_metrics import calculate_ifd_score, contamination, validate_dpo_pairs
from tests.fixtures.models import TINY_MODEL
from tests.scoring.making import make_job, make_scorer, score

Write = Callable[..., Path]
ROWS = [
    *({"prompt": f"Say the number {at}.", "response": f"The number is {at}. " * (at % 4 + 1)} for at in range(9)),
    {"prompt": "Why?", "response": ""},
    {"prompt": "Why?", "response": "word " * 90},
]
PAIRS = [{"prompt": f"Say {at}.", "chosen": f"It is {at}.", "rejected": "purple " * (1 + at % 3)} for at in range(6)]


def test_ifd_is_what_the_scorer_gives(write: Write) -> None:
    path = write("rows.jsonl", [{"q": row["prompt"], "a": row["response"]} for row in ROWS])
    found = calculate_ifd_score(
        path, TINY_MODEL, prompt_field="q", response_field="a", kind="ifd-ppl", max_tokens=80, truncate="right"
    )
    right, _ = score(make_scorer(TINY_MODEL, "ifd-ppl", max_tokens=80, truncate="right"), ROWS)
    assert [row.value for row in found.rows] == [
        None if each["ifd-ppl"]["value"] is None else pytest.approx(each["ifd-ppl"]["value"], abs=1e-4)
        for each in right
    ]
    assert found.rows[9].undefined == right[9]["ifd-ppl"]["undefined"] == "empty response"
    assert (found.undefined, found.truncated, len(found.values)) == (1, 1, 10)
    assert found.rows[10].truncated
    assert found.rows[10].where == "rows.jsonl:11"
    assert (found.model, found.kind) == ("tiny-model", "ifd-ppl")
    assert found.mean == pytest.approx(sum(found.values) / 10)


def test_gaps_of_a_model(write: Write) -> None:
    rows = [*PAIRS, {"prompt": "Say 6.", "chosen": 6, "rejected": "no"}]
    found = validate_dpo_pairs(write("pairs.jsonl", rows), model=TINY_MODEL, least_pairs=5)
    right, _ = score(make_scorer(TINY_MODEL, "preference"), PAIRS)
    margins = [each["preference"]["margin_mean"] for each in right]
    assert found.gap is not None
    assert found.gap.mean == pytest.approx(sum(margins) / len(margins), abs=1e-4)
    assert found.gap.pairs == 6
    assert found.gap.scorer.startswith("margin_mean of preference v1 by tiny-model (")
    assert found.check("gap").rows == ()
    assert found.check("readable").rows == (7,)


def test_gaps_that_the_rows_bring(write: Write) -> None:
    rows = [row | {"s": {"good": 0.9, "bad": 0.7 - at / 100}} for at, row in enumerate(PAIRS)]
    found = validate_dpo_pairs(
        write("pairs.jsonl", rows), 0.25, score_fields=("s.good", "s.bad"), least_pairs=1, near_duplicate_fraction=1.0
    )
    assert found.gap is not None
    assert found.gap.mean == pytest.approx(0.225)
    assert found.gap.scorer == "the rows' own s.good - s.bad"
    assert found.check("gap").status == "failed"


# --- one worker -------------------------------------------------------------------------------------------------------


def raw(fault: str = "") -> bytes:
    return orjson.dumps({"prompt": "Why?", "response": "Because."} | ({"__realign_fault__": fault} if fault else {}))


def test_rows_that_fail_are_named_and_the_others_are_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REALIGN_FAULTS", "1")
    rows = [raw(), raw("raise"), raw(), raw("raise"), orjson.dumps(ROWS[-1])]
    job = make_job(TINY_MODEL, "loglik", max_tokens=80, truncate="refuse")
    found = asyncio.run(score_here(job, TINY_MODEL, rows, cores=1))
    assert [each is None for each in found.scores] == [False, True, False, True, True]
    assert found.scores[0] == found.scores[2]
    assert set(found.errors) == {1, 3, 4}
    assert "the row asked for a failure" in found.errors[1]
    assert "more than the limit of 80" in found.errors[4]


def test_a_worker_that_dies_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REALIGN_FAULTS", "1")
    with pytest.raises(RunFailed, match="killed by signal 9"):
        asyncio.run(score_here(make_job(TINY_MODEL, "loglik"), TINY_MODEL, [raw(), raw("kill")], cores=1))


def test_a_job_that_is_refused_says_why(write: Write, tmp_path: Path) -> None:
    strange = Path(shutil.copytree(TINY_MODEL, tmp_path / "strange"))
    config = orjson.loads((strange / "config.json").read_bytes()) | {"model_type": "strange"}
    (strange / "config.json").write_bytes(orjson.dumps(config))
    with pytest.raises(UsageError, match="mlx-lm cannot load strange"):
        calculate_ifd_score(write("rows.jsonl", ROWS), strange)


# --- bad input --------------------------------------------------------------------------------------------------------


def test_bad_input_is_named_before_anything_starts(write: Write, tmp_path: Path) -> None:
    rows = write("rows.jsonl", [*ROWS[:2], {"prompt": "p"}])
    with pytest.raises(UsageError, match=r"rows.jsonl:3: response: missing"):
        calculate_ifd_score(rows, TINY_MODEL)
    with pytest.raises(UsageError, match="without a model"):
        calculate_ifd_score(rows, "none")
    with pytest.raises(UsageError, match="there is no model folder"):
        calculate_ifd_score(write("good.jsonl", ROWS), tmp_path / "nowhere")
    (tmp_path / "broken.jsonl").write_text('{"prompt": "p"}\n{"prompt": \n[1]\n')
    with pytest.raises(UsageError, match=r"2 rows cannot be read:\n  broken.jsonl:2: not JSON") as refused:
        validate_dpo_pairs(tmp_path / "broken.jsonl")
    assert "broken.jsonl:3: expected a JSON object, found a list" in refused.value.message
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UsageError, match="there are no rows"):
        validate_dpo_pairs(tmp_path / "empty.jsonl")


def test_contamination_of_files(write: Write) -> None:
    question = "Which of the two rivers that meet below the castle carries more water in spring?"
    train = write("train.jsonl", [{"text": "clean"}, {"messages": [{"role": "user", "content": f"So: {question}"}]}])
    held = write("held.jsonl", [{"question": "Another one?"}, {"question": question}])
    found = contamination(train, {"quiz": held}, evaluation_fields=["question"])
    assert found.kept == (0,)
    assert [(match.row, match.item, match.variant) for match in found.matches] == [(1, 1, "13-gram")]
    with pytest.raises(UsageError, match=r"1 of 2 rows of .*train.jsonl hold evaluation items:\n  row 2 holds item 2"):
        contamination(train, {"quiz": held}, evaluation_fields=["question"], refuse=True)
    with pytest.raises(UsageError, match=r"held.jsonl:1: has none of the fields prompt"):
        contamination(train, {"quiz": held})
