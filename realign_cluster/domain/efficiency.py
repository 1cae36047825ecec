"""How much of what the nodes could do was turned into committed work, and where the rest went.

Efficiency is T*/T. T is what the run took; T* is the least time in which the nodes that were there, each at its own
measured speed at that moment, could have done the committed work. Nothing is clamped: where a node was busy its speed
is what it did, so T* <= T follows from measurement. Knows no ledger, no clock and no event: intervals in, numbers out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

TAIL, DISPATCH, DUPLICATES, RECOVERY, DRIFT, LOAD = "tail", "dispatch", "duplicates", "recovery", "drift", "load"
LOSSES: Final = (TAIL, DISPATCH, DUPLICATES, RECOVERY, DRIFT)
BUSY: Final = "busy"
LEAST_SECONDS: Final = 5.0  # below this the ends weigh more than the middle
LEAST_COMPUTATIONS: Final = 2  # per node that computed anything
NEIGHBOURS: Final = 3  # computations on each side of a gap that say how fast the node would have been in it
INSTANT: Final = 1e-6  # seconds; a computation never takes none


@dataclass(frozen=True, slots=True, kw_only=True)
class Computation:
    """One unit computed by a node. `wasted_as` is None when it was committed, else DUPLICATES or RECOVERY."""

    node: str
    received_at: float  # coordinator's monotonic seconds
    compute_seconds: float  # the worker's own
    cost: float
    wasted_as: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """A node that could be given work, from `begin` (worker ready) to `end` (lost, released, run over)."""

    node: str
    begin: float
    end: float
    asked_at: float  # to load the model
    lost: bool = False  # ended by a loss: what it was computing is gone


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """The node was there, its worker was not."""

    node: str
    begin: float
    end: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sitting:
    """One sitting of the coordinator: times are only compared within it. `finished_at` is the last commit."""

    asked_at: float  # the first node was asked to load the model
    finished_at: float
    computations: tuple[Computation, ...]
    presences: tuple[Presence, ...]
    outages: tuple[Outage, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """`losses` are fractions of the warm time and add up to 1 - warm; `seconds_by_node` is what each node did when."""

    warm: float | None  # None: not measured, see `why_not`
    cold: float | None  # with the loading of the model
    why_not: str = ""
    ideal_seconds: float = 0.0
    warm_seconds: float = 0.0
    cold_seconds: float = 0.0
    losses: Mapping[str, float] = field(default_factory=dict)
    seconds_by_node: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stretch:
    """A node at one speed, in the times of its sitting: `use` is BUSY, LOAD or one of the losses."""

    node: str
    begin: float
    end: float
    speed: float
    use: str

    @property
    def cost(self) -> float:
        return (self.end - self.begin) * self.speed


def measure(sittings: Sequence[Sitting]) -> Efficiency:
    """Efficiency of a whole run: times and ideal times of its sittings are added up."""
    ideal = cold_ideal = warm_seconds = cold_seconds = 0.0
    lost: dict[str, float] = defaultdict(float)  # seconds of the cluster, by loss
    by_node: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    computations: dict[str, int] = defaultdict(int)
    for sitting in sittings:
        warm = stretches_of(sitting)
        if not warm:
            continue
        for computation in sitting.computations:
            computations[computation.node] += 1
        work = sum(stretch.cost for stretch in warm if stretch.use == BUSY)
        begin = min(presence.begin for presence in sitting.presences)
        took = sitting.finished_at - begin
        least = least_seconds(warm, work, begin)
        ideal += least
        warm_seconds += took
        wasted = sum(stretch.cost for stretch in warm if stretch.use != BUSY)
        for stretch in warm:
            by_node[stretch.node][stretch.use] += stretch.end - stretch.begin
            if stretch.use != BUSY and wasted > 0:
                lost[stretch.use] += stretch.cost / wasted * (took - least)
        loading = _loading(sitting, warm)
        for stretch in loading:
            by_node[stretch.node][LOAD] += stretch.end - stretch.begin
        cold_ideal += least_seconds([*loading, *warm], work, sitting.asked_at)
        cold_seconds += sitting.finished_at - sitting.asked_at
    why_not = _too_little(warm_seconds, computations)
    return Efficiency(
        warm=None if why_not else ideal / warm_seconds,
        cold=None if why_not else cold_ideal / cold_seconds,
        why_not=why_not,
        ideal_seconds=ideal,
        warm_seconds=warm_seconds,
        cold_seconds=cold_seconds,
        losses={} if why_not else {loss: lost[loss] / warm_seconds for loss in LOSSES},
        seconds_by_node={node: dict(uses) for node, uses in sorted(by_node.items())},
    )


def timeline(sitting: Sitting) -> list[Stretch]:
    """What every node did when, loading included, in order of time."""
    warm = stretches_of(sitting)
    return sorted([*_loading(sitting, warm), *warm], key=lambda stretch: (stretch.begin, stretch.node))


def least_seconds(stretches: Iterable[Stretch], work: float, begin: float) -> float:
    """The least T with: sum over nodes of the integral of speed from `begin` to `begin` + T covers `work`."""
    changes: list[tuple[float, float]] = []
    for stretch in stretches:
        changes.append((stretch.begin, stretch.speed))
        changes.append((stretch.end, -stretch.speed))
    changes.sort()
    done = speed = 0.0
    now = begin
    for at, change in changes:
        step = (at - now) * speed
        if step > 0 and done + step >= work:
            return now - begin + (work - done) / speed
        done += max(step, 0.0)
        now = max(now, at)
        speed += change
    return now - begin  # rounding: all of it was needed


def _too_little(seconds: float, computations: Mapping[str, int]) -> str:
    if seconds < LEAST_SECONDS:
        return f"scoring took {seconds:.1f} s: too short to measure (at least {LEAST_SECONDS:.0f} s)"
    if few := [node for node, count in computations.items() if count < LEAST_COMPUTATIONS]:
        return f"too few units to measure the speed of {', '.join(sorted(few))}"
    return ""


def stretches_of(sitting: Sitting) -> list[Stretch]:
    """Every second of every presence up to the end, as busy or as one of the losses."""
    placed = _placed(sitting)
    pace = {
        node: sum(stretch.cost for stretch in stretches) / sum(stretch.end - stretch.begin for stretch in stretches)
        for node, stretches in _by_node(stretch for stretches in placed.values() for stretch in stretches).items()
    }
    drift_from = _drift_from(placed, pace, sitting.finished_at)
    found: list[Stretch] = []
    for presence, busy in placed.items():
        found += busy
        if presence.node in pace:
            found += _gaps(presence, busy, pace[presence.node], sitting, drift_from)
    return found


def _placed(sitting: Sitting) -> dict[Presence, list[Stretch]]:
    """When each computation took place: the latest that its receipt and the ones after it on the same node allow.

    A result computed before its node was ready (offered again after a restart) belongs to no time of this sitting.
    """
    placed: dict[Presence, list[Stretch]] = {}
    computed = _computations_by_node(sitting.computations)
    for presence in sorted(sitting.presences, key=lambda presence: presence.begin, reverse=True):
        own = computed.get(presence.node, [])
        end = limit = min(presence.end, sitting.finished_at)
        busy: list[Stretch] = []
        while own and own[-1].received_at > presence.begin:
            computation = own.pop()
            stop = min(computation.received_at, limit)
            start = max(stop - max(computation.compute_seconds, INSTANT), presence.begin)
            if start < stop <= end:
                speed = computation.cost / (stop - start)
                busy.append(Stretch(presence.node, start, stop, speed, computation.wasted_as or BUSY))
                limit = start
        placed[presence] = busy[::-1]
    return placed


def _gaps(
    presence: Presence, busy: Sequence[Stretch], pace: float, sitting: Sitting, drift_from: float
) -> list[Stretch]:
    """What lies between the computations of one presence, at the speed of its neighbours."""
    end = min(presence.end, sitting.finished_at)
    last_counted = max((stretch.end for stretch in busy if stretch.use == BUSY), default=presence.begin)
    outages = [outage for outage in sitting.outages if outage.node == presence.node]
    gaps: list[Stretch] = []
    for position in range(len(busy) + 1):
        begin = busy[position - 1].end if position else presence.begin
        stop = busy[position].begin if position < len(busy) else end
        if stop - begin <= INSTANT:
            continue
        speed = _speed_around(busy, position, pace)
        if any(outage.begin < stop and outage.end > begin for outage in outages) or (presence.lost and stop == end):
            gaps.append(Stretch(presence.node, begin, stop, speed, RECOVERY))
        elif begin < last_counted:
            gaps.append(Stretch(presence.node, begin, stop, speed, DISPATCH))
        else:
            turn = min(max(begin, drift_from), stop)
            gaps += [Stretch(presence.node, begin, turn, speed, TAIL)] if turn > begin else []
            gaps += [Stretch(presence.node, turn, stop, speed, DRIFT)] if stop > turn else []
    return gaps


def _drift_from(placed: Mapping[Presence, Sequence[Stretch]], pace: Mapping[str, float], finished_at: float) -> float:
    """When the run would have ended had its last unit kept its node's pace: waiting after that is drift, not tail."""
    last = max(
        (stretch for stretches in placed.values() for stretch in stretches if stretch.use == BUSY),
        key=lambda stretch: stretch.end,
        default=None,
    )
    if last is None:
        return finished_at
    overrun = (last.end - last.begin) - last.cost / pace[last.node]
    return finished_at - max(overrun, 0.0)


def _loading(sitting: Sitting, warm: Sequence[Stretch]) -> list[Stretch]:
    """From being asked to load until ready, at the speed that the node then showed first."""
    first = {node: stretches[0].speed for node, stretches in _by_node(warm).items()}
    return [
        Stretch(presence.node, presence.asked_at, presence.begin, first[presence.node], LOAD)
        for presence in sitting.presences
        if presence.node in first and presence.asked_at < presence.begin
    ]


def _speed_around(busy: Sequence[Stretch], position: int, pace: float) -> float:
    near = busy[max(0, position - NEIGHBOURS) : position + NEIGHBOURS]
    seconds = sum(stretch.end - stretch.begin for stretch in near)
    return sum(stretch.cost for stretch in near) / seconds if seconds > 0 else pace


def _by_node(stretches: Iterable[Stretch]) -> dict[str, list[Stretch]]:
    """In order of time within each node."""
    found: dict[str, list[Stretch]] = defaultdict(list)
    for stretch in sorted(stretches, key=lambda stretch: stretch.begin):
        found[stretch.node].append(stretch)
    return found


def _computations_by_node(computations: Iterable[Computation]) -> dict[str, list[Computation]]:
    found: dict[str, list[Computation]] = defaultdict(list)
    for computation in sorted(computations, key=lambda computation: computation.received_at):
        found[computation.node].append(computation)
    return found
