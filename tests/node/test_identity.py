from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from realign_cluster.node.identity import (
    IdentityError,
    Machine,
    load_identity,
    load_or_create_identity,
    parse_platform_uuid,
    reset_identity,
)
from realign_cluster.node.state_folder import StateFolder

HERE = Machine(machine_id="0123", host_name="mac.local")


def test_an_id_is_stable_and_unique_per_folder(tmp_path: Path) -> None:
    one, two = StateFolder.at(tmp_path / "one"), StateFolder.at(tmp_path / "two")
    first = load_or_create_identity(one, HERE)
    assert load_or_create_identity(one, HERE) == first
    assert first.name == "mac"
    assert load_or_create_identity(one, HERE, "studio").node_id == first.node_id
    assert load_identity(one, HERE).name == "studio"  # type: ignore[union-attr]
    assert load_or_create_identity(two, HERE).node_id != first.node_id


@pytest.mark.parametrize(
    ("there", "says"),
    [
        (Machine(machine_id="4567", host_name="mac.local"), "the machine was"),
        (Machine(machine_id="0123", host_name="other"), "host name was 'mac.local', is 'other'"),
    ],
)
def test_another_machine_is_noticed(tmp_path: Path, there: Machine, says: str) -> None:
    folder = StateFolder.at(tmp_path / "node")
    load_or_create_identity(folder, HERE)
    with pytest.raises(IdentityError, match=says):
        load_identity(folder, there)


def test_a_copied_folder_is_refused_with_the_command_that_resets_it(tmp_path: Path) -> None:
    original = StateFolder.at(tmp_path / "node")
    first = load_or_create_identity(original, HERE)
    shutil.copytree(original.root, tmp_path / "copy")
    copy = StateFolder.at(tmp_path / "copy")
    (copy.models / ("a" * 32)).mkdir()
    with pytest.raises(IdentityError, match="copied") as refused:
        load_or_create_identity(copy, HERE)
    assert f"realignd reset --state {copy.root}" in refused.value.fix
    assert reset_identity(copy)
    assert load_or_create_identity(copy, HERE).node_id != first.node_id
    assert (copy.models / ("a" * 32)).is_dir()


def test_a_link_to_the_folder_is_the_folder(tmp_path: Path) -> None:
    first = load_or_create_identity(StateFolder.at(tmp_path / "node"), HERE)
    (tmp_path / "link").symlink_to(tmp_path / "node")
    assert load_or_create_identity(StateFolder.at(tmp_path / "link"), HERE) == first


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    folder = StateFolder.at(tmp_path / "node")
    folder.identity.write_text('{"node_id": 3}')
    with pytest.raises(IdentityError, match="damaged"):
        load_identity(folder, HERE)


def test_platform_uuid() -> None:
    text = '{"SPHardwareDataType":[{"_name":"hardware_overview","platform_UUID":"A1B2","chip_type":"Apple M4 Max"}]}'
    assert parse_platform_uuid(text) == "A1B2"
    for wrong in ("", "{}", '{"SPHardwareDataType":[]}'):
        with pytest.raises(ValueError):
            parse_platform_uuid(wrong)
