from __future__ import annotations

from realign_cluster.training.orders import Mailbox


def test_reference_values_are_those_of_the_first_go() -> None:
    """Go may be said again, to one rank alone, when more is known: ranks that knew different rows would compute
    different ones, and wait for each other in different collectives.
    """
    mailbox = Mailbox()
    go = {"op": "go", "generation": 1, "addresses": ["127.0.0.1:1"]}
    for frame in (
        {"op": "reference", "rows": [[0, -1.0, -2.0]]},
        go,
        {"op": "reference", "rows": [[1, -3.0, -4.0]]},
        go,
    ):
        assert mailbox.put(frame)
    assert mailbox.reference == {0: (-1.0, -2.0)}
    assert mailbox.wait_for_go() is not None


def test_frames_of_unknown_kinds_are_left_out() -> None:
    assert not Mailbox().put({"op": "dance"})
