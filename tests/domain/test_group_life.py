"""Workers of a group: joined together, replaced together, whatever is lost, said twice or said too late."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from realign_cluster.domain.group_life import Action, AllReady, Ended, GroupLife, Join, Restart, Worker
from realign_cluster.domain.ids import NodeName

A, B = NodeName("a"), NodeName("b")  # b leads
ONE, TWO = Worker(generation=1, pid=11), Worker(generation=1, pid=22)
KILLED = "killed by signal 9"


def ready() -> GroupLife:
    life = GroupLife([A, B])
    assert life.waiting(A, ONE, 500) == []
    assert life.waiting(B, TWO, 600) == [Join(workers=((A, 1), (B, 1)), ports=(500, 600))]
    assert life.ready(A, ONE) == []
    assert life.ready(B, TWO) == [AllReady()]
    return life


def exited(life: GroupLife, node: NodeName, reason: str = KILLED, **more: int) -> list[Action]:
    values = {"generation": 1, "computing": 0, "asked": False} | more
    return life.exited(node, values["generation"], reason, computing=values["computing"], asked=bool(values["asked"]))


def test_the_death_of_a_member_is_that_of_the_worker_that_computed() -> None:
    life = ready()
    assert exited(life, A) == [Restart(node=B, reason=f"the group is over: a's worker: {KILLED}", generation=1)]
    assert exited(life, B, "restart asked", computing=7, asked=True) == [
        Ended(reason=f"a's worker: {KILLED}", computing=7, asked=False)
    ]
    life.waiting(A, Worker(generation=2, pid=12), 501)
    assert life.waiting(B, Worker(generation=2, pid=23), 601) == [Join(workers=((A, 2), (B, 2)), ports=(501, 601))]


def test_the_end_of_the_leader_is_told_when_the_others_have_ended() -> None:
    life = ready()
    assert exited(life, B, "exit status 1", computing=7) == [
        Restart(node=A, reason="the group is over: exit status 1", generation=1)
    ]
    assert exited(life, A, "restart asked", asked=True) == [Ended(reason="exit status 1", computing=7, asked=False)]


def test_when_a_members_node_is_lost_nothing_is_to_blame() -> None:
    life = ready()
    exited(life, B, "exit status 1", computing=7)
    life.forget()  # the node was given up
    assert life.waiting(B, Worker(generation=2, pid=23), 601) == []
    assert len(life.waiting(A, Worker(generation=1, pid=19), 501)) == 1


def test_a_member_that_is_back_before_it_was_missed_blames_nothing() -> None:
    life = ready()
    exited(life, B, "exit status 1", computing=7)
    assert life.waiting(A, Worker(generation=1, pid=19), 501) == [
        Ended(reason="exit status 1", computing=7, asked=True)
    ]


def test_what_was_lost_on_the_way_is_said_again() -> None:
    life = GroupLife([A, B])
    life.waiting(A, ONE, 500)
    life.waiting(B, TWO, 600)
    assert life.waiting(A, ONE, 500) == [Join(workers=((A, 1),), ports=(500, 600))]
    exited(life, B)
    assert life.ready(A, ONE) == [Restart(node=A, reason="the group that it belongs to is over", generation=1)]


def test_a_worker_that_cannot_load_is_the_groups_failure() -> None:
    life = GroupLife([A, B])
    assert exited(life, A, "exit status 1") == [Ended(reason="a's worker: exit status 1", computing=0, asked=False)]
    assert exited(life, B, "exit status 1", generation=4) == [Ended(reason="exit status 1", computing=0, asked=False)]


def test_a_restart_is_of_all_and_nobodys_fault() -> None:
    life = ready()
    assert {action.node for action in life.restart("no progress for 10 s") if isinstance(action, Restart)} == {A, B}
    assert exited(life, A, "restart asked", asked=True) == []
    assert exited(life, B, "restart asked", computing=3, asked=True) == [
        Ended(reason="no progress for 10 s", computing=3, asked=True)
    ]


# --- daemons that do what real ones do, and lose what real ones lose ------------------------------------------------


@dataclass
class Daemon:
    """One worker after the other: loading, waiting, joining, ready. `group` is which addresses it was told."""

    generation: int = 0
    pid: int = 0
    state: str = "gone"
    group: tuple[int, ...] = ()
    connected: bool = True
    said: list[tuple[str, Worker, bool]] = field(default_factory=list)

    @property
    def worker(self) -> Worker:
        return Worker(generation=self.generation, pid=self.pid)

    def say(self, what: str, asked: bool = False) -> None:
        if self.connected:
            self.said.append((what, self.worker, asked))


class World:
    def __init__(self, seed: int, nodes: int) -> None:
        self.draw = random.Random(seed)
        self.names = [NodeName(f"n{index}") for index in range(nodes)]
        self.daemons = {name: Daemon() for name in self.names}
        self.life = GroupLife(self.names)
        self.pids = 0
        self.last: Action | None = None  # of what the scheduler hears: ready and ended take turns
        for name in self.names:
            self.spawn(name)

    def spawn(self, name: NodeName) -> None:
        self.pids += 1
        daemon = self.daemons[name]
        daemon.generation, daemon.pid, daemon.state, daemon.group = daemon.generation + 1, self.pids, "loading", ()

    def end_worker(self, name: NodeName, asked: bool) -> None:
        self.daemons[name].say("exited", asked)
        self.spawn(name)

    def step(self, name: NodeName) -> None:
        """Its worker gets further."""
        daemon = self.daemons[name]
        if daemon.state == "loading":
            daemon.state = "waiting"
            daemon.say("waiting")
        elif daemon.state == "joining":
            peers = [other for other in self.daemons.values() if other.group == daemon.group]
            if len(peers) == len(self.names):
                daemon.state = "ready"
                daemon.say("ready")
            elif all(other.state not in ("loading", "waiting") for other in self.daemons.values()):
                self.end_worker(name, asked=False)  # it gave up: the others are in another group

    def reconnect(self, name: NodeName) -> None:
        daemon = self.daemons[name]
        if not daemon.connected:
            daemon.connected = True
            if daemon.state in ("waiting", "ready"):
                daemon.say(daemon.state)
            for action in self.life.greeted(name):
                self.carry_out(action)

    def hear(self, name: NodeName) -> None:
        daemon = self.daemons[name]
        if not daemon.said:
            return
        what, worker, asked = daemon.said.pop(0)
        if what == "waiting":
            actions = self.life.waiting(name, worker, 1000 + worker.pid)
        elif what == "ready":
            actions = self.life.ready(name, worker)
        else:
            actions = self.life.exited(name, worker.generation, "died", computing=0, asked=asked)
        for action in actions:
            self.carry_out(action)

    def carry_out(self, action: Action) -> None:
        match action:
            case Join(workers=workers, ports=ports):
                for name, generation in workers:
                    daemon = self.daemons[name]
                    if daemon.connected and daemon.generation == generation and daemon.state == "waiting":
                        daemon.state, daemon.group = "joining", ports
            case Restart(node=name, generation=generation):
                daemon = self.daemons[name]
                if daemon.connected and generation in (0, daemon.generation):
                    self.end_worker(name, asked=True)
            case AllReady() | Ended():
                self.last = action

    def disturb(self) -> None:
        name = self.draw.choice(self.names)
        daemon = self.daemons[name]
        match self.draw.randrange(5):
            case 0:
                self.end_worker(name, asked=False)
            case 1:
                daemon.connected = False
                daemon.said.clear()
            case 2:  # the daemon starts anew
                daemon.connected = False
                daemon.said.clear()
                daemon.generation = 0
                self.spawn(name)
            case 3:
                for action in self.life.restart("stalled"):
                    self.carry_out(action)
            case 4:  # the group was given up: every stream begins anew
                self.life.forget()
                for other in self.daemons.values():
                    other.connected = False
                    other.said.clear()


@pytest.mark.parametrize("nodes", [2, 3])
def test_whatever_happens_the_group_is_whole_again(nodes: int) -> None:
    for seed in range(400):
        world = World(seed, nodes)
        for _ in range(world.draw.randrange(5, 60)):
            name = world.draw.choice(world.names)
            world.draw.choice([world.step, world.hear, world.hear, world.reconnect])(name)
            if world.draw.random() < 0.15:
                world.disturb()
        for _ in range(40):
            for name in world.names:
                world.reconnect(name)
                world.step(name)
                world.hear(name)
        assert {daemon.state for daemon in world.daemons.values()} == {"ready"}, seed
        assert len({daemon.group for daemon in world.daemons.values()}) == 1, seed
        assert world.last == AllReady(), seed
