from __future__ import annotations

from realign_cluster.node.tenancy import Denied, Granted, Tenancy


def claim(tenancy: Tenancy, run: str, epoch: int, now: float, lease: float = 3.0) -> Granted | Denied:
    return tenancy.claim(run_id=run, epoch=epoch, coordinator=f"user@{run} pid 1", lease_seconds=lease, now=now)


def test_another_run_is_told_who_has_the_node_and_waits_out_the_lease() -> None:
    tenancy = Tenancy("studio")
    assert isinstance(claim(tenancy, "a", 1, now=0), Granted)
    tenancy.heard("a", 1, now=2.0)
    denied = claim(tenancy, "b", 9, now=4.9)
    assert isinstance(denied, Denied)
    assert denied.kind == "held"
    assert "studio is held by run a of user@a pid 1, heard 2.9 s ago" in denied.message
    assert isinstance(claim(tenancy, "b", 1, now=5.1), Granted)
    assert isinstance(claim(tenancy, "a", 2, now=5.2), Denied)


def test_the_same_run_takes_over_at_once_but_never_backwards() -> None:
    tenancy = Tenancy("studio")
    first = claim(tenancy, "a", 1, now=0)
    assert isinstance(first, Granted)
    assert not first.same_run
    assert claim(tenancy, "a", 2, now=0.1).tenant.epoch == 2
    again = claim(tenancy, "a", 2, now=0.2)
    assert isinstance(again, Granted)
    assert again.same_run
    stale = claim(tenancy, "a", 1, now=0.3)
    assert isinstance(stale, Denied)
    assert stale.kind == "stale-epoch"
    assert isinstance(claim(tenancy, "a", 1, now=99), Denied)  # also when nobody is there any more


def test_only_the_holder_keeps_and_releases_it() -> None:
    tenancy = Tenancy("studio")
    claim(tenancy, "a", 2, now=0)
    tenancy.heard("a", 1, now=2)
    tenancy.release("a", 1)
    tenancy.release("b", 2)
    assert tenancy.current(3.0) is not None
    assert tenancy.current(3.1) is None
    claim(tenancy, "a", 2, now=10)
    tenancy.release("a", 2)
    assert isinstance(claim(tenancy, "b", 1, now=10.1), Granted)


def test_a_daemon_that_slept_gives_the_coordinator_the_time_back() -> None:
    tenancy = Tenancy("studio")
    claim(tenancy, "a", 1, now=0)
    tenancy.stalled(60, now=61)
    assert tenancy.current(61) is not None
    assert tenancy.current(64) is None


def test_leases_are_bounded() -> None:
    tenancy = Tenancy("studio")
    claim(tenancy, "a", 1, now=0, lease=1e9)
    assert tenancy.current(61) is None
