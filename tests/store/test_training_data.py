"""Prepared datasets: rows checked with file and line, written in one form, addressed by content."""

from __future__ import annotations

import errno
import gzip
import tracemalloc
from hashlib import blake2b
from pathlib import Path
from typing import Any

import datasets
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from realign_cluster.domain.errors import UsageError
from realign_cluster.node.models import check_manifest
from realign_cluster.rpc.pb.node_pb2 import ModelFile, ModelManifest
from realign_cluster.store.model_files import hash_of_files
from realign_cluster.store.space import StorageFull
from realign_cluster.store.training_data import PreparedData, prepare_training_data
from tests.store.kit import write_jsonl

ROWS = [{"prompt": f"question {at} é", "response": f"answer {at}", "quality": "good"} for at in range(40)]
WRITTEN = [{"prompt": row["prompt"], "completion": row["response"]} for row in ROWS]
VALID = [{"prompt": f"exam {at}", "completion": [{"role": "assistant", "content": "done"}]} for at in range(5)]


def rows_of(data: PreparedData, split: str = "train") -> list[Any]:
    return [orjson.loads(line) for line in (data.folder / f"{split}.jsonl").read_bytes().splitlines()]


def test_rows_are_written_in_one_form_under_their_hash(tmp_path: Path) -> None:
    train, valid = write_jsonl(tmp_path / "a/train.jsonl", ROWS), write_jsonl(tmp_path / "b/valid.jsonl", VALID)
    data = prepare_training_data([train], [valid], "sft", tmp_path / "run/data")
    assert (data.form, data.rows, data.valid_rows) == ("completions", 40, 5)
    assert rows_of(data) == WRITTEN
    assert rows_of(data, "valid") == [{"prompt": f"exam {at}", "completion": "done"} for at in range(5)]
    assert data.folder == tmp_path / "run/data" / data.spec.hash
    assert [path.name for path in data.folder.parent.iterdir()] == [data.spec.hash]  # nothing else is left
    assert data.spec.hash == hash_of_files(data.spec.files)
    for file in data.spec.files:
        content = (data.folder / file.path).read_bytes()
        assert (file.size, file.blake2b) == (len(content), blake2b(content, digest_size=16).hexdigest())
    files = [ModelFile(path=file.path, size=file.size, blake2b=file.blake2b) for file in data.spec.files]
    check_manifest(ModelManifest(model_hash=data.spec.hash, name=data.spec.name, files=files))


def test_every_format_gives_the_same_dataset(tmp_path: Path) -> None:
    plain = b"".join(orjson.dumps(row) + b"\n" for row in ROWS)
    inputs = [tmp_path / name for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "set")]
    inputs[0].write_bytes(plain.replace(b"\n", b"\r\n\n"))
    inputs[1].write_bytes(gzip.compress(plain))
    inputs[2].write_bytes(zstandard.compress(plain))
    pq.write_table(pa.Table.from_pylist([row | {"messages": None} for row in ROWS]), inputs[3])
    datasets.Dataset.from_list(ROWS).save_to_disk(str(inputs[4]))
    prepared = [prepare_training_data([path], [], "sft", tmp_path / "data") for path in inputs]
    assert {data.spec.hash for data in prepared} == {prepared[0].spec.hash}
    assert rows_of(prepared[0]) == WRITTEN
    assert [path.name for path in (tmp_path / "data").iterdir()] == [prepared[0].spec.hash]


def test_a_row_is_found_again_in_the_users_files(tmp_path: Path) -> None:
    lines = [orjson.dumps(row) for row in ROWS]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([lines[0], lines[1], b"", b" ", lines[2], lines[3]]))
    write_jsonl(tmp_path / "b.jsonl", ROWS[4:])
    data = prepare_training_data([tmp_path / "*.jsonl"], [], "sft", tmp_path / "data")
    assert rows_of(data) == WRITTEN
    assert [data.where("train", row) for row in (0, 1, 2, 3, 4, 39)] == [
        "a.jsonl:1",
        "a.jsonl:2",
        "a.jsonl:5",
        "a.jsonl:6",
        "b.jsonl:1",
        "b.jsonl:36",
    ]
    assert len(data.origins["train"]) == 3


def test_what_a_rank_says_of_rows_is_said_of_the_users_files(tmp_path: Path) -> None:
    mine = tmp_path / "mine.jsonl"
    mine.write_bytes(b"".join(orjson.dumps(row) + b"\n\n" for row in ROWS))  # a blank line after each
    held = write_jsonl(tmp_path / "held.jsonl", VALID)
    data = prepare_training_data([mine], [held], "sft", tmp_path / "data")
    said = "2 of 40 rows of train.jsonl are longer:\n  train.jsonl:3: of valid.jsonl; valid.jsonl:5 has 9 tokens"
    assert data.in_the_users_files(said) == (
        f"2 of 40 rows of --data are longer:\n  {data.where('train', 2)}: of --valid; {data.where('valid', 4)} has"
        " 9 tokens"
    )
    assert data.where("train", 2).endswith("mine.jsonl:5")
    alone = prepare_training_data([mine], [], "sft", tmp_path / "data")
    assert alone.in_the_users_files("nothing of valid.jsonl:1") == "nothing of valid.jsonl:1"


def test_implied_prompts_are_written_out(tmp_path: Path) -> None:
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    answers = [{"role": "assistant", "content": text} for text in ("Because.", "So.", "No.")]
    rows = [{"chosen": [*asked, answer], "rejected": [*asked, answers[2]]} for answer in answers[:2]]
    data = prepare_training_data([write_jsonl(tmp_path / "pairs.jsonl", rows)], [], "dpo", tmp_path / "data")
    assert data.form == "preference"
    assert rows_of(data) == [{"prompt": asked, "chosen": text, "rejected": "No."} for text in ("Because.", "So.")]


PROBES = [
    {"prompt": "Why?", "answer": "left out"},
    {"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]},
    {"messages": [{"role": "user", "content": "And now?"}, {"role": "assistant", "content": "It ends."}]},
    {"prompt": "Which?", "chosen": "this", "rejected": "that"},
    {
        "chosen": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "You."}],
        "rejected": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}],
    },
    ROWS[0],  # also a train row: it is only asked
]


def test_of_probes_the_prompts_are_kept_whatever_their_form(tmp_path: Path) -> None:
    train, probes = write_jsonl(tmp_path / "train.jsonl", ROWS), write_jsonl(tmp_path / "asked.jsonl", PROBES)
    data = prepare_training_data([train], [], "sft", tmp_path / "data", probe_paths=[probes])
    asked = [row["prompt"] for row in rows_of(data, "probes")]
    assert asked == ["Why?", PROBES[1]["prompt"], "And now?", "Which?", "Who?", ROWS[0]["prompt"]]
    assert rows_of(data) == WRITTEN
    assert {file.path for file in data.spec.files} == {"train.jsonl", "probes.jsonl"}
    assert data.in_the_users_files("probes.jsonl:2: too long, 1 row of probes.jsonl") == (
        "asked.jsonl:2: too long, 1 row of --kl-probes"
    )
    others = write_jsonl(tmp_path / "asked.jsonl", PROBES[1:])
    assert prepare_training_data([train], [], "sft", tmp_path / "data", probe_paths=[others]).spec != data.spec


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        ({"text": "t"}, "asked.jsonl:2: prompt: missing"),
        ({"prompt": " "}, "asked.jsonl:2: prompt: is empty"),
        ({"prompt": 7}, "asked.jsonl:2: prompt: is a number"),
        ({"prompt": [{"role": "assistant", "content": "I am."}]}, "asked.jsonl:2: prompt: has nothing to answer"),
        ({"messages": [{"role": "assistant", "content": "I am."}]}, "asked.jsonl:2: messages: has nothing to answer"),
    ],
)
def test_a_bad_probe_is_named_with_file_and_line(tmp_path: Path, probe: dict[str, Any], message: str) -> None:
    train, probes = write_jsonl(tmp_path / "train.jsonl", ROWS), write_jsonl(tmp_path / "asked.jsonl", [ROWS[0], probe])
    with pytest.raises(UsageError) as bad:
        prepare_training_data([train], [], "sft", tmp_path / "data", probe_paths=[probes])
    assert message in bad.value.message
    probes.write_text("")
    with pytest.raises(UsageError, match=r"the --kl-probes data has no rows: asked\.jsonl"):
        prepare_training_data([train], [], "sft", tmp_path / "data", probe_paths=[probes])


BAD = [
    (b'{"prompt": "p"', "train.jsonl:2: not JSON"),
    (b"\xff", "train.jsonl:2: not UTF-8: byte 0xff"),
    (b"[1]", "train.jsonl:2: expected a JSON object, found a list"),
    (b'{"prompt": "p", "completion": "\\ud800"}', "train.jsonl:2: holds a lone surrogate"),
    (b'{"prompt": "p"}', "train.jsonl:2: completion: missing"),
    (b'{"prompt": "p", "completion": 7}', "train.jsonl:2: completion: is a number, expected a text or a list"),
    (b'{"prompt": "p", "completion": ""}', "train.jsonl:2: completion: is empty, expected a text"),
    (b'{"text": "t"}', "train.jsonl:2: is a text row, but train.jsonl:1 is a completions row; expected one form"),
    (b'{"claim": "c"}', 'train.jsonl:2: has the fields claim; expected {"messages"} or {"prompt", "completion"} or'),
    (b'{"prompt": "p", "chosen": "c", "rejected": "r"}', "train.jsonl:2: sft learns from chat"),
    (b'{"prompt": "' + b"x" * 9_000_000 + b'"}', "train.jsonl:2: the row has 9,000,014 bytes, at most 8,388,608"),
]


@pytest.mark.parametrize(("raw", "message"), BAD, ids=[message[15:40] for _, message in BAD])
def test_a_bad_row_is_named_with_file_and_line(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(orjson.dumps(ROWS[0]) + b"\n" + raw + b"\n" + orjson.dumps(ROWS[1]) + b"\n")
    with pytest.raises(UsageError) as bad:
        prepare_training_data([path], [], "sft", tmp_path / "data")
    assert bad.value.exit_code == 2
    assert message in bad.value.message
    assert bad.value.message.startswith("1 of 3 rows cannot be trained on:\n  train.jsonl:2: ")
    assert list((tmp_path / "data").iterdir()) == []


def test_all_rows_are_read_and_the_first_problems_listed(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", [*ROWS, *[{"prompt": "p", "completion": ""}] * 18])
    valid = write_jsonl(tmp_path / "valid.jsonl", [{"prompt": ""}] * 7)
    with pytest.raises(UsageError) as bad:
        prepare_training_data([train], [valid], "sft", tmp_path / "data")
    lines = bad.value.message.splitlines()
    assert lines[0] == "25 of 65 rows cannot be trained on:"
    assert (lines[1], lines[20]) == (
        "  valid.jsonl:1: prompt: is empty, expected a text",
        "  train.jsonl:53: completion: is empty, expected a text",
    )
    assert lines[21] == "  and 5 more"


@pytest.mark.parametrize(
    ("rows", "method", "message", "fix"),
    [
        (
            ROWS,
            "dpo",
            "train.jsonl:1: dpo learns from preference {.*} rows, this is a completions row {",
            "--method sft",
        ),
        (
            [{"prompt": "p", "chosen": "c", "rejected": "r"}],
            "sft",
            "train.jsonl:1: sft learns from .* rows, this is a preference row",
            "--method dpo",
        ),
    ],
)
def test_a_method_and_a_form_that_do_not_fit(tmp_path: Path, rows: Any, method: Any, message: str, fix: str) -> None:
    with pytest.raises(UsageError, match=message) as bad:
        prepare_training_data([write_jsonl(tmp_path / "train.jsonl", rows)], [], method, tmp_path / "data")
    assert fix in bad.value.fix


@pytest.mark.parametrize(
    ("train", "valid", "message"),
    [
        (b"", None, "the training data has no rows: train.jsonl"),
        (b"\n \n", None, "the training data has no rows: train.jsonl"),
        (orjson.dumps(ROWS[0]), b"", "the validation data has no rows: valid.jsonl"),
    ],
)
def test_no_rows(tmp_path: Path, train: bytes, valid: bytes | None, message: str) -> None:
    (tmp_path / "train.jsonl").write_bytes(train)
    if valid is not None:
        (tmp_path / "valid.jsonl").write_bytes(valid)
    with pytest.raises(UsageError, match=message):
        prepare_training_data(
            [tmp_path / "train.jsonl"],
            [tmp_path / "valid.jsonl"] if valid is not None else [],
            "sft",
            tmp_path / "data",
        )


def test_no_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        prepare_training_data([tmp_path / "train.jsonl"], [], "sft", tmp_path / "data")
    with pytest.raises(UsageError, match="no input was named"):
        prepare_training_data([], [write_jsonl(tmp_path / "valid.jsonl", VALID)], "sft", tmp_path / "data")


def test_rows_that_are_in_both_are_named(tmp_path: Path) -> None:
    """Also where they are written in another way."""
    train = write_jsonl(tmp_path / "train.jsonl", ROWS)
    again = {"prompt": [{"role": "user", "content": ROWS[17]["prompt"]}], "completion": "answer 17", "id": 4}
    valid = write_jsonl(tmp_path / "valid.jsonl", [*VALID, again, ROWS[3]])
    with pytest.raises(UsageError) as bad:
        prepare_training_data([train], [valid], "sft", tmp_path / "data")
    assert bad.value.message.startswith("2 train rows are validation rows too")
    assert bad.value.message.endswith(": train.jsonl:4 is valid.jsonl:7, train.jsonl:18 is valid.jsonl:6")
    with pytest.raises(UsageError, match=r"^40 train rows are .*: train.jsonl:1 is train.jsonl:1, .*, \.\.\."):
        prepare_training_data([train], [train], "sft", tmp_path / "data")


def test_a_dataset_that_is_there_is_used_and_a_damaged_one_replaced(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", ROWS)
    first = prepare_training_data([train], [], "sft", tmp_path / "data")
    file = first.folder / "train.jsonl"
    made = file.stat().st_ino
    assert prepare_training_data([train], [], "sft", tmp_path / "data").folder == first.folder
    assert file.stat().st_ino == made
    content = file.read_bytes()
    file.write_bytes(content[:-9] + b"corrupted")
    prepare_training_data([train], [], "sft", tmp_path / "data")
    assert file.read_bytes() == content


def test_a_full_disk_leaves_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    train = write_jsonl(tmp_path / "train.jsonl", ROWS)
    monkeypatch.setattr("realign_cluster.store.durable.sync_descriptor", full)
    with pytest.raises(StorageFull, match="free some room there and give the command again"):
        prepare_training_data([train], [], "sft", tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_memory_does_not_grow_with_the_train_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("realign_cluster.store.jsonl.BLOCK_BYTES", 100_000)
    text = "word " * 200
    train = write_jsonl(tmp_path / "train.jsonl", ({"text": f"{at} {text}"} for at in range(8000)))
    valid = write_jsonl(tmp_path / "valid.jsonl", ({"text": f"{at} valid {text}"} for at in range(50)))
    tracemalloc.start()
    try:
        data = prepare_training_data([train], [valid], "sft", tmp_path / "data")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert data.rows == 8000
    assert peak < 2_000_000 < (data.folder / "train.jsonl").stat().st_size / 3


def test_leaks_are_found_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("realign_cluster.store.jsonl.BLOCK_BYTES", 300)
    train = write_jsonl(tmp_path / "train.jsonl", ROWS)
    valid = write_jsonl(tmp_path / "valid.jsonl", [*VALID, *ROWS[31:33]])
    with pytest.raises(UsageError, match=r"^2 .* train.jsonl:32 is valid.jsonl:6, train.jsonl:33 is valid.jsonl:7\n"):
        prepare_training_data([train], [valid], "sft", tmp_path / "data")
