"""Decides who computes what: one event in, commands with their reasons out.

Pull with two leases per node, sized by measured speed, longest units first; failed units go elsewhere; idle nodes
duplicate what would be back last. Knows no clock, no randomness, no ledger and no network: the caller stores the
event, calls `handle`, stores and carries out the commands. The same events give the same commands.

What the caller must keep: an event's `at` never falls; Commit, Blame, Split and Quarantine reach the ledger before
anything that follows from them; after a crash a new Scheduler starts from the ledger with a higher epoch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from realign_cluster.domain import events as e
from realign_cluster.domain.assignment import Assigner
from realign_cluster.domain.fleet import Attempt, Node, NodeView, Work, may_return, usable_besides, view_of
from realign_cluster.domain.flight import Flight
from realign_cluster.domain.ids import AttemptId, Epoch, NodeName, UnitId
from realign_cluster.domain.poison import (
    DIED_CODE,
    DIED_MESSAGE,
    STALLED_CODE,
    STALLED_MESSAGE,
    halves,
    is_bad,
    judge_unit,
)
from realign_cluster.domain.policy import Policy
from realign_cluster.domain.speed import RunningSpeed

__all__ = ["NodeView", "Policy", "Scheduler"]

_LOOK_SECONDS = 0.5
_LOOK_SECONDS_WHEN_IDLE = 0.1  # a node is idle while others compute: something becomes overdue soon
_Out = list[e.Command]


class Scheduler:
    """One sitting of a run.

    Invariants: a unit handed over by the ledger is in `_flight` (waiting, or with a live attempt) or done; only a live
    attempt commits; no node holds more than `depth` leases.
    """

    def __init__(self, policy: Policy | None = None) -> None:
        self.policy = policy or Policy()
        self._now = 0.0
        self._nodes: dict[NodeName, Node] = {}  # in the order they were first heard of
        self._flight = Flight()
        # of the run
        self._opened = False
        self._epoch = Epoch(0)
        self._next_unit = 0
        self._first_child = 0  # unit ids from here on are children made in this sitting, or will be
        self._remaining_cost = 0.0
        self._planned_speed = 0.0
        self._planned_nodes: tuple[NodeName, ...] = ()
        self._cost_committed = 0.0
        self._exhausted = False
        self._loading = False
        self._writable = True
        self._drain_until: float | None = None
        self._finished = False
        # the first leases wait until the nodes that come up together are all there
        self._granted_any = False
        self._first_ready_at: float | None = None
        self._last_ready_at = 0.0
        self._failures_in_a_row = 0

    def handle(self, event: e.Event) -> e.Decision:
        """What this event leads to. Its `at` may not fall below the last one's; if it does, it is taken to be equal."""
        if event.at > self._now:
            self._now = event.at
        out: _Out = []
        if self._finished and not isinstance(event, e.ResultReceived):
            return e.Decision()
        match event:
            case e.ResultReceived():
                self._on_result(event, out)
            case e.Tick():
                pass
            case e.UnitsLoaded():
                self._on_units_loaded(event)
            case e.NodeReady():
                self._on_node_ready(event, out)
            case e.NodeLost():
                self._on_node_lost(event)
            case e.UnitFailed():
                self._on_unit_failed(event, out)
            case e.WorkerExited():
                self._on_worker_exited(event, out)
            case e.WorkerStalled():
                self._on_worker_stalled(event, out)
            case e.StorageChanged():
                self._writable = event.writable
            case e.DrainAsked():
                self._drain_until = event.until
            case e.RunOpened():
                self._on_run_opened(event)
            case _:
                assert_never(event)
        if self._opened and not self._finished:
            self._assign(out)
            self._ask_for_units(event, out)
            self._finish_if_over(out)
        return e.Decision(commands=tuple(out), seconds_to_next_look=self._seconds_to_next_look())

    def node_states(self) -> dict[NodeName, NodeView]:
        """Every node that was heard of in this sitting, in that order, as of the last event."""
        return {name: view_of(node, self._now, self._cost_committed) for name, node in self._nodes.items()}

    @property
    def remaining_cost(self) -> float:
        """Cost not yet committed or quarantined, in flight or waiting."""
        return self._remaining_cost

    # --- the run ----------------------------------------------------------------------------------------------------

    def _on_run_opened(self, event: e.RunOpened) -> None:
        if self._opened:
            raise ValueError("this scheduler has opened its run already: a new sitting needs a new one")
        self._opened = True
        self._epoch = event.epoch
        self._next_unit = self._first_child = event.next_unit
        self._flight.next_attempt = event.next_attempt
        self._flight.next_lease = event.next_lease
        self._remaining_cost = event.cost
        self._planned_speed = event.planned_cost_per_second
        self._planned_nodes = event.planned_nodes
        self._exhausted = event.units == 0

    def _on_units_loaded(self, event: e.UnitsLoaded) -> None:
        self._loading = False
        self._exhausted = event.exhausted
        # Children made in this sitting are here already, whether or not the ledger offers them.
        self._flight.backlog.load(ref for ref in event.units if ref.unit < self._first_child)

    def _ask_for_units(self, event: e.Event, out: _Out) -> None:
        if self._exhausted or self._loading or self._drain_until is not None:
            return
        if isinstance(event, e.UnitsLoaded) and not event.units:
            return  # there are none yet: ask again at the next look, not in a loop
        if len(self._flight.backlog.fresh) < self.policy.page // 2:
            self._loading = True
            out.append(e.LoadUnits(count=self.policy.page))

    def _finish_if_over(self, out: _Out) -> None:
        in_flight = len(self._flight.works)
        waiting = len(self._flight.backlog)
        if self._exhausted and not waiting and not in_flight:
            self._finish(out, complete=True, reason="every unit is committed or quarantined")
        elif self._drain_until is not None and not in_flight:
            self._finish(out, complete=False, reason="interrupted: nothing is in flight any more")
        elif self._drain_until is not None and self._now >= self._drain_until:
            self._finish(out, complete=False, reason=f"interrupted: gave up waiting for {in_flight} units in flight")
        elif self._nobody_usable() and not self._someone_may_come():
            reasons = "; ".join(f"{node.name}: {node.last_failure}" for node in self._nodes.values())
            self._finish(out, complete=False, reason=f"no usable node is left ({reasons})")
        elif self._failures_in_a_row >= self.policy.failures_to_give_up and not self._someone_may_come():
            last = max(self._nodes.values(), key=lambda node: node.failures).last_failure
            reason = f"{self._failures_in_a_row} failures in a row without one result, the last: {last}"
            self._finish(out, complete=False, reason=reason)

    def _nobody_usable(self) -> bool:
        return bool(self._nodes) and all(node.status == "set aside" for node in self._nodes.values())

    def _finish(self, out: _Out, complete: bool, reason: str) -> None:
        self._finished = True
        out.append(e.Finish(complete=complete, reason=reason))

    def _seconds_to_next_look(self) -> float:
        if self._finished or not self._opened:
            return _LOOK_SECONDS
        if not self._granted_any and self._first_ready_at is not None:
            return max(0.001, min(_LOOK_SECONDS, self._settled_at() - self._now))
        seconds = _LOOK_SECONDS
        if self._flight.works and any(node.status == "ready" and not node.queue for node in self._nodes.values()):
            seconds = _LOOK_SECONDS_WHEN_IDLE
        if self._drain_until is not None:
            seconds = max(0.001, min(seconds, self._drain_until - self._now))
        return seconds

    # --- nodes ------------------------------------------------------------------------------------------------------

    def _on_node_ready(self, event: e.NodeReady, out: _Out) -> None:
        node = self._nodes.get(event.node)
        if node is None:
            node = self._nodes[event.node] = Node(event.node, self._speed(event.cost_per_second, event.measured))
        elif node.status == "set aside":
            return
        elif not node.speed.measured:
            node.speed = self._speed(event.cost_per_second, event.measured)
        if node.status != "ready":
            node.status = "ready"
            if node.stale:
                out.append(e.RevokeAttempts(node=node.name, attempts=node.stale, reason="its lease had run out"))
                node.stale = ()
        self._last_ready_at = self._now
        if self._first_ready_at is None:
            self._first_ready_at = self._now

    def _speed(self, cost_per_second: float, measured: bool) -> RunningSpeed:
        policy = self.policy
        if not 0 < cost_per_second < float("inf"):  # nonsense: begin with anything, the first result replaces it
            cost_per_second, measured = 1.0, False
        return RunningSpeed(cost_per_second, measured, policy.speed_memory_seconds, policy.calibration_seconds)

    def _on_node_lost(self, event: e.NodeLost) -> None:
        node = self._nodes.get(event.node)
        if node is None or node.status in ("lost", "set aside"):
            return
        node.status = "lost"
        node.absent_since = self._now
        node.left = event.clean
        node.stale = () if event.clean else tuple(node.queue)
        self._flight.give_back_all(node, self._now)

    def _node_of_worker(self, name: NodeName) -> Node:
        """Whose worker we hear of is there, be it that it was lost or never ready yet: it has to be judged as well."""
        node = self._nodes.get(name)
        if node is None:
            node = self._nodes[name] = Node(name, self._speed(0.0, measured=False))
            node.status = "restarting"
            node.absent_since = self._now
        elif node.status == "lost":
            node.status = "restarting"
        return node

    def _on_worker_exited(self, event: e.WorkerExited, out: _Out) -> None:
        node = self._node_of_worker(event.node)
        if node.status == "set aside":
            return
        if node.status == "ready":
            node.status = "restarting"
            node.absent_since = self._now
        work = self._flight.find(event.computing, node) if event.computing is not None else None
        others = tuple(held for held in node.queue if held != event.computing)
        if event.asked:
            pass  # nobody's fault, or blamed when the worker stalled
        elif work is not None and event.computing is not None:
            reason = f"its worker died while computing this unit: {event.reason}"
            self._blame(node, work, event.computing, reason, DIED_CODE, DIED_MESSAGE, out)
        elif event.computing is None:
            self._strike(node, f"its worker died while computing nothing: {event.reason}", out)
        self._flight.give_back_all(node, self._now)
        if others:  # leases that are still on their way must not reach its next worker
            reason = f"worker exited, not to blame: {event.reason}"
            out.append(e.RevokeAttempts(node=node.name, attempts=others, reason=reason))

    def _on_worker_stalled(self, event: e.WorkerStalled, out: _Out) -> None:
        node = self._node_of_worker(event.node)
        if node.status == "set aside":
            return
        work = self._flight.find(event.attempt, node) if event.attempt is not None else None
        doing = "loading" if event.attempt is None else f"computing attempt {event.attempt}"
        reason = f"no progress for {event.seconds:.0f} s while {doing}"
        held = tuple(node.queue)
        restarted_already = node.status == "restarting"
        node.status = "restarting"
        node.absent_since = self._now
        if work is not None and event.attempt is not None:
            self._blame(node, work, event.attempt, reason, STALLED_CODE, STALLED_MESSAGE, out)
        elif event.attempt is None or restarted_already:
            self._strike(node, reason, out)
        self._flight.give_back_all(node, self._now)
        if held:
            out.append(e.RevokeAttempts(node=node.name, attempts=held, reason="its worker is restarted"))
        out.append(e.RestartWorkerOn(node=node.name, reason=reason))

    def _others_usable(self, node: Node) -> list[Node]:
        return usable_besides(node, self._nodes.values(), self._now, self.policy.restart_patience_seconds)

    def _coming_speed(self) -> float:
        """Cost per second of planned nodes that were not ready yet."""
        if self._planned_nodes and not self._planned_to_come():
            return 0.0
        return max(0.0, self._planned_speed - sum(node.speed.claimed for node in self._nodes.values()))

    def _someone_may_come(self) -> bool:
        """Whether a planned or a lost node is worth waiting for, before the only one that is there has the last
        word.
        """
        policy = self.policy
        if may_return(self._nodes.values(), self._now, policy.return_patience_seconds):
            return True
        if self._first_ready_at is not None and self._now - self._first_ready_at > policy.arrival_patience_seconds:
            return False
        return self._planned_to_come()

    def _planned_to_come(self) -> bool:
        return any(name not in self._nodes for name in self._planned_nodes)

    def _strike(self, node: Node, reason: str, out: _Out) -> None:
        """A failure that is the node's own."""
        node.strikes += 1
        node.failures += 1
        node.last_failure = reason
        self._set_aside_if_bad(node, out)

    def _set_aside_if_bad(self, node: Node, out: _Out) -> None:
        if node.status == "set aside" or not is_bad(node, self._others_usable(node), self.policy):
            return
        count = node.strikes + len(node.doubts)
        reason = f"{count} failures in a row on units that are not to blame, the last: {node.last_failure}"
        held = tuple(node.queue)
        node.status = "set aside"
        node.last_failure = reason
        self._flight.give_back_all(node, self._now)
        if held:
            out.append(e.RevokeAttempts(node=node.name, attempts=held, reason="the node is set aside"))
        out.append(e.SetAside(node=node.name, reason=reason))

    # --- attempts ---------------------------------------------------------------------------------------------------

    def _on_result(self, event: e.ResultReceived, out: _Out) -> None:
        attempt = self._flight.attempts.get(event.attempt)
        why_not = self._why_not(event, attempt)
        if why_not:
            out.append(e.Discard(node=event.node, attempt=event.attempt, unit=event.unit, reason=why_not))
            return
        assert attempt is not None
        node, work = attempt.node, attempt.work
        ref = work.ref
        if not event.valid:
            self._flight.drop(attempt, self._now)
            self._flight.give_back(work)
            reason = "a result whose checksum or row count is wrong"
            out.append(e.Discard(node=node.name, attempt=event.attempt, unit=ref.unit, reason=reason))
            self._strike(node, reason, out)
            return
        out.append(e.Commit(node=node.name, attempt=event.attempt, unit=ref.unit))
        self._flight.drop(attempt, self._now)
        if work.attempts:
            for other in work.attempts:
                other.node.duplicates_lost += 1
            out += self._flight.revoke_all(work, f"{node.name} was first", self._now)
        self._flight.land(work)
        self._remaining_cost = max(0.0, self._remaining_cost - ref.cost)
        self._cost_committed += ref.cost
        self._failures_in_a_row = 0
        node.speed.add(ref.cost, event.compute_seconds)
        node.units_committed += 1
        node.rows_committed += ref.rows
        node.cost_committed += ref.cost
        node.proven = True
        node.strikes = 0
        if node.doubts:
            node.doubts.clear()
        if ref.failed_on:
            self._others_were_wrong(ref, node, out)

    def _why_not(self, event: e.ResultReceived, attempt: Attempt | None) -> str:
        """Why a result may not be committed; empty if it may."""
        if self._finished:
            return "the run is over"
        if event.epoch != self._epoch:
            return f"it is of epoch {event.epoch}, this is {self._epoch}"
        if attempt is None:
            return "the attempt was revoked"
        if attempt.node.name != event.node or attempt.work.ref.unit != event.unit:
            return f"the attempt is of {attempt.node.name} and unit {attempt.work.ref.unit}"
        return ""

    def _others_were_wrong(self, ref: e.UnitRef, node: Node, out: _Out) -> None:
        """The unit is fine: those that failed on it did so on their own account."""
        for name in dict.fromkeys(ref.failed_on):
            other = self._nodes.get(name)
            if other is not None and other is not node and ref.unit in other.doubts:
                del other.doubts[ref.unit]
                other.strikes += 1
                self._set_aside_if_bad(other, out)

    def _on_unit_failed(self, event: e.UnitFailed, out: _Out) -> None:
        attempt = self._flight.attempts.get(event.attempt)
        if attempt is None or attempt.node.name != event.node:
            return
        reason = f"{event.code}: {event.message}"
        self._blame(attempt.node, attempt.work, event.attempt, reason, event.code, event.message, out)

    def _blame(
        self, node: Node, work: Work, attempt_id: AttemptId, reason: str, code: str, message: str, out: _Out
    ) -> None:
        """The unit failed in the hands of this node: record it, and decide what becomes of both.

        The attempt need not be live. That it was taken back keeps its result out of the ledger; that it killed is a
        fact.
        """
        ref = work.ref
        elsewhere = set(ref.failed_on) - {node.name}
        work.ref = replace(ref, failed_on=(*ref.failed_on, node.name))
        out.append(e.Blame(unit=ref.unit, node=node.name, attempt=attempt_id, reason=reason))
        node.taken_back.pop(attempt_id, None)
        attempt = node.queue.get(attempt_id)
        if attempt is not None:
            self._flight.drop(attempt, self._now)
        self._failures_in_a_row += 1
        node.failures += 1
        node.last_failure = reason
        node.proven = False
        if elsewhere:
            for name in elsewhere:
                if name in self._nodes:
                    self._nodes[name].doubts.pop(ref.unit, None)
        elif not ref.suspected:
            node.doubts[ref.unit] = None
        usable = {node.name, *(other.name for other in self._others_usable(node))}
        match judge_unit(work.ref, usable, self._someone_may_come(), self.policy):
            case "retry":
                self._flight.give_back(work)
            case "split":
                out += self._flight.revoke_all(work, "the unit is split", self._now)
                self._flight.land(work)
                self._split(work.ref, out)
            case "quarantine":
                out += self._flight.revoke_all(work, "the unit is quarantined", self._now)
                self._flight.land(work)
                self._remaining_cost = max(0.0, self._remaining_cost - ref.cost)
                out.append(e.Quarantine(unit=ref.unit, code=code, message=message))
        self._set_aside_if_bad(node, out)

    def _split(self, ref: e.UnitRef, out: _Out) -> None:
        children = halves(ref, UnitId(self._next_unit))
        self._next_unit += len(children)
        rows: list[tuple[UnitId, int, int]] = []
        first = 0
        for child in children:
            rows.append((child.unit, first, child.rows))
            first += child.rows
        where = ", ".join(dict.fromkeys(ref.failed_on))
        out.append(e.Split(unit=ref.unit, children=tuple(rows), reason=f"failed on {where}"))
        self._flight.backlog.give_back(children)

    # --- leases -----------------------------------------------------------------------------------------------------

    def _settled_at(self) -> float:
        assert self._first_ready_at is not None
        return min(
            self._last_ready_at + self.policy.settle_seconds, self._first_ready_at + self.policy.settle_max_seconds
        )

    def _assign(self, out: _Out) -> None:
        if not self._writable or self._drain_until is not None:
            return
        depth = self.policy.depth
        ready = tuple(node for node in self._nodes.values() if node.status == "ready")
        if not any(len(node.leases) < depth for node in ready):
            return
        if not self._granted_any and (self._first_ready_at is None or self._now < self._settled_at()):
            return
        grants = Assigner(
            policy=self.policy,
            flight=self._flight,
            nodes=tuple(self._nodes.values()),
            ready=ready,
            now=self._now,
            exhausted=self._exhausted,
            remaining_cost=self._remaining_cost,
            coming_speed=self._coming_speed(),
            someone_may_come=self._someone_may_come(),
        ).assign()
        if grants:
            self._granted_any = True
            out += grants
