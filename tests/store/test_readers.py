"""Finding input files, reading any row of any format, and noticing what changed."""

import datetime
import decimal
import gzip
import os
from hashlib import blake2b

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from realign_cluster.domain.errors import RunFailed, UsageError
from realign_cluster.store.jsonl import LongLine, lines_of
from realign_cluster.store.positions import pack, row_ids, unpack
from realign_cluster.store.readers import Sources, expand_inputs
from tests.store.kit import made_rows, write_jsonl


def read_all(source, cache):
    """Every row of every file, by way of positions in a shuffled order."""
    with Sources(expand_inputs(source if isinstance(source, list) else [source]), cache) as sources:
        blobs = []
        for file in sources.files:
            for piece in lines_of(sources.prepare(file.index), 0, 0, 10**9):
                lengths = [len(line) for line in piece.lines]
                blobs.append(
                    pack(file.index, range(piece.first_row, piece.first_row + len(lengths)), piece.offsets, lengths)
                )
        positions = np.concatenate(blobs)
        shuffled = np.random.default_rng(3).permutation(len(positions))
        raws = sources.read(positions[shuffled])
        inverse = np.argsort(shuffled)
        return [raws[at] for at in inverse]


def make(tmp_path, kind, rows):
    plain = b"".join(orjson.dumps(row, option=orjson.OPT_SORT_KEYS) + b"\n" for row in rows)
    path = tmp_path / f"data.{kind}"
    if kind == "jsonl":
        path.write_bytes(plain)
    elif kind == "jsonl.gz":
        half = len(plain) // 2
        path.write_bytes(gzip.compress(plain[:half]) + gzip.compress(plain[half:]))  # two members
    elif kind == "jsonl.zst":
        half = len(plain) // 2
        path.write_bytes(zstandard.compress(plain[:half]) + zstandard.compress(plain[half:]))  # two frames
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=333)
    else:
        datasets = pytest.importorskip("datasets")
        datasets.Dataset.from_list(rows).save_to_disk(str(path), num_shards=3)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "dataset"])
def test_every_format_gives_the_same_canonical_rows(tmp_path, kind):
    rows = made_rows(1000)
    path = make(tmp_path, kind, rows)
    raws = read_all(path, tmp_path / "cache")
    assert raws == [orjson.dumps(row, option=orjson.OPT_SORT_KEYS) for row in rows]


def test_files_come_in_order_of_relative_path_each_once(tmp_path):
    for name in ("b/1.jsonl", "a/2.jsonl", "a/10.jsonl", "c.jsonl.gz", ".hidden/x.jsonl", "notes.txt"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(b"{}\n") if name.endswith("gz") else b"{}\n")
    names = ["a/10.jsonl", "a/2.jsonl", "b/1.jsonl", "c.jsonl.gz"]
    folder = tmp_path / "in"
    assert [file.name for file in expand_inputs([folder])] == names
    listed = [folder / "c.jsonl.gz", f"{folder}/**/*.jsonl", folder / "b", folder]
    assert [file.name for file in expand_inputs(listed)] == names
    assert [file.index for file in expand_inputs(listed)] == [0, 1, 2, 3]
    assert [file.name for file in expand_inputs([folder / "a/2.jsonl"])] == ["2.jsonl"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.jsonl", "does not exist"),
        ("*.jsonl", "matches nothing"),
        ("data.csv", "no known input format"),
        ("empty", "holds no input"),
    ],
)
def test_what_is_no_input_is_refused(tmp_path, name, message):
    (tmp_path / "data.csv").write_text("a,b\n")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=message):
        expand_inputs([tmp_path / name])


def test_a_dataset_dict_is_refused_naming_its_splits(tmp_path):
    datasets = pytest.importorskip("datasets")
    one = datasets.Dataset.from_list(made_rows(3))
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(str(tmp_path / "both"))
    with pytest.raises(UsageError, match="train, test") as caught:
        expand_inputs([tmp_path / "both"])
    assert str(tmp_path / "both" / "train") in caught.value.fix
    assert expand_inputs([tmp_path / "both" / "train"])[0].format == "huggingface"


def test_a_dataset_without_one_of_its_files_is_refused(tmp_path):
    path = make(tmp_path, "dataset", made_rows(30))
    sorted(path.glob("*.arrow"))[1].unlink()
    with pytest.raises(UsageError, match="incomplete"):
        expand_inputs([path])


@pytest.mark.parametrize("kind", ["jsonl.gz", "jsonl.zst", "parquet"])
@pytest.mark.parametrize("damage", ["cut", "noise"])
def test_damaged_files_are_named_and_leave_no_copy(tmp_path, kind, damage):
    path = make(tmp_path, kind, made_rows(2000))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"\x00\x01garbage" + whole[9:-9] + b"garbage!!")
    with pytest.raises(UsageError, match="damaged") as caught:
        read_all(path, tmp_path / "cache")
    assert path.name in caught.value.message
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_copy_is_made_once_and_anew_for_a_changed_file(tmp_path):
    path = make(tmp_path, "jsonl.gz", made_rows(10))
    cache = tmp_path / "cache"
    assert len(read_all(path, cache)) == 10
    (copy,) = cache.iterdir()
    before = copy.stat().st_mtime_ns
    read_all(path, cache)
    assert copy.stat().st_mtime_ns == before
    make(tmp_path, "jsonl.gz", made_rows(11))
    assert len(read_all(path, cache)) == 11


def test_values_that_json_lacks_have_a_form(tmp_path):
    moment = datetime.datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=datetime.UTC)
    table = pa.table(
        {
            "when": pa.array([moment], pa.timestamp("us", "UTC")),
            "nanos": pa.array([1_700_000_000_000_000_001], pa.timestamp("ns")),
            "day": pa.array([moment.date()]),
            "took": pa.array([datetime.timedelta(seconds=1.5)]),
            "price": pa.array([decimal.Decimal("12.340")]),
            "bytes": pa.array([b"\x00\xff"]),
            "nan": pa.array([float("nan")]),
            "nested": pa.array([{"d": decimal.Decimal("1.5"), "list": [moment.date()]}]),
            "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
            "big": pa.array([2**64 - 1], pa.uint64()),
            "word": pa.array(["x"]).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    (raw,) = read_all(tmp_path / "t.parquet", tmp_path / "cache")
    row = orjson.loads(raw)
    assert row == {
        "when": "2024-05-06T07:08:09.123456+00:00", "nanos": "2023-11-14 22:13:20.000000001",
        "day": "2024-05-06",
        "took": "1.500000s", "price": "12.340",
        "bytes": "AP8=", "nan": None, "nested": {"d": "1.5", "list": ["2024-05-06"]},
        "map": [["k", 1]],
        "big": 2**64 - 1, "word": "x",
    }  # fmt: skip
    assert list(row) == sorted(row)


def test_crlf_bom_blank_lines_and_a_missing_last_newline(tmp_path):
    path = tmp_path / "odd.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a":1}\r\n\r\n  \n{"a":2}\n{"a":3}')
    (piece, last) = lines_of(path, 0, 0, 100)
    assert [line.strip() for line in piece.lines] == [b'{"a":1}', b"", b"", b'{"a":2}']
    assert (last.first_row, last.lines) == (4, [b'{"a":3}'])
    data = path.read_bytes()
    for offset, line in zip(piece.offsets, piece.lines, strict=True):
        assert data[offset : offset + len(line)] == line


def test_a_line_of_any_length_is_passed_over_in_bounded_memory(tmp_path):
    path = tmp_path / "long.jsonl"
    with path.open("wb") as file:
        file.write(b'{"a":1}\n')
        for _ in range(30):
            file.write(b"x" * (1 << 20))
        file.write(b'\n{"a":2}\n')
    pieces = list(lines_of(path, 0, 0, 1 << 20))
    long = next(piece for piece in pieces if isinstance(piece, LongLine))
    assert (long.row, long.offset, long.length) == (1, 8, 30 << 20)
    assert [line for piece in pieces if not isinstance(piece, LongLine) for line in piece.lines] == [
        b'{"a":1}',
        b'{"a":2}',
    ]


def test_lines_can_be_taken_up_anywhere(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", made_rows(200))
    (whole,) = lines_of(path, 0, 0, 10**6)
    for start in (0, 1, 77, 199):
        (rest,) = lines_of(path, start, int(whole.offsets[start]), 10**6)
        assert (rest.first_row, rest.lines, rest.end) == (start, whole.lines[start:], whole.end)


@pytest.mark.parametrize("change", ["size", "head", "tail", "time"])
def test_fingerprints_name_what_differs(tmp_path, change):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"a" * 200_000)
    (file,) = expand_inputs([path])
    before = file.fingerprint()
    assert before.difference(file.fingerprint()) is None
    data = bytearray(path.read_bytes())
    if change == "size":
        data += b"a"
    elif change != "time":
        data[0 if change == "head" else -1] = ord("b")
    path.write_bytes(bytes(data))
    words = {"size": "200,000", "head": "beginning", "tail": "end", "time": "written since"}[change]
    os.utime(path, ns=(0, before.mtime_ns + 1))
    assert words in before.difference(file.fingerprint())


def test_a_file_that_shrank_under_the_run_is_named(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", made_rows(50))
    (piece,) = lines_of(path, 0, 0, 10**6)
    positions = pack(0, range(50), piece.offsets, [len(line) for line in piece.lines])
    with Sources(expand_inputs([path]), tmp_path / "cache") as sources:
        sources.read(positions)
        with path.open("r+b") as file:
            file.truncate(100)
        with pytest.raises(RunFailed, match=r"a\.jsonl has become shorter"):
            sources.read(positions)


def test_more_files_than_may_be_open_at_once(tmp_path):
    paths = [write_jsonl(tmp_path / f"{at:03d}.jsonl", [{"at": at}]) for at in range(150)]
    raws = read_all(paths, tmp_path / "cache")
    assert raws == [orjson.dumps({"at": at}) for at in range(150)]


def test_row_ids_hash_file_row_and_bytes():
    positions = pack(3, [70_000_000_000], [5], [7])
    assert unpack(positions.tobytes()).dtype.itemsize == 24
    (row_id,) = row_ids(positions, [b'{"a":1}'])
    header = (3).to_bytes(4, "little") + (70_000_000_000).to_bytes(8, "little")
    assert row_id.decode() == blake2b(header + b'{"a":1}', digest_size=16).hexdigest()
