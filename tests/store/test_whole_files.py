"""Rows read at once, of every format, with where they stand."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from realign_cluster.domain.errors import UsageError
from realign_cluster.store.whole_files import read_rows


def test_rows_of_several_formats_in_order(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"n": 1}\n\n{"n": 2}\r\n')
    pq.write_table(pa.table({"n": [3, 4]}), tmp_path / "b.parquet")
    found = read_rows(tmp_path)
    assert [row.value for row in found] == [{"n": 1}, {"n": 2}, {"n": 3}, {"n": 4}]
    assert [row.where for row in found] == ["a.jsonl:1", "a.jsonl:3", "b.parquet:1", "b.parquet:2"]
    assert found[1].raw == b'{"n": 2}'


def test_every_row_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"n": 1}\n{"n": \n"text"\n\xff\n')
    with pytest.raises(UsageError) as refused:
        read_rows(tmp_path / "a.jsonl")
    assert [line.split(": ")[0] for line in refused.value.message.splitlines()] == [
        "3 rows cannot be read:", "  a.jsonl:2", "  a.jsonl:3", "  a.jsonl:4"
    ]  # fmt: skip
    (tmp_path / "b.jsonl").write_text("\n")
    with pytest.raises(UsageError, match="there are no rows"):
        read_rows(tmp_path / "b.jsonl")
    with pytest.raises(UsageError, match="does not exist"):
        read_rows(tmp_path / "c.jsonl")
