"""What becomes of the states that ranks leave: checkpoints are stored, new ones copied to a peer, old ones dropped.

Never drops the two newest whole states, nor the newest that would outlast the loss of any one node, nor the last that
was within the KL budget, nor the best before it is stored.
"""

from __future__ import annotations

from realign_cluster.domain.generation import Generation
from realign_cluster.domain.ids import NodeName
from realign_cluster.domain.inventory import State
from realign_cluster.domain.recovery_commands import DropParts, Store
from realign_cluster.domain.sitting import Sitting
from realign_cluster.domain.standing import go_back_step
from realign_cluster.domain.world import StatePart

_WHOLE_STATES_KEPT = 2


class Keeping:
    """At most one checkpoint is on its way to the run folder at a time."""

    def __init__(self, sitting: Sitting) -> None:
        self._sitting = sitting
        self.storing: State | None = None
        self.failures = 0  # to store, in a row
        self.last_failure = ""
        self._storing_since = 0.0
        self._again_at = 0.0

    # --- to the run folder

    def store_next(self) -> None:
        """The best checkpoint, or the newest that nodes have whole, but for the last: whether that counts is not known
        yet.
        """
        if self.store_best():
            return
        stored = [state.step for state in self._sitting.inventory.stored_states()[:1]]
        for state in self._sitting.inventory.checkpoints():
            if state.step < self._sitting.options.steps:
                if not stored or state.step > stored[0]:
                    self._store(state, "a whole checkpoint")
                return

    def store_best(self) -> bool:
        """Whether the best checkpoint is still to be stored, others having come after it, and can be."""
        best = self._unstored_best()
        if best is None or self.failures >= self._sitting.policy.transfer_attempts:
            return False
        self._store(best, "the best checkpoint")
        return True

    def _unstored_best(self) -> State | None:
        step = self._sitting.memory.best_step
        if not step or step >= self._sitting.options.steps or self.is_stored(step):
            return None
        return next((state for state in self._sitting.inventory.checkpoints() if state.step == step), None)

    def store_last(self, step: int) -> bool:
        """False if no nodes have it whole."""
        for state in self._sitting.inventory.checkpoints():
            if state.step == step:
                self._store(state, "the last checkpoint")
                return True
        return False

    def is_stored(self, step: int) -> bool:
        return any(state.step == step for state in self._sitting.inventory.stored_states())

    def _store(self, state: State, reason: str) -> None:
        now = self._sitting.now
        if self.storing is None and now >= self._again_at:
            self.storing, self._storing_since = state, now
            sources = tuple((self._node_with(part), part) for part in state.parts)
            self._sitting.do(Store(step=state.step, parts=sources, reason=reason))

    def _node_with(self, part: StatePart) -> NodeName:
        node = self._sitting.inventory.holders(part)[0]
        assert node is not None
        return node

    def stored(self, parts: tuple[StatePart, ...]) -> None:
        for part in parts:
            self._sitting.inventory.add(None, part)
        self.storing, self.failures = None, 0

    def store_failed(self, reason: str, corrupt: tuple[tuple[NodeName, StatePart], ...] = ()) -> None:
        for node, part in corrupt:
            self.drop_damaged(node, (part,), reason)
        if self.storing is None:
            return
        self._sitting.warn(f"checkpoint {self.storing.step} was not stored: {reason}")
        self.storing = None
        self.failures += 1
        self.last_failure = reason
        self._again_at = self._sitting.now + self._sitting.policy.transfer_again_seconds

    def look(self) -> None:
        waited = self._sitting.now - self._storing_since
        if self.storing is not None and waited > self._sitting.policy.transfer_seconds:
            self.store_failed(f"no answer for {waited:.0f} s")

    # --- on nodes

    def listed(self, node: NodeName, parts: tuple[StatePart, ...]) -> None:
        """All that the node has. What is known to be damaged among it should have been dropped."""
        inventory = self._sitting.inventory
        inventory.set(node, parts)
        damaged = tuple(part for part in parts if inventory.is_damaged(node, part))
        self.drop(node, damaged, "damaged")

    def copy_to_peer(self, generation: Generation) -> None:
        """What one node alone has of the newest whole state, one state at a time. Replicas keep their own."""
        sitting, inventory = self._sitting, self._sitting.inventory
        nodes = sorted(inventory.nodes())
        states = inventory.states()
        replicas = generation.plan.parts == 1 and generation.plan.size > 1
        if replicas or len(nodes) < 2 or not states or sitting.transfers.copying:
            return
        for part in states[0].parts:
            holders = inventory.holders(part)
            if len(holders) > 1 or holders[0] is None:
                continue
            peer = nodes[(nodes.index(holders[0]) + 1) % len(nodes)]
            if sitting.transfers.failures(peer, part) < sitting.policy.transfer_attempts:
                reason = f"a copy, should {holders[0]} be lost"
                fetch = sitting.transfers.fetch(inventory, peer, part, sitting.now, reason, copy=True)
                if fetch is not None:
                    sitting.do(fetch)

    def drop_old(self, generation: Generation | None) -> None:
        inventory = self._sitting.inventory
        for node in inventory.nodes():
            given_up = tuple(part for part in inventory.parts_of(node) if not inventory.is_wanted(part))
            self.drop(node, given_up, "given up")
        steps = sorted({state.step for state in inventory.states()})
        kept = {*steps[-_WHOLE_STATES_KEPT:], *self._sitting.transfers.steps()}
        if generation is not None and generation.step <= generation.start_step:
            kept.add(generation.start_step)  # ranks may be loading it
        if self.storing is not None:
            kept.add(self.storing.step)
        if (best := self._unstored_best()) is not None:
            kept.add(best.step)
        if self._sitting.options.kl_budget is not None:
            kept.add(go_back_step(steps, self._sitting.memory.within_budget_step) or 0)
        held = {node: inventory.parts_of(node) for node in inventory.nodes()}
        old = {part.step for parts in held.values() for part in parts if part.step < max(steps, default=0)} - kept
        if not old:
            return
        old -= self._outlasting()
        for node, parts in held.items():
            dropped = tuple(part for part in parts if part.step in old)
            self.drop(node, dropped, f"whole states are there of steps {steps[-_WHOLE_STATES_KEPT:]}")

    def drop_damaged(self, node: NodeName, parts: tuple[StatePart, ...], reason: str) -> None:
        for part in parts:
            self._sitting.inventory.distrust(node, part)
        self.drop(node, parts, reason)

    def drop(self, node: NodeName, parts: tuple[StatePart, ...], reason: str) -> None:
        for part in parts:
            self._sitting.inventory.remove(node, part)
        if parts and self._sitting.crew.is_present(node):
            self._sitting.do(DropParts(node=node, parts=parts, reason=reason))

    def _outlasting(self) -> set[int]:
        """The newest step of which a whole state would be left whichever node went."""
        inventory = self._sitting.inventory
        left = [{state.step for state in inventory.states_without(node)} for node in inventory.nodes()]
        common = set.intersection(*left) if left else set()
        return {max(common)} if common else set()
