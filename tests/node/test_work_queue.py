"""The queue against a model: nothing is lost, nothing is answered twice, nothing revoked is answered."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from realign_cluster.node import work_queue
from realign_cluster.node.work_queue import WINDOW_UNITS, QueueFull, WorkQueue


def add(queue: WorkQueue, attempt: int, run: str = "r", size: int = 10) -> bool:
    return queue.add(run_id=run, epoch=1, attempt=attempt, unit=attempt, lease=1, count=1, cost=1.0, rows=b"x" * size)


class Queue(RuleBasedStateMachine):
    """Plays coordinator and worker. `expected` are attempts that must still be answered."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = WorkQueue()
        self.next_attempt = 1
        self.expected: set[int] = set()
        self.revoked: set[int] = set()
        self.at_worker: list[int] = []  # tickets, in order
        self.attempt_of: dict[int, int] = {}
        self.computing: int | None = None

    @rule(size=st.sampled_from([1, 1000, 3 * 1024 * 1024]))
    def assign(self, size: int) -> None:
        assert add(self.queue, self.next_attempt, size=size)
        self.expected.add(self.next_attempt)
        self.next_attempt += 1

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def assign_again(self, data: st.DataObject) -> None:
        assert not add(self.queue, data.draw(st.sampled_from(sorted(self.expected))))

    @rule()
    def hand_over(self) -> None:
        for held, rows in self.queue.hand_over():
            assert held.size == len(rows)
            self.at_worker.append(held.ticket)
            self.attempt_of[held.ticket] = held.attempt

    @precondition(lambda self: self.at_worker and self.computing is None)
    @rule()
    def begin(self) -> None:
        self.computing = self.at_worker.pop(0)
        self.queue.began(self.computing)

    @precondition(lambda self: self.computing is not None)
    @rule()
    def answer(self) -> None:
        assert self.computing is not None
        attempt = self.attempt_of[self.computing]
        held = self.queue.finished(self.computing)
        if attempt in self.expected:
            assert held is not None
            assert held.attempt == attempt
            self.expected.discard(attempt)
        elif attempt in self.revoked:
            assert held is None
        self.computing = None

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def revoke(self, data: st.DataObject) -> None:
        attempts = data.draw(st.sets(st.sampled_from(sorted(self.expected)), min_size=1))
        tickets = set(self.queue.revoke("r", attempts))
        self.at_worker = [ticket for ticket in self.at_worker if ticket not in tickets]
        self.expected -= attempts
        self.revoked |= attempts

    @rule()
    def coordinator_gone(self) -> None:
        tickets = set(self.queue.drop_all_but_computing())
        assert self.computing not in tickets
        self.at_worker = [ticket for ticket in self.at_worker if ticket not in tickets]
        in_hand = self.attempt_of.get(self.computing or 0)
        self.expected &= {in_hand} if in_hand else set()

    @rule()
    def worker_dies(self) -> None:
        computing, lost = self.queue.worker_gone()
        attempts = {held.attempt for held in lost} | ({computing.attempt} if computing else set())
        assert attempts == self.expected
        if computing is not None:
            assert self.computing is not None
            assert computing.attempt == self.attempt_of[self.computing]
        self.expected.clear()
        self.at_worker.clear()
        self.computing = None

    @invariant()
    def all_expected_are_counted(self) -> None:
        assert len(self.queue) == len(self.expected)
        assert self.queue.busy == bool(self.expected)

    def teardown(self) -> None:
        """Whatever happened: what is expected still gets through a worker that goes on."""
        for _ in range(10 * self.next_attempt + 10):
            self.hand_over()
            if self.computing is not None:
                self.answer()
            elif self.at_worker:
                self.begin()
        assert not self.expected


TestQueue = Queue.TestCase


def test_the_window_and_the_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = WorkQueue()
    for attempt in range(1, 100):
        add(queue, attempt)
    assert len(queue.hand_over()) == WINDOW_UNITS
    assert queue.hand_over() == []
    monkeypatch.setattr(work_queue, "MAX_UNITS", 100)
    for attempt in range(100, 100 + WINDOW_UNITS + 1):
        add(queue, attempt)
    with pytest.raises(QueueFull):
        add(queue, 1000)


def test_attempt_numbers_of_two_runs_do_not_meet() -> None:
    queue = WorkQueue()
    add(queue, 1, run="a")
    ((first, _),) = queue.hand_over()
    queue.began(first.ticket)
    queue.drop_all_but_computing()
    assert add(queue, 1, run="b")
    done = queue.finished(first.ticket)
    assert done is not None
    assert done.run_id == "a"
    ((second, _),) = queue.hand_over()
    assert (second.run_id, second.attempt) == ("b", 1)


def test_a_run_that_is_over_is_not_answered() -> None:
    queue = WorkQueue()
    add(queue, 1)
    add(queue, 2)
    ((first, _), (second, _)) = queue.hand_over()
    queue.began(first.ticket)
    add(queue, 3)
    assert set(queue.silence("r")) == {first.ticket, second.ticket}
    assert queue.finished(first.ticket) is None
    assert not queue.busy
