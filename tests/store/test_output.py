"""Every row comes out once, in input order, with its own bytes; a failed write leaves nothing half done."""

import datetime
import decimal

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from realign_cluster.domain.errors import RunFailed, UsageError
from realign_cluster.domain.events import Quarantine, Tick
from realign_cluster.domain.expression import compile_keep_if
from realign_cluster.store import output
from realign_cluster.store.ledger import Entry
from realign_cluster.store.output import OutputOptions, splice, write_outputs
from realign_cluster.store.space import StorageFull
from tests.store.kit import WALL, Run, made_rows, read_parts, score_line, write_jsonl


def scored(tmp_path, rows, line=score_line, **options):
    path = write_jsonl(tmp_path / "data.jsonl", rows) if isinstance(rows, list) else rows
    run = Run(tmp_path / "run", [path])
    run.scan(**options)
    run.score_all(line)
    return run


def test_rows_come_out_in_input_order_with_ids_and_scores(tmp_path):
    rows = made_rows(10_000)
    with scored(tmp_path, rows) as run:
        tally = write_outputs(run.ledger, run.sources, run.folder, OutputOptions(part_rows=3000))
    assert (tally.rows_in, tally.kept, tally.dropped, tally.failed, tally.accounted) == (10_000, 10_000, 0, 0, True)
    parts = sorted(path.name for path in (run.folder / "output").iterdir())
    assert parts == [f"part-{at:05d}.jsonl" for at in range(4)]
    assert [len((run.folder / "output" / part).read_bytes().splitlines()) for part in parts] == [3000, 3000, 3000, 1000]
    out = read_parts(run.folder / "output")
    assert [{key: row[key] for key in ("prompt", "response", "id")} for row in out] == rows
    assert len({row["row_id"] for row in out}) == 10_000
    assert all(len(row["row_id"]) == 32 and row["scores"]["loglik"]["mean"] == -0.5 for row in out)
    assert list((run.folder / "dropped").iterdir()) == list((run.folder / "failed").iterdir()) == []
    assert tally.score_summary()["loglik.tokens"]["count"] == 10_000
    assert not (run.folder / ".writing").exists()


def test_the_rows_own_bytes_are_kept(tmp_path):
    lines = [
        b"{}",
        b"{ }",
        b'{"a": 1 }  ',
        b'  {"b":\t2}\t',
        b'{"c":"}"}',
        b'{"d":1e400000000, "d":2}'.replace(b"1e400000000", b"1.50"),
        b'{"n":{}}',
    ]
    (tmp_path / "odd.jsonl").write_bytes(b"\r\n".join(lines) + b"\r\n")
    with Run(tmp_path / "run", [tmp_path / "odd.jsonl"]) as run:
        run.scan(kinds=("noop",))
        run.score_all(lambda raw: b'{"noop":{}}')
        write_outputs(run.ledger, run.sources, run.folder)
    written = (run.folder / "output/part-00000.jsonl").read_bytes().splitlines()
    for line, out in zip(lines, written, strict=True):
        assert out.startswith(line.rstrip()[:-1].rstrip())
        row = orjson.loads(out)
        assert row.pop("scores") == {"noop": {}}
        assert len(row.pop("row_id")) == 32
        assert row == orjson.loads(line)


@given(
    st.dictionaries(st.text(max_size=4), st.integers(0, 9) | st.text(max_size=4), max_size=3),
    st.text(" \t", max_size=2),
    st.text(" \t", max_size=2),
)
def test_splicing_adds_fields_and_changes_nothing(row, inside, after):
    assume("x" not in row)
    raw = orjson.dumps(row)[:-1] + inside.encode() + b"}" + after.encode()
    line = splice(raw, b'"x":[1]')
    assert line.endswith(b"}\n")
    assert orjson.loads(line) == {**row, "x": [1]}


def test_keep_if_drops_with_a_reason(tmp_path):
    rows = [{"prompt": "p", "response": "r" * at, "label": "yes" if at % 2 else None} for at in range(100)]
    keep_if = compile_keep_if(
        'scores.loglik.tokens < 1000 and row.label == "yes" and len(row.response) > 10', ("loglik",)
    )
    with scored(tmp_path, rows) as run:
        tally = write_outputs(run.ledger, run.sources, run.folder, OutputOptions(keep_if=keep_if))
    kept, dropped = read_parts(run.folder / "output"), read_parts(run.folder / "dropped")
    assert len(kept) == tally.kept == 45
    assert all(row["label"] == "yes" and len(row["response"]) > 10 for row in kept)
    assert tally.dropped_by_reason == {"undefined": 50, "keep_if": 5}
    assert [row["reason"] for row in dropped[:2]] == ["undefined", "keep_if"]
    assert len(dropped[0]["row_id"]) == 32
    assert tally.accounted


def test_a_rule_that_does_not_fit_a_row_names_it_and_leaves_the_old_output(tmp_path):
    rows = [{"prompt": "p", "response": "r", "n": 1 if at < 60 else "one"} for at in range(100)]
    with scored(tmp_path, rows) as run:
        write_outputs(run.ledger, run.sources, run.folder)
        before = (run.folder / "output/part-00000.jsonl").read_bytes()
        keep_if = compile_keep_if("row.n < 2", ("loglik",))
        with pytest.raises(UsageError, match=r"the row at data\.jsonl:61: '<' cannot compare a text with a number"):
            write_outputs(run.ledger, run.sources, run.folder, OutputOptions(keep_if=keep_if))
        assert (run.folder / "output/part-00000.jsonl").read_bytes() == before
        assert not (run.folder / ".writing").exists()


def failing(raw):
    if orjson.loads(raw).get("id", 0) % 10 == 3:
        return b'{"error":{"code":"too-long","message":"900 tokens, at most 100"}}'
    return score_line(raw)


def test_failed_rows_keep_their_fields_and_name_no_node(tmp_path):
    good = made_rows(40)
    raws = [orjson.dumps(row) for row in good]
    raws[5] = b'{"prompt":"\\ud800","response":"r","id":5}'
    raws[6] = b"not json"
    raws[7] = b'{"prompt":"\xff"}'
    raws[8] = b'{"prompt":"p"}'
    (tmp_path / "data.jsonl").write_bytes(b"\n".join(raws))
    with Run(tmp_path / "run", [tmp_path / "data.jsonl"]) as run:
        run.scan(on_bad_row="quarantine", unit_rows=1)
        run.open()
        units, _ = run.ledger.load_pending(100)
        quarantine = Quarantine(unit=units[0].unit, code="worker-died", message="the worker died")
        run.ledger.record([Entry(event=Tick(at=1), commands=(quarantine,))], WALL)
        run.score_all(failing)
        tally = write_outputs(run.ledger, run.sources, run.folder)
        assert tally.failed_by_code == {
            "not-unicode": 1, "not-json": 1, "not-utf8": 1, "bad-field": 1, "worker-died": 1, "too-long": 4,
        }  # fmt: skip
        assert tally.accounted
        written = (run.folder / "failed/part-00000.jsonl").read_bytes().splitlines()
        assert written[1].startswith(raws[5][:-1] + b',"row_id":"')  # its own bytes
        rows = [orjson.loads(line) for at, line in enumerate(written) if at != 1]
        assert rows[0]["error"] == {"code": "too-long", "message": "900 tokens, at most 100"}
        assert rows[0]["id"] == 3
        assert rows[1]["raw"] == "not json"
        assert rows[2]["raw"].startswith('{"prompt":"�')
        assert rows[3]["error"] == {"code": "bad-field", "message": "response: missing"}
        assert all("scores" not in row and len(row["row_id"]) == 32 for row in rows)
        others = [line for line in written if b"ud800" not in line]
        ids = [row["row_id"] for row in [*read_parts(run.folder / "output"), *map(orjson.loads, others)]]
        assert len(set(ids)) == 39
        write_outputs(run.ledger, run.sources, run.folder, OutputOptions(format="parquet"))
        table = pq.read_table(run.folder / "failed")
        assert table.num_rows == 9
        assert "\\ud800" in table.column("raw")[1].as_py()


def test_rows_too_large_to_copy_are_named_in_failed(tmp_path):
    (tmp_path / "d.jsonl").write_bytes(
        b'{"prompt":"p","response":"r"}\n{"prompt":"' + b"x" * 9_000_000 + b'","response":"r"}\n'
    )
    with scored(tmp_path, tmp_path / "d.jsonl", on_bad_row="quarantine") as run:
        tally = write_outputs(run.ledger, run.sources, run.folder)
    assert tally.failed == 1
    (row,) = read_parts(run.folder / "failed")
    assert set(row) == {"row_id", "error"}
    assert row["error"]["code"] == "too-large"


def test_unfinished_runs_do_not_add_up(tmp_path):
    path = write_jsonl(tmp_path / "data.jsonl", made_rows(100))
    with Run(tmp_path / "run", [path]) as run:
        run.scan(unit_rows=10)
        run.open()
        units, _ = run.ledger.load_pending(3)
        entry, attempts = run.grant(units)
        run.ledger.record([entry, *(run.result(unit, attempt) for unit, attempt in attempts.items())], WALL)
        tally = write_outputs(run.ledger, run.sources, run.folder)
        assert (tally.rows_in, tally.kept, tally.accounted) == (100, 30, False)


def test_trl_reference_columns(tmp_path):
    rows = [{"prompt": "p", "chosen": "c", "rejected": "r" * at} for at in range(5)]

    def line(raw):
        size = float(len(raw))
        undefined = size % 2 == 0
        return orjson.dumps(
            {"preference": {"chosen": {"sum": -size}, "rejected": {"sum": None if undefined else -1.0}}}
        )

    path = write_jsonl(tmp_path / "data.jsonl", rows)
    with Run(tmp_path / "run", [path]) as run:
        run.scan(kinds=("preference",))
        run.score_all(line)
        write_outputs(run.ledger, run.sources, run.folder, OutputOptions(export_trl=True))
    for row in read_parts(run.folder / "output"):
        assert row["ref_chosen_logps"] == row["scores"]["preference"]["chosen"]["sum"]
        assert row["ref_rejected_logps"] == row["scores"]["preference"]["rejected"]["sum"]


def test_input_that_changed_during_the_run_is_noticed_before_anything_is_replaced(tmp_path):
    with scored(tmp_path, made_rows(5000)) as run:
        path = tmp_path / "data.jsonl"
        data = bytearray(path.read_bytes())
        at = len(data) // 2
        data[at] = ord("x") if data[at : at + 1].isalpha() and data[at] != ord("x") else ord("y")
        path.write_bytes(bytes(data))
        with pytest.raises(RunFailed, match=r"data\.jsonl was changed"):
            write_outputs(run.ledger, run.sources, run.folder)
        assert not (run.folder / "output").exists()
        assert not (run.folder / ".writing").exists()


def test_a_full_disk_while_writing_leaves_nothing_and_is_told(tmp_path, monkeypatch):
    with scored(tmp_path, made_rows(5000)) as run:

        def full(descriptor):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(output, "sync_descriptor", full)
        with pytest.raises(StorageFull):
            write_outputs(run.ledger, run.sources, run.folder)
        assert not (run.folder / "output").exists()
        monkeypatch.undo()
        assert write_outputs(run.ledger, run.sources, run.folder).accounted


def test_leftovers_of_a_crash_are_cleared(tmp_path):
    with scored(tmp_path, made_rows(50)) as run:
        (run.folder / ".writing/output").mkdir(parents=True)
        (run.folder / ".writing/output/part-00000.jsonl").write_text("half")
        write_outputs(run.ledger, run.sources, run.folder)
        assert len(read_parts(run.folder / "output")) == 50


# --- Parquet ---


def test_parquet_from_jsonl_has_one_schema_for_all_parts(tmp_path):
    rows = [
        {
            "prompt": "p",
            "response": "r" * (1 + at % 40),
            "n": at if at < 5000 else at + 0.5,
            "when": "2024-05-06",
            "mixed": at if at % 2 else "text",
            "object": {"a": at} if at < 3000 else {"b": [at]},
            "nothing": None,
            "empty": {},
            "messages": [{"role": "user", "content": "c"}],
        }
        for at in range(9000)
    ]
    with scored(tmp_path, rows) as run:
        keep_if = compile_keep_if("scores.loglik.tokens % 2 == 0", ("loglik",))
        options = OutputOptions(format="parquet", part_rows=2500, keep_if=keep_if)
        tally = write_outputs(run.ledger, run.sources, run.folder, options)
        parts = sorted((run.folder / "output").iterdir())
        assert {path.suffix for path in parts} == {".parquet"}
        schemas = [pq.read_schema(part) for part in parts]
        assert all(schema.equals(schemas[0]) for schema in schemas)
        kept, dropped = (pq.read_table(run.folder / name) for name in ("output", "dropped"))
        assert (kept.num_rows, dropped.num_rows) == (tally.kept, tally.dropped)
        assert tally.accounted
        assert kept.schema.field("n").type == pa.float64()
        assert kept.schema.field("when").type == pa.string()
        assert kept.schema.names[-2:] == ["row_id", "scores"]
        assert dropped.schema.names[-3:] == ["row_id", "scores", "reason"]
        found = kept.slice(0, 1).to_pylist()[0]
        assert orjson.loads(found["mixed"]) in range(9000) or isinstance(orjson.loads(found["mixed"]), str)
        assert set(found["object"]) <= {"a", "b"}
        assert found["messages"] == [{"role": "user", "content": "c"}]
        assert found["scores"]["loglik"]["mean"] == -0.5


@pytest.mark.parametrize("kind", ["parquet", "dataset"])
def test_parquet_from_tables_keeps_their_types(tmp_path, kind):
    rows = 7000
    table = pa.table(
        {
            "prompt": ["p"] * rows,
            "response": ["r" * (1 + at % 50) for at in range(rows)],
            "id": pa.array(range(rows), pa.int16()),
            "when": pa.array([datetime.datetime(2024, 1, 1)] * rows, pa.timestamp("ms")),
            "price": pa.array([decimal.Decimal("1.50")] * rows, pa.decimal128(6, 2)),
            "bytes": pa.array([b"\x00\xff"] * rows),
        }
    )
    folder = tmp_path / "in"
    folder.mkdir()
    if kind == "parquet":
        pq.write_table(table.slice(0, 3000), folder / "a.parquet", row_group_size=1111)
        pq.write_table(table.slice(3000), folder / "b.parquet", row_group_size=999)
        inputs = [folder]
    else:
        datasets = pytest.importorskip("datasets")
        table = table.drop_columns(["price"])
        datasets.Dataset(table).save_to_disk(str(folder / "ds"), num_shards=2)
        inputs = [folder / "ds"]
    with Run(tmp_path / "run", inputs) as run:
        run.scan()
        run.score_all()
        keep_if = compile_keep_if("scores.loglik.tokens % 3 != 0", ("loglik",))
        write_outputs(
            run.ledger, run.sources, run.folder, OutputOptions(format="parquet", part_rows=2000, keep_if=keep_if)
        )
        out = [pq.read_table(run.folder / name) for name in ("output", "dropped")]
        assert sum(one.num_rows for one in out) == rows
        both = pa.concat_tables([one.select(table.column_names) for one in out]).sort_by("id")
        assert both.equals(table)
        assert out[0].column("id").to_pylist() == sorted(out[0].column("id").to_pylist())
        run.sources.discard_cache()
        assert not (run.folder / "input-cache").exists()
