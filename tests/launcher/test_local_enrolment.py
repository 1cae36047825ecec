"""Daemons of this machine that join by code, are revoked, or belong to somebody else, as real processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.launcher.station import Station

pytestmark = pytest.mark.cluster


def test_join_by_code_then_revoke(station: Station) -> None:
    assert station.realign("cluster", "init").status == 0
    waiting = station.start("realign_cluster.cli.main", "cluster", "join-code", "--address", "127.0.0.1", "--json")
    assert waiting.stdout is not None
    code = json.loads(waiting.stdout.readline())["code"]
    state = station.home / "nodes" / "alpha"
    joined = station.realignd("join", code, "--state", state, "--name", "alpha")
    assert joined.status == 0, joined.err
    out, err = waiting.communicate(timeout=30)
    assert waiting.returncode == 0, err
    assert json.loads(out.splitlines()[-1])["name"] == "alpha"
    again = station.realignd("join", code, "--state", state)
    assert again.status != 0
    assert "join-code" in again.err

    hostfile = station.hostfile("alpha")
    up = station.launch("--hostfile", hostfile, "up")  # enrolled already
    assert up.status == 0, up.err
    assert "enrolling" not in up.err
    assert station.realign("nodes", "--hostfile", hostfile).status == 0

    revoked = station.realign("cluster", "revoke", "alpha", "--json")
    assert [event["event"] for event in revoked.events] == ["node", "summary"]
    nodes = station.realign("nodes", "--hostfile", hostfile, "--json")
    assert (nodes.status, nodes.events[0]["standing"]) == (3, "revoked")
    up = station.launch("--hostfile", hostfile, "up")
    assert up.status == 3
    assert "was revoked" in up.err
    listed = station.realign("cluster", "nodes", "--json")
    assert [event.get("standing") for event in listed.events] == ["revoked", None]


def test_discovery_shows_who_is_enrolled_and_who_is_not(station: Station, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    theirs = Station(tmp_path / "theirs")
    ours, foreign = station.hostfile("ours"), theirs.hostfile("foreign")
    try:
        assert station.launch("--hostfile", ours, "up").status == 0
        assert theirs.launch("--hostfile", foreign, "up").status == 0
        said = station.realign("nodes", "--discover", "--json")
        assert said.status == 0
        ids = {
            json.loads(path.read_text())["node_id"]: path.parent.name
            for path in tmp_path.glob("*/nodes/*/identity.json")
        }
        standing = {ids[e["node_id"]]: e["standing"] for e in said.events if e.get("node_id") in ids}
        assert standing == {"ours": "enrolled", "foreign": "not enrolled"}
    finally:
        theirs.launch("--hostfile", foreign, "down")
