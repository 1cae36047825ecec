"""A simulated node: the daemon with its spool, and the worker that computes, dies and hangs."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any

from .script import NodeScript

if TYPE_CHECKING:
    from .world import World

BEAT_SECONDS = 0.5
LEASE_SECONDS = 3.0


class Worker:
    """The child of a daemon: loads, then computes what its queue holds, in order."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.ready = False
        self.hung = False
        self.progress = 0
        self.attempt: int | None = None
        self.unit = -1
        self.began = 0.0
        self.alive = True


class Node:
    """A daemon with its worker. What survives its death is its spool."""

    def __init__(self, script: NodeScript, world: World) -> None:
        self.script = script
        self.world = world
        self.name = script.name
        self.up = False
        self.cut_until = 0.0
        self.left_until = 0.0
        self.link = 0  # generation of the connection; 0 is none
        self.links = 0
        self.clear_down = self.clear_up = 0.0  # a message may not overtake the one before
        self.down: deque[tuple[float, int, tuple[Any, ...]]] = deque()  # on the way: when due, connection, message
        self.up_way: deque[tuple[float, int, tuple[Any, ...]]] = deque()
        self.spool: OrderedDict[int, tuple[int, int, float]] = OrderedDict()  # attempt -> unit, epoch, seconds
        self.epoch = 0
        self.queue: OrderedDict[int, int] = OrderedDict()
        self.worker: Worker | None = None
        self.heard_coordinator = 0.0
        self.generation = 0
        self.computed_cost = 0.0

    # --- life

    def start(self) -> None:
        if self.up:
            return
        self.up = True
        self.generation += 1
        self.queue.clear()
        self.heard_coordinator = self.world.clock.now
        self.start_worker()
        self.beat(self.generation)

    def kill(self, seconds: float) -> None:
        if not self.up:
            return
        self.up = False
        self.generation += 1
        self.stop_worker()
        self.world.break_link(self)
        self.world.clock.after(seconds, self.start)

    def start_worker(self) -> None:
        worker = self.worker = Worker(self)
        self.world.clock.after(self.script.load_seconds, self.loaded, worker)

    def stop_worker(self) -> None:
        if self.worker is not None:
            self.worker.alive = False
            self.worker = None

    def loaded(self, worker: Worker) -> None:
        if not worker.alive:
            return
        worker.ready = True
        self.send(("ready",))
        self.compute_next()

    def worker_died(self, reason: str, asked: bool = False) -> None:
        worker = self.worker
        if worker is None:
            return
        computing = worker.attempt
        self.stop_worker()
        self.queue.clear()
        self.send(("exited", reason, computing, asked, self.epoch))
        self.world.clock.after(0.2, self.back_off, self.generation)

    def back_off(self, generation: int) -> None:
        if self.generation == generation and self.up and self.worker is None:
            self.start_worker()

    def beat(self, generation: int) -> None:
        if generation != self.generation:
            return
        world = self.world
        now = world.clock.now
        world.clock.after(BEAT_SECONDS, self.beat, generation)
        worker = self.worker
        if worker is not None and worker.attempt is not None and not worker.hung:
            worker.progress += 1
        phase = "" if worker is None else "compute" if worker.ready else "load"
        if worker is not None and not worker.ready:
            worker.progress += 1
        self.send(("beat", phase, worker.attempt if worker else None, worker.progress if worker else 0))
        if self.link and now - self.heard_coordinator > LEASE_SECONDS:
            world.break_link(self)
        if not self.link and now - self.heard_coordinator > LEASE_SECONDS:
            self.queue.clear()  # free for another run; the unit in hand goes on

    # --- messages

    def send(self, message: tuple[Any, ...]) -> None:
        self.world.send_up(self, message)

    def receive(self, message: tuple[Any, ...]) -> None:
        self.heard_coordinator = self.world.clock.now
        match message:
            case ("hello", epoch):
                if epoch != self.epoch:
                    self.epoch = epoch
                    self.queue.clear()
                for attempt, (unit, of, seconds) in self.spool.items():
                    self.send(("result", attempt, unit, of, seconds, True))
                if self.worker is not None and self.worker.ready:
                    self.send(("ready",))
            case ("assign", attempt, unit):
                known = attempt in self.queue or attempt in self.spool
                if not known and not (self.worker and self.worker.attempt == attempt):
                    self.queue[attempt] = unit
                    self.compute_next()
            case ("revoke", attempts):
                for attempt in attempts:
                    self.queue.pop(attempt, None)
            case ("ack", attempt):
                self.spool.pop(attempt, None)
            case ("restart", reason):
                self.worker_died(f"restart asked: {reason}", asked=True)
            case ("release",):
                self.queue.clear()
            case ("beat",):
                pass

    # --- computing

    def compute_next(self) -> None:
        worker = self.worker
        if worker is None or not worker.ready or worker.attempt is not None or not self.queue:
            return
        attempt, unit = self.queue.popitem(last=False)
        worker.attempt, worker.unit, worker.began = attempt, unit, self.world.clock.now
        worker.progress += 1
        work = self.world.ledger.units[unit]
        finish = self.finish_time(self.world.clock.now, work.cost)
        poison = next((self.world.script.poison[row] for row in work.rows if row in self.world.script.poison), None)
        rng = self.world.rng
        if poison is None and self.script.breaks and rng.random() < self.script.breaks:
            poison = "kill"
        if poison is None:
            self.world.clock.at(finish, self.finished, worker, attempt)
        else:
            when = worker.began + rng.random() * (finish - worker.began)
            self.world.clock.at(when, self.struck, worker, attempt, poison)

    def finish_time(self, start: float, cost: float) -> float:
        """When `cost` begun at `start` is done at its speed, which changes."""
        speeds = self.script.speeds
        time = start
        for index, (_, speed) in enumerate(speeds):
            until = speeds[index + 1][0] if index + 1 < len(speeds) else float("inf")
            if until <= time:
                continue
            if time + cost / speed <= until:
                return time + cost / speed
            cost -= (until - time) * speed
            time = until
        raise AssertionError("the last speed has no end")

    def cost_in_hand(self) -> float:
        """Of the unit that is being computed, what is done, at most all of it."""
        worker = self.worker
        if worker is None or worker.attempt is None:
            return 0.0
        cost = self.world.ledger.units[worker.unit].cost
        finish = self.finish_time(worker.began, cost)
        now = self.world.clock.now
        return cost * min(1.0, (now - worker.began) / (finish - worker.began))

    def struck(self, worker: Worker, attempt: int, poison: str) -> None:
        if not worker.alive or worker.hung or worker.attempt != attempt:
            return
        if poison == "kill":
            self.worker_died("killed by signal 9")
        elif poison == "hang":
            worker.hung = True
        else:
            self.send(("failed", attempt, worker.unit, self.epoch))
            worker.attempt = None
            self.compute_next()

    def finished(self, worker: Worker, attempt: int) -> None:
        if not worker.alive or worker.hung or worker.attempt != attempt:
            return
        now = self.world.clock.now
        seconds = now - worker.began
        self.computed_cost += self.world.ledger.units[worker.unit].cost
        worker.attempt = None
        worker.progress += 1
        self.spool[attempt] = (worker.unit, self.epoch, seconds)
        valid = not self.script.garbles or self.world.rng.random() >= self.script.garbles
        self.send(("result", attempt, worker.unit, self.epoch, seconds, valid))
        self.compute_next()
