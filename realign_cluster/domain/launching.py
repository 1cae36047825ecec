"""From a plan to ranks that start: which state they start from, and who has to fetch what of it before.

Ranks start from the newest whole state that is there. From nothing only where there was never anything, or where all
that there was is known to be unusable. Time is passed in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import get_args

from realign_cluster.domain.crew import Crew
from realign_cluster.domain.generation import Generation, Rank
from realign_cluster.domain.ids import NodeName
from realign_cluster.domain.inventory import Inventory, State
from realign_cluster.domain.rank_report import SectionName
from realign_cluster.domain.recovery_commands import Command, NoteLine, Remember, StartRank
from realign_cluster.domain.recovery_policy import RecoveryPolicy
from realign_cluster.domain.run_memory import Options, RunMemory
from realign_cluster.domain.transfers import Transfers
from realign_cluster.domain.world import RankSpec, WorldPlan

_Out = list[Command]


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocked:
    """Nothing can be started, as long as that is so."""

    reason: str


class Launching:
    def __init__(self, policy: RecoveryPolicy, crew: Crew, inventory: Inventory, transfers: Transfers) -> None:
        self._policy = policy
        self._crew = crew
        self._inventory = inventory
        self._transfers = transfers
        self.plan: WorldPlan | None = None
        self._failures: dict[State, int] = {}  # ranks that could not start from it

    def begin(self, plan: WorldPlan) -> None:
        self.plan = plan

    def cancel(self) -> None:
        self.plan = None

    def advance(self, memory: RunMemory, options: Options, now: float, out: _Out) -> Generation | Blocked | None:
        """Starts the ranks when all have what they need; None while parts are on their way."""
        plan = self.plan
        assert plan is not None
        state = next(iter(self._inventory.states()), None)
        if state is None and memory.any_state:
            absent = self._crew.absent(memory.nodes)
            if absent:
                return Blocked(reason=f"what is left of the run's states is on {', '.join(absent)}, not there now")
        if state is not None and not self._all_have(plan, state, now, out):
            return None
        self.plan = None
        return self._start(plan, state, memory, options, now, out)

    def _all_have(self, plan: WorldPlan, state: State, now: float, out: _Out) -> bool:
        complete = True
        for node in nodes_of(plan):
            for part in state.parts:
                if not self._inventory.holds(node, part):
                    complete = False
                    fetch = self._transfers.fetch(node, part, now, f"to start from step {state.step}")
                    if fetch is not None:
                        out.append(fetch)
        return complete

    def _start(
        self, plan: WorldPlan, state: State | None, memory: RunMemory, options: Options, now: float, out: _Out
    ) -> Generation:
        nodes = nodes_of(plan)
        number = memory.generation + 1
        ever = tuple(dict.fromkeys((*memory.nodes, *nodes)))
        out.append(Remember(memory=replace(memory, generation=number, world=plan, nodes=ever)))
        generation = Generation(
            number=number,
            plan=plan,
            start=state,
            ranks={node: Rank(node=node, generation=number, progress_at=now) for node in nodes},
        )
        generation.step = generation.start_step
        where = f"step {state.step} (of generation {state.parts[0].generation})" if state else "step 0"
        if state is None and memory.any_state:
            out.append(NoteLine(text="no state of this run is left that can be used: it begins again", level="warning"))
        out.append(NoteLine(text=f"generation {number} on {', '.join(nodes)}: {plan.parallel}, from {where}"))
        for index, node in enumerate(nodes):
            spec = RankSpec(
                generation=number,
                rank=index,
                world=plan,
                start_step=generation.start_step,
                start=state.parts if state else (),
                snapshot_every=options.snapshot_every,
                learning_rate_factor=memory.learning_rate_factor,
                beta_factor=memory.beta_factor,
                limits={section: self._policy.limit(section, 0.0) for section in get_args(SectionName)},
            )
            out.append(StartRank(node=node, spec=spec, reason=f"from {where}"))
        return generation

    def state_failed(self, node: NodeName, state: State, out: _Out) -> None:
        """A rank could not start from what this node has of it. The node is to fetch it again; if that does not help
        either the state is of no use to anybody.
        """
        self._failures[state] = self._failures.get(state, 0) + 1
        if self._failures[state] >= self._policy.start_state_failures:
            self._inventory.condemn(state)
            text = f"the state of step {state.step} cannot be used: an older one is"
            out.append(NoteLine(text=text, level="warning"))
        for part in state.parts:
            self._inventory.remove(node, part)


def nodes_of(plan: WorldPlan) -> tuple[NodeName, ...]:
    """In rank order."""
    return tuple(NodeName(node) for node in plan.nodes)
