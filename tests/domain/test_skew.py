from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.skew import parse_allowed, refused, skew, skew_between
from realign_cluster.rpc.pb import common_pb2 as common


@dataclass(frozen=True)
class Versions:
    project: str = "0.1.0"
    protocol: int = 1
    mlx: str = "0.32.4"
    mlx_lm: str = "0.32.2"
    python: str = "3.11.9"


OURS = Versions()


def test_equal_versions_have_no_skew() -> None:
    assert skew(OURS, OURS) == ()
    assert skew(OURS, replace(OURS, python="3.11.2")) == ()


@pytest.mark.parametrize(
    ("what", "found"),
    [
        ("protocol", replace(OURS, protocol=2)),
        ("project", replace(OURS, project="0.2.0")),
        ("mlx", replace(OURS, mlx="0.31.0")),
        ("mlx-lm", replace(OURS, mlx_lm="")),
    ],
)
def test_each_difference_is_refused_with_the_command_that_ends_it(what: str, found: Versions) -> None:
    (item,) = skew(OURS, found)
    assert (item.what, item.severity) == (what, "refused")
    assert "realign-launch --hostfile FILE --install" in item.fix
    assert refused([item]) == (item,)
    text = item.text("mini")
    assert text.startswith(f"mini: {what} ")
    assert "fix:" in text
    if what == "mlx-lm":
        assert "not installed" in text


def test_python_only_warns() -> None:
    (item,) = skew(OURS, replace(OURS, python="3.12.1"))
    assert item.severity == "warning"
    assert refused([item]) == ()


def test_what_is_allowed_by_name_is_still_told() -> None:
    found = replace(OURS, mlx="0.31.0", mlx_lm="0.31.0")
    items = skew(OURS, found, parse_allowed("mlx"))
    assert [(item.what, item.severity) for item in items] == [("mlx", "allowed"), ("mlx-lm", "refused")]
    assert not refused(skew(OURS, found, parse_allowed("mlx, mlx_lm")))


def test_names_that_cannot_be_allowed() -> None:
    with pytest.raises(UsageError, match="protocol"):
        parse_allowed("protocol")
    with pytest.raises(UsageError, match="numpy"):
        parse_allowed("mlx,numpy")
    assert parse_allowed("") == frozenset()


def test_the_protocols_own_message_fits() -> None:
    ours = common.Versions(project="0.1.0", protocol=1, mlx="0.32.4", mlx_lm="0.32.2", python="3.11.9")
    theirs = common.Versions(project="0.1.0", protocol=3, mlx="0.32.4", mlx_lm="0.32.2", python="3.11.9")
    assert [item.what for item in skew(ours, theirs)] == ["protocol"]


def test_between_nodes() -> None:
    nodes = {"a": OURS, "b": OURS, "c": replace(OURS, mlx="0.31.0", python="3.12.0")}
    assert skew_between(nodes) == ("mlx: 0.32.4 on a, b; 0.31.0 on c", "python: 3.11 on a, b; 3.12 on c")
    assert skew_between({"a": OURS}) == ()
