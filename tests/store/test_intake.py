"""Rows are checked and cut before anything is scored; bad input is named with file, line and what would be right."""

import json
import os

import numpy as np
import orjson
import pytest

from realign_cluster.domain.batching import WINDOW_ROWS
from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.job import Fields
from realign_cluster.store import intake
from tests.store.kit import Run, made_rows, write_jsonl


def units_of(ledger):
    """(window, cost, longest, positions) of every unit in order."""
    found = ledger._query(
        "SELECT unit_id, window, cost, longest, rows FROM unit JOIN unit_rows USING (unit_id) ORDER BY unit_id"
    )
    return [tuple(row) for row in found]


def test_rows_are_cut_into_units_once_each_longest_first(tmp_path):
    rows = made_rows(2 * WINDOW_ROWS + 100)
    first = write_jsonl(tmp_path / "in/a.jsonl", rows[:5000])
    write_jsonl(tmp_path / "in/b.jsonl", rows[5000:])
    with Run(tmp_path / "run", [tmp_path / "in"]) as run:
        summary = run.scan()
        assert (summary.rows, summary.bad_rows, summary.duplicates) == (len(rows), 0, 0)
        run.open()
        seen = []
        units, exhausted = run.ledger.load_pending(10_000)
        assert exhausted
        assert summary.units == len(units)
        assert [unit.longest for unit in units] == sorted((unit.longest for unit in units), reverse=True)
        for unit in units:
            positions = run.ledger.unit_positions([unit.unit])[unit.unit]
            seen += [orjson.loads(raw)["id"] for raw in run.sources.read(positions)]
            assert len(positions) == unit.rows
        assert sorted(seen) == list(range(len(rows)))
        assert run.sources.where(0, 6) == "a.jsonl:7"
        assert first.exists()


def test_the_cut_does_not_depend_on_where_a_scan_was_interrupted(tmp_path, monkeypatch):
    path = write_jsonl(tmp_path / "in/a.jsonl", made_rows(4 * WINDOW_ROWS))
    write_jsonl(tmp_path / "in/b.jsonl", made_rows(WINDOW_ROWS // 2 + 3, first=9))
    with Run(tmp_path / "whole", [path.parent]) as run:
        whole_summary = run.scan()
        whole = units_of(run.ledger)

    monkeypatch.setattr("realign_cluster.store.jsonl.BLOCK_BYTES", 50_000)
    monkeypatch.setattr("realign_cluster.store.scan_log.WINDOWS_PER_WRITE", 1)
    append, written = intake.ScanLog.append, []

    def interrupted(self, window, units, next_row):
        if len(written) in (1, 3):  # stops before the second and, resumed, before the third window
            written.append(None)
            raise KeyboardInterrupt
        written.append(next_row)
        append(self, window, units, next_row)

    monkeypatch.setattr(intake.ScanLog, "append", interrupted)
    for _ in range(2):
        with Run(tmp_path / "parts", [path.parent]) as run, pytest.raises(KeyboardInterrupt):
            run.scan()
    with Run(tmp_path / "parts", [path.parent]) as run:
        assert not run.ledger.scanned
        assert run.scan(tokens_per_byte=0.9) == whole_summary  # the first scan's measure holds
        assert run.ledger.scanned
        assert units_of(run.ledger) == whole
        assert run.scan() == whole_summary


BAD = [
    (b"not json", "not JSON"),
    (b'{"prompt": "p", "response": "r"', "not JSON"),
    (b'{"prompt": "p", "response": "r"} trailing', "not JSON"),
    (b"[1, 2]", "expected a JSON object, found a list"),
    (b"null", "expected a JSON object, found null"),
    (b'{"prompt": "p"}', "response: missing"),
    (b'{"prompt": 3, "response": "r"}', "prompt: is a number, expected a text"),
    (b'{"prompt": "\\ud800", "response": "r"}', "holds a lone surrogate (\\ud800)"),
    (b'{"prompt": "p", "response": "\xff"}', "not UTF-8: byte 0xff at position 29"),
    (b'{"prompt": "p", "response": NaN}', "NaN or Infinity"),
    (b'{"prompt": "' + b"x" * 3000 + b'", "response": "r"}', "the row has 3,031 bytes, at most 2,000 are allowed"),
    (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "bytes, at most 2,000 are allowed"),
]
GOOD = b'{"prompt": "p", "response": "r"}'


@pytest.mark.parametrize(("raw", "message"), BAD)
def test_a_bad_row_is_named_with_file_and_line(tmp_path, raw, message):
    path = tmp_path / "data.jsonl"
    path.write_bytes(GOOD + b"\n\n" + raw + b"\n" + GOOD + b"\n")
    with Run(tmp_path / "run", [path]) as run, pytest.raises(UsageError) as caught:
        run.scan(max_row_bytes=2000)
    assert caught.value.exit_code == 2
    listed = next(line for line in caught.value.message.splitlines() if "data.jsonl:3: " in line)
    assert message in listed
    assert "1 of 3 rows" in caught.value.message
    assert "--on-bad-row quarantine" in caught.value.fix
    assert not run.ledger.path.with_name("output").exists()


def test_the_first_problems_are_listed_and_all_are_counted(tmp_path):
    rows = [{"prompt": "p"} if at % 3 else {"prompt": "p", "response": "r"} for at in range(9000)]
    path = write_jsonl(tmp_path / "data.jsonl", rows)
    with Run(tmp_path / "run", [path]) as run, pytest.raises(UsageError) as caught:
        run.scan()
    listed = [line.strip() for line in caught.value.message.splitlines() if "data.jsonl:" in line]
    assert listed[0] == "data.jsonl:2: response: missing"
    assert len(listed) == 10
    assert "6,000 of 9,000 rows" in caught.value.message
    assert "and 5,990 more" in caught.value.message


def test_bad_rows_can_be_set_aside_and_keep_their_place(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\n".join([GOOD, *(raw for raw, _ in BAD), GOOD]) + b"\n")
    with Run(tmp_path / "run", [path]) as run:
        summary = run.scan(on_bad_row="quarantine", max_row_bytes=2000)
        assert (summary.rows, summary.bad_rows) == (len(BAD) + 2, len(BAD))
        run.score_all()
        (window,) = run.ledger.windows()
        assert window.positions["row"].tolist() == list(range(len(BAD) + 2))
        assert [error is None for error in window.errors] == [True, *[False] * len(BAD), True]
        assert window.errors[6][1] == "response: missing"
        counters = run.ledger.counters()
        assert (counters.bad_rows, counters.committed_rows, counters.pending_rows) == (len(BAD), 2, 0)


@pytest.mark.parametrize("name", ["row_id", "scores"])
@pytest.mark.parametrize("on_bad_row", ["fail", "quarantine"])
def test_columns_that_a_run_writes_itself_are_refused(tmp_path, name, on_bad_row):
    path = write_jsonl(tmp_path / "data.jsonl", [*made_rows(5), {"prompt": "p", "response": "r", name: 1}])
    with Run(tmp_path / "run", [path]) as run, pytest.raises(UsageError, match=rf"data\.jsonl:6: .*'{name}'") as caught:
        run.scan(on_bad_row=on_bad_row)
    assert name in caught.value.fix


@pytest.mark.parametrize("content", [b"", b"\n \n\n", b"\xef\xbb\xbf"])
def test_input_without_rows_is_refused(tmp_path, content):
    (tmp_path / "empty.jsonl").write_bytes(content)
    with (
        Run(tmp_path / "run", [tmp_path / "empty.jsonl"]) as run,
        pytest.raises(UsageError, match=r"no rows: empty\.jsonl"),
    ):
        run.scan()


def test_a_ten_megabyte_row_is_a_bad_row_in_fail_and_in_quarantine(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(GOOD + b"\n" + json.dumps({"prompt": "x" * 10_000_000, "response": "r"}).encode() + b"\n" + GOOD)
    with (
        Run(tmp_path / "run", [path]) as run,
        pytest.raises(UsageError, match=r"data\.jsonl:2: the row has 10,000,\d+ bytes"),
    ):
        run.scan()
    with Run(tmp_path / "other", [path]) as run:
        assert run.scan(on_bad_row="quarantine").bad_rows == 1


def test_equal_rows_are_counted_not_dropped(tmp_path):
    rows = [*made_rows(5000), *made_rows(300)]
    path = write_jsonl(tmp_path / "data.jsonl", rows)
    with Run(tmp_path / "run", [path]) as run:
        summary = run.scan()
        assert (summary.rows, summary.duplicates) == (5300, 300)
        assert run.ledger.counters().duplicates == 300


@pytest.mark.parametrize("limit", [1, 300, WINDOW_ROWS, WINDOW_ROWS + 1, 20_000])
def test_limit_takes_the_first_rows_only(tmp_path, limit):
    paths = [
        write_jsonl(tmp_path / f"in/{name}.jsonl", made_rows(3000, first)) for name, first in (("a", 0), ("b", 3000))
    ]
    with Run(tmp_path / "run", paths) as run:
        summary = run.scan(limit=limit)
        assert summary.rows == min(limit, 6000)
        positions = np.concatenate([run.ledger.unit_positions([row[0]])[row[0]] for row in units_of(run.ledger)])
        assert sorted(orjson.loads(raw)["id"] for raw in run.sources.read(positions)) == list(range(summary.rows))


def test_rows_with_one_evidence_land_in_one_unit(tmp_path):
    rng = np.random.default_rng(5)
    rows = [
        {"claim": "c" * int(rng.integers(1, 60)), "evidence": [f"{at // 4} " + "e" * (400 + at // 4)]}
        for at in range(400)
    ]
    path = write_jsonl(tmp_path / "data.jsonl", [rows[at] for at in rng.permutation(400)])
    with Run(tmp_path / "run", [path]) as run:
        run.scan(kinds=("judge",), unit_cost=4000.0)
        where: dict[str, set[int]] = {}
        for unit, *_ in units_of(run.ledger):
            for raw in run.sources.read(run.ledger.unit_positions([unit])[unit]):
                where.setdefault(orjson.loads(raw)["evidence"][0], set()).add(unit)
        split = sum(len(units) > 1 for units in where.values())
        assert split <= len(units_of(run.ledger))  # at most one group straddles each cut
        assert split < len(where) / 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda path: path.write_bytes(path.read_bytes() + b'{"prompt":"p","response":"r"}\n'),
            r"a\.jsonl: its size was",
        ),
        (
            lambda path: path.write_bytes(path.read_bytes().replace(b"question 0", b"Question 0")),
            r"a\.jsonl: its beginning",
        ),
        (lambda path: write_jsonl(path.parent / "new.jsonl", made_rows(1)), r"new\.jsonl was not there"),
        (lambda path: path.rename(path.with_name("other.jsonl")), r"a\.jsonl is not there now"),
    ],
)
def test_a_changed_input_is_named_at_resume(tmp_path, change, message):
    path = write_jsonl(tmp_path / "in/a.jsonl", made_rows(500))
    write_jsonl(tmp_path / "in/b.jsonl", made_rows(500, 500))
    with Run(tmp_path / "run", [path.parent]) as run:
        run.scan()
    change(path)
    with Run(tmp_path / "run", [path.parent]) as run, pytest.raises(UsageError, match=message):
        run.scan()


def test_a_file_that_was_only_touched_is_read_to_be_sure(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", made_rows(5000))
    with Run(tmp_path / "run", [path]) as run:
        run.scan()
    os.utime(path, (1, 1))
    with Run(tmp_path / "run", [path]) as run:
        run.scan()
    middle = bytearray(path.read_bytes())
    middle[len(middle) // 2] ^= 1
    path.write_bytes(bytes(middle))
    with Run(tmp_path / "run", [path]) as run, pytest.raises(UsageError, match=r"a\.jsonl: it was written since"):
        run.scan()


def test_other_reading_options_are_refused_by_name(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", made_rows(50))
    with Run(tmp_path / "run", [path]) as run:
        run.scan()
        with pytest.raises(UsageError, match="other options: limit, unit_rows"):
            run.scan(limit=3, unit_rows=7)
        with pytest.raises(UsageError, match="other options: fields"):
            run.scan(fields=Fields(response="prompt"))


def test_progress_and_first_rows(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", made_rows(9000))
    seen: list[intake.ScanProgress] = []
    with Run(tmp_path / "run", [path]) as run:
        assert [orjson.loads(raw)["id"] for raw in intake.iterate_rows(run.sources, 5)] == [0, 1, 2, 3, 4]
        intake.scan_into_ledger(run.ledger, run.sources, ("loglik",), Fields(), progress=seen.append)
    assert seen[-1].what == "reading a.jsonl"
    assert (seen[-1].rows, seen[-1].bytes_done) == (9000, seen[-1].bytes_total)
