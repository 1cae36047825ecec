"""How well small reads tell the size of an input, for every format, and what bad input says."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from realign_cluster.coordinator import estimate as module
from realign_cluster.coordinator.estimate import estimate
from realign_cluster.coordinator.request import CurateRequest
from realign_cluster.domain.batching import row_cost
from realign_cluster.domain.errors import UsageError


def request(*inputs: Path, limit: int | None = None, max_tokens: int = 2048) -> CurateRequest:
    return CurateRequest(
        inputs=tuple(str(path) for path in inputs),
        out=Path("-"),
        model="no-such-model",
        kinds=("loglik",),
        limit=limit,
        max_tokens=max_tokens,
    )


def rows(count: int) -> list[dict[str, str]]:
    """Lengths vary in a way that a prefix of the file would not tell: later rows are longer. Nothing packs well."""
    draw = random.Random(7)
    return [
        {"prompt": draw.randbytes(5 + index % 25).hex(), "response": draw.randbytes(10 + index // 200).hex()}
        for index in range(count)
    ]


def as_jsonl(items: list[dict[str, str]]) -> bytes:
    return b"".join(orjson.dumps(item) + b"\n" for item in items)


def write_gz(path: Path, items: list[dict[str, str]]) -> None:
    path.write_bytes(gzip.compress(as_jsonl(items)))


def write_zst(path: Path, items: list[dict[str, str]]) -> None:
    half = len(items) // 2
    frames = [zstandard.compress(as_jsonl(part)) for part in (items[:half], items[half:])]
    path.write_bytes(b"".join(frames))


def write_parquet(path: Path, items: list[dict[str, str]]) -> None:
    pq.write_table(pa.Table.from_pylist(items), path, row_group_size=500)


def write_jsonl(path: Path, items: list[dict[str, str]]) -> None:
    path.write_bytes(as_jsonl(items))


WRITERS: list[tuple[str, Callable[[Path, list[dict[str, str]]], None]]] = [
    ("rows.jsonl", write_jsonl),
    ("rows.jsonl.gz", write_gz),
    ("rows.jsonl.zst", write_zst),
    ("rows.parquet", write_parquet),
]


def exact_cost(items: list[dict[str, str]]) -> float:
    return sum(row_cost(len(item["prompt"]) + len(item["response"]), 0.25) for item in items)


@pytest.mark.parametrize(("name", "write"), WRITERS)
def test_a_small_input_is_counted_exactly(
    tmp_path: Path, name: str, write: Callable[[Path, list[dict[str, str]]], None]
) -> None:
    items = rows(3000)
    write(tmp_path / name, items)
    found = estimate(request(tmp_path / name), tmp_path)  # a folder without tokenizer.json: 0.25 tokens per byte
    assert (found.rows, found.exact, found.bad_rows) == (3000, True, 0)
    assert found.cost == pytest.approx(exact_cost(items))
    longest = max(len(item["prompt"]) + len(item["response"]) for item in items)
    assert found.longest_row_tokens == -(-longest // 4)
    assert len(found.first_rows) == 256
    assert orjson.loads(found.first_rows[0]) == items[0]


@pytest.mark.parametrize(("name", "write"), WRITERS)
def test_a_large_input_is_sampled(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    write: Callable[[Path, list[dict[str, str]]], None],
) -> None:
    items = rows(20_000)
    archive = name.endswith(("gz", "zst"))
    if archive:  # read from their beginning only, so their rows have to be alike throughout
        random.Random(1).shuffle(items)
    write(tmp_path / name, items)
    monkeypatch.setattr(module, "WHOLE_BYTES", 400_000)
    monkeypatch.setattr(module, "CHUNK_BYTES", 1 << 14)
    found = estimate(request(tmp_path / name), tmp_path)
    assert not found.exact
    tolerance = 0.3 if name.endswith("zst") else 0.05  # zstd hands out blocks of 128 KiB, much beside 400 kB
    assert found.rows == pytest.approx(20_000, rel=tolerance)
    assert found.cost == pytest.approx(exact_cost(items), rel=tolerance)
    assert found.work(request(tmp_path / name)).estimated_from
    assert found.longest_row_tokens == 2048  # not every row was seen


def test_limit_and_truncation(tmp_path: Path) -> None:
    items = rows(3000)
    write_jsonl(tmp_path / "rows.jsonl", items)
    found = estimate(request(tmp_path / "rows.jsonl", limit=100, max_tokens=8), tmp_path)
    assert found.rows == 100
    assert found.longest_row_tokens == found.median_row_tokens == 8
    assert found.cost < exact_cost(items) / 20


def test_bad_rows_are_counted_with_their_place(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"prompt": "a", "response": "b"}\n{"prompt": 3, "response": "b"}\nnot json\n[1]\n\n')
    found = estimate(request(path), tmp_path)
    assert (found.rows, found.bad_rows) == (1, 3)
    assert found.problems[0].startswith("rows.jsonl:2:")
    assert "prompt" in found.problems[0]
    assert found.problems[1].startswith("rows.jsonl:3:")


def test_input_without_a_usable_row_is_refused(tmp_path: Path) -> None:
    empty, wrong = tmp_path / "empty.jsonl", tmp_path / "wrong.jsonl"
    empty.write_bytes(b"")
    wrong.write_bytes(b'{"question": "a", "answer": "b"}\n')
    with pytest.raises(UsageError, match="empty"):
        estimate(request(empty), tmp_path)
    with pytest.raises(UsageError, match=r"wrong\.jsonl:1.*prompt"):
        estimate(request(wrong), tmp_path)


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.jsonl.zst"])
def test_a_damaged_archive_is_named(tmp_path: Path, name: str) -> None:
    write = write_gz if name.endswith("gz") else write_zst
    write(tmp_path / name, rows(3000))
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[:8] + bytes(64) + data[72:])
    with pytest.raises(UsageError, match=name.replace(".", r"\.")):
        estimate(request(tmp_path / name), tmp_path)
