from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest

from realign_cluster.node.models import ModelRefused, ModelStore, check_manifest
from realign_cluster.rpc.pb.node_pb2 import ModelChunk, ModelFile, ModelManifest

FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 40, "chat_template.jinja": b""}
HASH = "ab" * 16


def manifest(files: dict[str, bytes] = FILES) -> ModelManifest:
    listed = [
        ModelFile(path=path, size=len(data), blake2b=hashlib.blake2b(data, digest_size=16).hexdigest())
        for path, data in files.items()
    ]
    return ModelManifest(model_hash=HASH, name="tiny", files=listed)


def chunks(
    received: dict[str, int] | None = None, size: int = 1000, files: dict[str, bytes] = FILES
) -> list[ModelChunk]:
    """As a coordinator cuts them: from where the node is, empty files not at all, the manifest in the first."""
    made = []
    for path, data in files.items():
        for offset in range((received or {}).get(path, 0), len(data), size):
            made.append(ModelChunk(model_hash=HASH, path=path, offset=offset, data=data[offset : offset + size]))
    if not made:
        made.append(ModelChunk(model_hash=HASH))
    made[0].manifest.CopyFrom(manifest(files))
    return made


async def stream(items: Iterable[ModelChunk]) -> AsyncIterator[ModelChunk]:
    for item in items:
        yield item


async def test_a_model_arrives_and_is_found(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    assert not store.status(manifest()).complete
    assert (await store.receive(stream(chunks()))).complete
    folder = store.find(HASH)
    assert folder is not None
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    assert store.names() == [HASH]
    assert ModelStore(tmp_path).status(manifest()).complete


async def test_a_prepared_dataset_arrives_like_a_model(tmp_path: Path) -> None:
    files = {"train.jsonl": b'{"text":"a"}\n' * 300, "valid.jsonl": b'{"text":"b"}\n'}
    store = ModelStore(tmp_path)
    assert (await store.receive(stream(chunks(files=files)))).complete
    folder = store.find(HASH)
    assert folder is not None
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files


async def test_a_transfer_resumes_where_it_broke_off(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)

    async def breaks() -> AsyncIterator[ModelChunk]:
        for chunk in chunks()[:5]:
            yield chunk
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await store.receive(breaks())
    there = ModelStore(tmp_path).status(manifest())
    assert there.received["model.safetensors"] == 4000
    assert store.find(HASH) is None
    rest = chunks(dict(there.received))
    assert sum(len(chunk.data) for chunk in rest) == 10240 - 4000
    assert (await store.receive(stream(rest))).complete


async def test_a_damaged_file_is_sent_again_and_only_that(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    sent = chunks()
    sent[3].data = b"\0" * len(sent[3].data)
    with pytest.raises(ModelRefused, match=r"model\.safetensors .* damaged") as refused:
        await store.receive(stream(sent))
    assert refused.value.resumable
    there = dict(store.status(manifest()).received)
    assert there == {"config.json": 2, "model.safetensors": 0, "chat_template.jinja": 0}
    assert (await store.receive(stream(chunks(there)))).complete


async def test_chunks_that_do_not_continue_the_file_are_refused(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    sent = chunks()
    del sent[2]
    with pytest.raises(ModelRefused, match="at byte 1000 of 10240"):
        await store.receive(stream(sent))
    sent = chunks(dict(store.status(manifest()).received))
    sent[1].path = "other.json"
    with pytest.raises(ModelRefused, match="not in the model's manifest"):
        await store.receive(stream(sent))


async def test_a_store_that_lost_a_file_asks_for_it_again(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    await store.receive(stream(chunks()))
    (tmp_path / HASH / "model.safetensors").unlink()
    there = store.status(manifest())
    assert not there.complete
    assert store.find(HASH) is None
    assert (await store.receive(stream(chunks(dict(there.received))))).complete


async def test_no_room_is_said_before_anything_is_written(tmp_path: Path) -> None:
    store = ModelStore(tmp_path, keep_free_bytes=2**62)
    with pytest.raises(ModelRefused, match="no room for model tiny") as refused:
        await store.receive(stream(chunks()))
    assert refused.value.no_room
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "path",
    [
        "../config.json",
        "/etc/config.json",
        "a/../b.json",
        "./a.json",
        "a//b.json",
        ".hidden.json",
        "a\\b.json",
        "a/b/c/d.json",
        "",
        "model.bin",
        "modeling.py",
        "CONFIG.JSON",
        "weights.safetensors.exe",
    ],
)
def test_foreign_paths_and_kinds_are_refused(path: str) -> None:
    with pytest.raises(ModelRefused):
        check_manifest(manifest({"config.json": b"{}", path: b"x"}))


def test_names_that_macos_takes_for_one_are_refused() -> None:
    with pytest.raises(ModelRefused, match="twice"):
        check_manifest(manifest({"config.json": b"{}", "Config.json": b"x"}))


@pytest.mark.parametrize("model_hash", ["", "../../x", "none", "A" * 32])
def test_a_hash_is_a_hash(tmp_path: Path, model_hash: str) -> None:
    asked = manifest()
    asked.model_hash = model_hash
    with pytest.raises(ModelRefused, match="not a model hash"):
        ModelStore(tmp_path).status(asked)
    assert ModelStore(tmp_path).find(model_hash) is None
