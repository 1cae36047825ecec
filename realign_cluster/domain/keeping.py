"""What becomes of the states that ranks leave: old ones are dropped, new ones copied to a peer, checkpoints stored.

Never drops the two newest whole states, nor the newest that would outlast the loss of any one node. Time is passed in.
"""

from __future__ import annotations

from realign_cluster.domain.generation import Generation
from realign_cluster.domain.ids import NodeName
from realign_cluster.domain.inventory import Inventory, State
from realign_cluster.domain.recovery_commands import Command, DropParts, NoteLine, Store
from realign_cluster.domain.recovery_policy import RecoveryPolicy
from realign_cluster.domain.transfers import Transfers
from realign_cluster.domain.world import StatePart

_Out = list[Command]
_WHOLE_STATES_KEPT = 2


class Keeping:
    def __init__(self, policy: RecoveryPolicy, inventory: Inventory, transfers: Transfers) -> None:
        self._policy = policy
        self._inventory = inventory
        self._transfers = transfers
        self.storing: State | None = None  # on its way to the run folder
        self.store_failures = 0  # in a row
        self.last_failure = ""
        self._storing_since = 0.0
        self._again_at = 0.0

    # --- checkpoints, to the run folder

    def store(self, state: State, now: float, out: _Out, reason: str) -> None:
        if self.storing is not None or now < self._again_at:
            return
        sources = tuple((self._node_with(part), part) for part in state.parts)
        self.storing, self._storing_since = state, now
        out.append(Store(step=state.step, parts=sources, reason=reason))

    def newest_to_store(self, before: int) -> State | None:
        """The newest whole checkpoint of a step before that, unless it or a newer one is in the run folder."""
        for state in self._inventory.states_of("checkpoint"):
            if state.step < before:
                return None if self.is_stored(state) else state
        return None

    def checkpoint_of(self, step: int) -> State | None:
        """Whole on nodes."""
        return next((state for state in self._inventory.states_of("checkpoint") if state.step == step), None)

    def is_stored(self, state: State) -> bool:
        return all(self._inventory.holds(None, part) for part in state.parts)

    def stored(self, parts: tuple[StatePart, ...]) -> None:
        for part in parts:
            self._inventory.add(None, part)
        self.storing, self.store_failures = None, 0

    def store_failed(self, reason: str, now: float, out: _Out) -> None:
        if self.storing is None:
            return
        out.append(NoteLine(text=f"checkpoint {self.storing.step} was not stored: {reason}", level="warning"))
        self.storing = None
        self.store_failures += 1
        self.last_failure = reason
        self._again_at = now + self._policy.transfer_again_seconds

    def look(self, now: float, out: _Out) -> None:
        if self.storing is not None and now - self._storing_since > self._policy.transfer_seconds:
            self.store_failed(f"no answer for {now - self._storing_since:.0f} s", now, out)

    def _node_with(self, part: StatePart) -> NodeName:
        node = self._inventory.holders(part)[0]
        assert node is not None
        return node

    # --- states on nodes

    def drop_old(self, generation: Generation | None, out: _Out) -> None:
        states = self._inventory.states()
        newest = states[0].step if states else 0
        kept = set(sorted({state.step for state in states})[-_WHOLE_STATES_KEPT:])
        kept |= self._outlasting() | self._transfers.steps()
        if generation is not None and generation.step <= generation.start_step:
            kept.add(generation.start_step)  # ranks may be loading it
        if self.storing is not None:
            kept.add(self.storing.step)
        for node in self._inventory.nodes():
            old, given_up = [], []
            for part in self._inventory.parts_of(node):
                if not self._inventory.is_wanted(part):
                    given_up.append(part)
                elif part.step < newest and part.step not in kept:
                    old.append(part)
            for parts, reason in ((given_up, "given up"), (old, f"older than the states of steps {sorted(kept)}")):
                for part in parts:
                    self._inventory.remove(node, part)
                if parts:
                    out.append(DropParts(node=node, parts=tuple(parts), reason=reason))

    def _outlasting(self) -> set[int]:
        """The newest step of which a whole state would be left whichever node went."""
        left = [{state.step for state in self._inventory.states_without(node)} for node in self._inventory.nodes()]
        common = set.intersection(*left) if left else set()
        return {max(common)} if common else set()

    def copy_to_peers(self, generation: Generation, now: float, out: _Out) -> None:
        """The newest whole state's parts that one node alone has, one state at a time. Replicas keep their own."""
        nodes = sorted(self._inventory.nodes())
        states = self._inventory.states()
        replicas = generation.plan.parts == 1 and generation.plan.size > 1
        if replicas or len(nodes) < 2 or not states or self._transfers.copying:
            return
        for part in states[0].parts:
            holders = self._inventory.holders(part)
            if len(holders) > 1 or holders[0] is None:
                continue
            peer = nodes[(nodes.index(holders[0]) + 1) % len(nodes)]
            if self._transfers.failures(peer, part) < self._policy.transfer_attempts:
                fetch = self._transfers.fetch(peer, part, now, f"a copy, should {holders[0]} be lost", copy=True)
                if fetch is not None:
                    out.append(fetch)
