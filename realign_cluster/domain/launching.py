"""From a plan to ranks that start: which state they start from, and who has to fetch what of it before.

Ranks start from the newest whole state that is there. From nothing only where there was never anything, or where all
that there was is known to be of no use.
"""

from __future__ import annotations

from realign_cluster.domain.generation import Generation, Rank
from realign_cluster.domain.ids import NodeName
from realign_cluster.domain.inventory import State
from realign_cluster.domain.recovery_commands import StartRank
from realign_cluster.domain.sitting import Sitting
from realign_cluster.domain.world import RankSpec, WorldPlan


def nodes_of(plan: WorldPlan) -> tuple[NodeName, ...]:
    """In rank order."""
    return tuple(NodeName(node) for node in plan.nodes)


class Launching:
    def __init__(self, sitting: Sitting) -> None:
        self._sitting = sitting
        self.plan: WorldPlan | None = None
        self.blocked = ""  # why nothing can be started although there is a plan
        self._failures: dict[
            tuple[NodeName, State], int
        ] = {}  # the first generation for which a node could not load it

    def advance(self) -> Generation | None:
        """The generation, started, when all its nodes have what they need."""
        plan, sitting = self.plan, self._sitting
        assert plan is not None
        state = next(iter(sitting.inventory.states()), None)
        self.blocked = ""
        if state is None and sitting.memory.any_state:
            if absent := sitting.crew.absent(sitting.memory.nodes):
                self.blocked = f"{', '.join(absent)}: what is left of the run's states can only be there"
                return None
            sitting.warn("no state of this run is left that can be used: it begins again")
        if state is not None and not self._all_have(plan, state):
            return None
        self.plan = None
        return self._start(plan, state)

    def _all_have(self, plan: WorldPlan, state: State) -> bool:
        sitting = self._sitting
        missing = [
            (node, part) for node in nodes_of(plan) for part in state.parts if not sitting.inventory.holds(node, part)
        ]
        for node, part in missing:
            reason = f"to start from step {state.step}"
            fetch = sitting.transfers.fetch(sitting.inventory, node, part, sitting.now, reason)
            if fetch is not None:
                sitting.do(fetch)
        return not missing

    def _start(self, plan: WorldPlan, state: State | None) -> Generation:
        sitting, memory = self._sitting, self._sitting.memory
        nodes = nodes_of(plan)
        number = memory.generation + 1
        sitting.remember(generation=number, world=plan, nodes=tuple(dict.fromkeys((*memory.nodes, *nodes))))
        patience = sitting.policy.sections.of("load")
        ranks = {
            node: Rank(node=node, generation=number, progress_at=sitting.now, patience_seconds=patience)
            for node in nodes
        }
        generation = Generation(number=number, plan=plan, start=state, ranks=ranks)
        where = f"step {state.step} (of generation {state.parts[0].generation})" if state is not None else "step 0"
        sitting.note(f"generation {number}, {plan.parallel} on {', '.join(nodes)}, starts from {where}")
        for index, node in enumerate(nodes):
            spec = RankSpec(
                generation=number,
                rank=index,
                world=plan,
                start_step=generation.start_step,
                start=state.parts if state is not None else (),
                snapshot_every=sitting.options.snapshot_every,
                learning_rate_factor=memory.learning_rate_factor,
                beta_factor=memory.beta_factor,
                schedule_start=memory.go_backs[-1].step if memory.go_backs else 0,
                limits=sitting.policy.sections,
            )
            sitting.do(StartRank(node=node, spec=spec, reason=f"from {where}"))
        return generation

    def could_not_load(self, node: NodeName, state: State, generation: int) -> None:
        """Nothing of it that this node has is used any more. If the node fetched it again, and still could not start
        from it, then nobody is to try again.
        """
        if self._failures.setdefault((node, state), generation) < generation:
            self._sitting.inventory.condemn(state)
            self._sitting.warn(f"the state of step {state.step} cannot be used: the one before is")
