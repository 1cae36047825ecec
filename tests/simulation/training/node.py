"""A simulated machine: its daemon, which obeys and fences, its disk, and the one rank it may have."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from realign_cluster.domain import recovery_events as e
from realign_cluster.domain.ids import NodeName
from realign_cluster.domain.world import RankSpec, StatePart

from .script import NodeScript

if TYPE_CHECKING:
    from .group import Group
    from .world import World

LEASE_SECONDS = 3.0
JOIN_SECONDS = 8.0  # after which MLX's connector gives up
WAKE_SECONDS = LEASE_SECONDS + 1.0  # after which a rank of a machine that has slept past its lease is dead


@dataclass(slots=True)
class Copy:
    part: StatePart
    written_at: float
    corrupt: bool = False
    acknowledged: bool = False  # a coordinator has heard of it


class Rank:
    """`hung` for good; `frozen` for a while. A wedged one outlives SIGKILL."""

    def __init__(self, node: Node, spec: RankSpec) -> None:
        self.node = node
        self.spec = spec
        self.alive = True
        self.loaded = False
        self.hung = False
        self.wedged = False
        self.frozen_until = 0.0
        self.stop = False
        self.dying = False
        self.group: Group | None = None
        world = node.world
        seconds = node.script.load_seconds * (0.8 + 0.4 * world.rng.random())
        if world.rng.random() < node.crashes:
            world.clock.after(seconds * 0.5, self.die, "crashed while loading", False)
        world.clock.after(seconds, self.load)

    def say(self, kind: type[Any], **values: Any) -> None:
        self.node.report(kind, generation=self.spec.generation, **values)

    def ready(self, then: Any) -> bool:
        """Whether it can go on with `then` now; it is called later if it is only frozen."""
        if not self.alive or self.hung:
            return False
        later = max(self.frozen_until, self.node.frozen_until)
        if later > self.node.world.clock.now:
            self.node.world.clock.at(later, then)
            return False
        return True

    def load(self) -> None:
        if not self.ready(self.load):
            return
        disk = self.node.disk
        for part in self.spec.start:
            copy = disk.get(part.name)
            if copy is None or copy.part != part or copy.corrupt:
                message = f"{part.name} is damaged"
                self.say(e.RankFailed, code=e.STATE_CODE, message=message, fatal=False)
                self.node.world.clock.after(0.05, self.die, "exit 3", False)
                return
        self.node.world.judge.loaded(self.spec)
        self.loaded = True
        self.say(e.RankLoaded, config="equal")

    def go(self) -> None:
        if self.loaded and self.group is None and self.ready(self.go):
            self.group = self.node.world.group(self.spec)
            self.node.world.clock.after(JOIN_SECONDS, self.join_failed)
            self.group.join(self)

    def join_failed(self) -> None:
        if self.alive and not self.hung and self.group is not None and not self.group.joined:
            self.fail_because_of_another()

    def fail_because_of_another(self) -> None:
        if self.alive and not self.hung:
            self.say(e.RankFailed, code="group", message="connection to a peer was lost", fatal=False)
            self.node.world.clock.after(0.05, self.die, "exit 3", False)

    def fail(self, code: str, message: str) -> None:
        self.say(e.RankFailed, code=code, message=message, fatal=True)
        self.node.world.clock.after(0.05, self.die, "exit 3", False)

    def keep(self, part: StatePart, seconds: float) -> None:
        self.node.world.clock.after(seconds, self.kept, part)

    def kept(self, part: StatePart) -> None:
        node = self.node
        if self.alive and not self.hung and node.up and node.world.clock.now >= node.full_until:
            node.disk[part.name] = Copy(part, node.world.clock.now)
            node.report(e.PartKept, part=part)

    def kill(self, grace: float, reason: str) -> None:
        """What the daemon does when it is told to, or when its lease has run out."""
        if self.dying:
            return
        self.dying = True
        clock = self.node.world.clock
        if self.wedged:
            self.hung = True
            if self.node.world.rng.random() < 0.5:
                clock.after(grace + 1.0, self.say_wedged)
            return
        stuck = self.hung or self.frozen_until > clock.now
        clock.after(grace if stuck else 0.02, self.die, reason, True)

    def say_wedged(self) -> None:
        if self.alive:
            self.say(e.RankExited, reason="still there after SIGKILL", asked=True, wedged=True)

    def exit(self) -> None:
        if self.ready(self.exit):
            self.die("exit 0", False)

    def die(self, reason: str, asked: bool) -> None:
        node = self.node
        if not self.alive or self.wedged:
            return
        if node.frozen_until > node.world.clock.now:
            node.world.clock.at(node.frozen_until, self.die, reason, asked)
            return
        self.alive = False
        if node.rank is self:
            node.rank = None
        self.say(e.RankExited, reason=reason, asked=asked)
        if self.group is not None:
            self.group.member_died()


class Node:
    def __init__(self, script: NodeScript, world: World) -> None:
        self.script = script
        self.name = NodeName(script.name)
        self.world = world
        self.up = False
        self.boots = 0
        self.wedged = False  # since it was booted
        self.cut_until = 0.0  # by the network
        self.unlinked_until = 0.0  # its rank and those of other nodes do not reach each other
        self.mute_until = 0.0  # the same, but it hears
        self.frozen_until = 0.0  # the machine sleeps
        self.full_until = 0.0  # the disk
        self.refuses_until = 0.0  # to start ranks
        self.gone_until = 0.0  # the daemon is not to be reached: it left, or is not started yet
        self.link = 0  # of the connection that is up; 0: none
        self.links = 0
        self.greeted = 0  # the link over which it has said what it has: nothing is said before
        self.silent_since: float | None = 0.0  # what the daemon hears of the coordinator
        self.clear = [0.0, 0.0]  # when the way down, and up, is free: messages stay in order
        self.epoch = 0
        self.killed = 0  # ranks of that or older generations are not started
        self.rank: Rank | None = None
        self.disk: dict[str, Copy] = {}
        self.recent: deque[tuple[type[Any], dict[str, Any]]] = deque(maxlen=6)

    @property
    def crashes(self) -> float:
        return 0.0 if self.world.healed else self.script.crashes

    @property
    def is_waking(self) -> bool:
        """It sleeps, or did a moment ago: its daemon has not ended what it is to end."""
        return self.frozen_until > 0 and self.world.clock.now < self.frozen_until + WAKE_SECONDS

    # --- life

    def start(self) -> None:
        """The machine, or only its daemon."""
        if self.up:
            return
        self.up = True
        self.killed = 0
        self.recent.clear()
        self.world.update_silence(self)
        self.world.reconnect(self)

    def down(self) -> None:
        """The daemon goes, and its rank with it: the pipe closes."""
        rank, self.rank = self.rank, None
        self.world.break_link(self)
        self.up = False
        if rank is not None:
            rank.alive = rank.wedged = False
            if rank.group is not None:
                rank.group.member_died()

    def check_lease(self, since: float) -> None:
        if self.silent_since != since or not self.up:
            return
        now = self.world.clock.now
        if now < self.frozen_until:  # a monotonic clock stands still while the machine sleeps
            self.world.clock.at(self.frozen_until + LEASE_SECONDS, self.check_lease, since)
        elif self.rank is not None:
            self.killed = max(self.killed, self.rank.spec.generation)
            self.rank.kill(0.5, "the coordinator was silent for the lease")

    # --- what it says

    def report(self, kind: type[Any], **values: Any) -> None:
        if not self.up:
            return
        self.recent.append((kind, values))
        if self.greeted == self.link:
            self.world.send_up(self, (kind, values))

    def welcome(self) -> None:
        """All that it has; then what it said last, which may not have come through, or has."""
        values = {
            "parts": tuple(copy.part for copy in self.disk.values()),
            "generation": self.rank.spec.generation if self.rank is not None else None,
            "boot": f"boot {self.boots}",
        }
        self.greeted = self.link
        self.world.send_up(self, (e.NodeReady, values))
        for message in list(self.recent):
            self.world.send_up(self, message)

    # --- what it hears

    def receive(self, message: tuple[Any, ...]) -> None:
        match message:
            case ("hello", epoch):
                self.epoch = max(self.epoch, epoch)
                self.welcome()
            case (_, epoch, *_) if epoch < self.epoch:
                pass  # of a coordinator that is gone
            case ("start", _, spec):
                self.start_rank(spec)
            case ("go", _, generation):
                if self.rank is not None and self.rank.spec.generation == generation:
                    self.rank.go()
            case ("stop", _, generation):
                if self.rank is not None and self.rank.spec.generation == generation:
                    self.rank.stop = True
            case ("kill", _, generation, grace):
                self.killed = max(self.killed, generation)
                if self.rank is not None and self.rank.spec.generation == generation:
                    self.rank.kill(grace, "killed as asked")
                else:
                    self.report(e.RankExited, generation=generation, reason="there is no such rank", asked=True)
            case ("drop", _, parts):
                for part in parts:
                    if part.name in self.disk and self.disk[part.name].part == part:
                        del self.disk[part.name]
            case ("fetch", _, part, source):
                self.world.clock.after(0.1 + self.world.rng.random() * 0.4, self.fetch, part, source)

    def start_rank(self, spec: RankSpec) -> None:
        if self.rank is not None and self.rank.spec.generation == spec.generation:
            return
        if self.rank is not None and self.rank.spec.generation < spec.generation and not self.rank.wedged:
            self.rank.kill(0.5, "another generation takes over")
            self.world.clock.after(0.2, self.start_rank, spec)
            return
        refused = spec.generation <= self.killed or self.world.clock.now < self.refuses_until
        if refused or self.rank is not None:
            reason = "no more processes" if self.rank is None else "another rank is there"
            self.report(e.StartFailed, generation=spec.generation, reason=reason)
            return
        self.rank = Rank(self, spec)
        self.world.judge.rank_started(spec)

    def fetch(self, part: StatePart, source: NodeName | None) -> None:
        """Verified on arrival: what is damaged at its source is found out."""
        if not self.up:
            return
        world = self.world
        now = world.clock.now
        if now < self.full_until:
            self.report(e.FetchFailed, part=part, source=source, reason="disk full", corrupt=False)
            return
        if source is None:
            copy = world.folder.get(part.name)
        else:
            peer = world.by_name[source]
            if not peer.up or max(peer.cut_until, peer.frozen_until, self.cut_until) > now:
                self.report(e.FetchFailed, part=part, source=source, reason="no answer", corrupt=False)
                return
            copy = peer.disk.get(part.name)
        if copy is None or copy.part != part or copy.corrupt:
            self.report(e.FetchFailed, part=part, source=source, reason="damaged", corrupt=True)
            return
        held = self.disk.get(part.name)
        known = held is not None and held.part == part and held.acknowledged
        self.disk[part.name] = Copy(part, now, acknowledged=known)
        self.report(e.PartFetched, part=part)
