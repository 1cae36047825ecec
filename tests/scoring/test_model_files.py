"""Model folders described by content, and refused with what is wrong with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from realign_cluster.domain.errors import UsageError
from realign_cluster.store import model_files
from realign_cluster.store.model_files import check_model_folder, describe_model, hash_of_files, resolve_model


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def test_the_hash_is_of_the_content(tiny_model: Path, folder: Path) -> None:
    spec = describe_model(folder)
    assert spec.hash == describe_model(tiny_model).hash
    assert len(spec.hash) == 32
    assert [file.path for file in spec.files] == sorted(file.path for file in spec.files)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.path for file in spec.files}
    assert spec.hash == hash_of_files(tuple(reversed(spec.files)))
    (folder / "README.md").write_text("notes are not the model")
    assert describe_model(folder).hash == spec.hash
    (folder / "tokenizer_config.json").write_text("{}")
    assert describe_model(folder).hash != spec.hash


def test_hashes_are_remembered_until_the_file_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = describe_model(folder)
    hashed: list[Path] = []
    original = model_files.hash_file

    def counting(path: Path) -> str:
        hashed.append(path)
        return original(path)

    monkeypatch.setattr(model_files, "hash_file", counting)
    assert describe_model(folder) == spec
    assert hashed == []
    with (folder / "config.json").open("a") as file:
        file.write("\n")
    assert describe_model(folder).hash != spec.hash
    assert [path.name for path in hashed] == ["config.json"]


def test_a_damaged_memory_of_hashes_is_made_anew(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REALIGN_HOME", str(tmp_path / "home"))
    spec = describe_model(folder)
    (tmp_path / "home" / "model-hashes.json").write_text("[not an object")
    assert describe_model(folder) == spec


def spoil_config(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


@pytest.mark.parametrize("key", ["model_file", "auto_map"])
def test_models_with_code_are_refused(folder: Path, key: str) -> None:
    spoil_config(folder, **{key: "code.py"})
    with pytest.raises(UsageError, match="code of its own"):
        check_model_folder(folder)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("tokenizer.json", "model folder without tokenizer"),
        ("config.json", "has no config.json"),
        ("model.safetensors", r"has no model\*.safetensors"),
    ],
)
def test_incomplete_folders(folder: Path, missing: str, message: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(UsageError, match=message) as refused:
        describe_model(folder)
    assert refused.value.fix
    assert refused.value.exit_code == 2


def test_a_missing_shard_is_named(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match=r"model-00002-of-00002\.safetensors is missing"):
        describe_model(folder)


def test_other_weights_are_named(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"it has pytorch_model.bin"):
        describe_model(folder)


def test_what_is_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no model folder"):
        resolve_model(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        resolve_model(tmp_path / "file")


def test_a_hub_id_without_a_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("the hub cannot be reached")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UsageError, match="the hub cannot be reached") as refused:
        describe_model("nobody/nothing")
    assert "folder on this machine" in refused.value.fix


def test_a_hub_id_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: Path) -> None:
    import huggingface_hub

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tiny_model))
    spec = describe_model("somebody/tiny")
    assert spec.name == "somebody/tiny"
    assert spec.hash == describe_model(tiny_model).hash
