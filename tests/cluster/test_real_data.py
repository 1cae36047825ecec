"""Public data as it is, through a cluster of two: HaluEval for log-likelihood and IFD, WiCE for judging.

The data lies outside the project: REALIGN_DATA, or ../shared/data next to it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.kit import TINY_MODEL, CurateCluster, summary

pytestmark = [pytest.mark.cluster, pytest.mark.data, pytest.mark.timeout(180)]

HALUEVAL = "halueval_general.jsonl"
WICE = "wice_claim_dev.jsonl"
WICE_LABELS = ("supported", "partially_supported", "not_supported")


def real(name: str) -> Path:
    """A file of the shared data; skips the test, with the reason, where it is missing."""
    folder = Path(os.environ.get("REALIGN_DATA") or Path(__file__).parents[2].parent / "shared" / "data")
    path = folder / name
    if not path.is_file():
        pytest.skip(f"{name} is not in {folder} (REALIGN_DATA names another folder)")
    return path


def source_rows(path: Path, count: int | None) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in islice(lines, count)]


def written(folder: Path) -> Iterator[dict[str, Any]]:
    for part in sorted(folder.glob("part-*.jsonl")):
        with part.open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def own(row: dict[str, Any]) -> dict[str, Any]:
    """Without what the run added."""
    return {name: value for name, value in row.items() if name not in ("row_id", "scores", "reason")}


def score_halueval(cluster: CurateCluster, run: Path, count: int | None) -> None:
    """Keeps the answers that people found free of hallucinations, with their scores."""
    path = real(HALUEVAL)
    limit = () if count is None else ("--limit", str(count))
    done = cluster.run(
        cluster.command(
            *(path, run, "--model", str(TINY_MODEL), "--score", "loglik,ifd", *limit),
            *("--prompt-field", "user_query", "--response-field", "chatgpt_response"),
            *("--keep-if", 'row.hallucination == "no" and scores.ifd.value > 0'),
        ),
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    given = source_rows(path, count)
    kept, dropped = list(written(run / "output")), list(written(run / "dropped"))
    found = summary(run)
    assert found["rows"] == {"in": len(given), "kept": len(kept), "dropped": len(dropped), "failed": 0}
    assert sum(node["rows"] for node in found["nodes"].values()) == len(given)
    assert [own(row) for row in kept] == [row for row in given if row["hallucination"] == "no"]
    assert [own(row) for row in dropped] == [row for row in given if row["hallucination"] != "no"]
    assert {row["reason"] for row in dropped} == {"keep_if"}
    for row in (*kept, *dropped):
        loglik, ifd = row["scores"]["loglik"], row["scores"]["ifd"]
        assert loglik["sum"] < 0
        assert loglik["tokens"] == ifd["tokens"] > 0
        assert math.isfinite(ifd["value"])
        assert ifd["nll_conditioned"] == pytest.approx(-loglik["mean"])


def judge_wice(cluster: CurateCluster, run: Path, count: int | None) -> None:
    """Claims against their articles, which are lists of sentences and often longer than the model's context."""
    path = real(WICE)
    template = run.parent / "wice.txt"
    template.write_text("{evidence}\n\nClaim: {claim}\nThe claim is ")
    limit = () if count is None else ("--limit", str(count))
    done = cluster.run(
        cluster.command(
            *(path, run, "--model", str(TINY_MODEL), "--score", "judge", *limit, "--max-tokens", "1024"),
            *("--template", str(template), "--labels", ",".join(WICE_LABELS), "--plain"),
        ),
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    given = source_rows(path, count)
    rows = list(written(run / "output"))
    assert summary(run)["rows"] == {"in": len(given), "kept": len(given), "dropped": 0, "failed": 0}
    assert [own(row) for row in rows] == given
    for row in rows:
        judged = row["scores"]["judge"]
        assert tuple(judged["probabilities"]) == WICE_LABELS
        assert sum(judged["probabilities"].values()) == pytest.approx(1.0)
        assert judged["label"] == max(WICE_LABELS, key=judged["probabilities"].__getitem__)
    long = [row["scores"]["judge"]["truncated"] for row in rows if sum(map(len, row["evidence"])) > 8000]
    assert long
    assert all(long)
    assert not all(row["scores"]["judge"]["truncated"] for row in rows)


@pytest.mark.soak
def test_halueval_loglik_and_ifd(cluster: CurateCluster, tmp_path: Path) -> None:
    score_halueval(cluster, tmp_path / "run", 300)


@pytest.mark.soak
def test_wice_judged(cluster: CurateCluster, tmp_path: Path) -> None:
    judge_wice(cluster, tmp_path / "run", 32)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_all_of_halueval(cluster: CurateCluster, tmp_path: Path) -> None:
    score_halueval(cluster, tmp_path / "run", None)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_all_of_wice(cluster: CurateCluster, tmp_path: Path) -> None:
    judge_wice(cluster, tmp_path / "run", None)
