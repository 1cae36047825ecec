"""The roll call over sittings: it is the ledger that knows who was there."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

import pytest

from realign_cluster.coordinator.home import ClusterHome
from realign_cluster.coordinator.roll_call import RollCall
from realign_cluster.coordinator.stop import Stop, StopAsked
from realign_cluster.coordinator.workflow import register_in
from realign_cluster.domain.ids import NodeName
from realign_cluster.store.workflow_ledger import WorkflowLedger


def test_a_new_sitting_waits_for_who_was_there_in_the_last_one(tmp_path: Path) -> None:
    hostfile = tmp_path / "hosts.json"
    hostfile.write_text(json.dumps([{"ssh": "alpha", "ips": ["127.0.0.1"]}, {"ssh": "beta", "ips": ["127.0.0.2"]}]))
    said: list[str] = []
    stop = Stop()

    def note(message: str, level: str) -> None:
        said.append(message)
        stop.asked = True

    def roll_call(ledger: WorkflowLedger) -> RollCall:
        return RollCall(
            hostfile,
            discover=False,
            allow_skew=frozenset(),
            home=ClusterHome(tmp_path / "home"),
            wait_seconds=60.0,
            register=register_in(ledger),
            note=note,
            look=stop.raise_if_asked,
        )

    with contextlib.closing(WorkflowLedger.create(tmp_path / "ledger.sqlite", {})) as first:
        asyncio.run(roll_call(first).wait())  # nobody was ever there
        assert said == []
        register_in(first).write(frozenset(map(NodeName, ("beta", "gamma"))))
    with contextlib.closing(WorkflowLedger(tmp_path / "ledger.sqlite")) as second:
        with pytest.raises(StopAsked):
            asyncio.run(roll_call(second).wait())
        assert said == ["beta is away: waiting up to 60 s for it"]  # the hostfile has no gamma any more
        assert register_in(second).read() == {"beta", "gamma"}
