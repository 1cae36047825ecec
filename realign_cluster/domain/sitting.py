"""What all parts of recovery share in one sitting: the run, the time, who is there, who holds what, what is to be done.

State without decisions. `now` is the time of the event that is being dealt with, `out` collects its commands.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from realign_cluster.domain.crew import Crew
from realign_cluster.domain.inventory import Inventory
from realign_cluster.domain.recovery_commands import Command, Finish, NoteLine, Outcome, Remember
from realign_cluster.domain.recovery_policy import RecoveryPolicy
from realign_cluster.domain.run_memory import Options, RunMemory
from realign_cluster.domain.transfers import Transfers


@dataclass(slots=True, kw_only=True)
class Sitting:
    policy: RecoveryPolicy
    options: Options
    memory: RunMemory
    now: float
    crew: Crew = field(default_factory=Crew)
    inventory: Inventory = field(default_factory=Inventory)
    transfers: Transfers = field(default_factory=Transfers)
    out: list[Command] = field(default_factory=list)
    ending: Finish | None = None  # what it comes to once nothing lives any more
    finished: bool = False
    noted: str = ""

    def do(self, command: Command) -> None:
        self.out.append(command)

    def note(self, text: str) -> None:
        """Once, until something else is to be said."""
        if text != self.noted:
            self.noted = text
            self.do(NoteLine(text=text))

    def warn(self, text: str) -> None:
        self.do(NoteLine(text=text, level="warning"))

    def remember(self, **changes: Any) -> None:
        memory = replace(self.memory, **changes)
        if memory != self.memory:
            self.memory = memory
            self.do(Remember(memory=memory))

    def end(self, state: Outcome, reason: str) -> None:
        """There will be no other generation. A failure outweighs an interruption, else the first reason counts."""
        if self.ending is None or (state == "failed" and self.ending.state != "failed"):
            self.ending = Finish(state=state, reason=reason)

    def finish(self, state: Outcome, reason: str) -> None:
        if not self.finished:
            self.finished = True
            self.do(Finish(state=state, reason=reason))
