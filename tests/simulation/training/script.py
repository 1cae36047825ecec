"""What a seed stands for: nodes, the run, and the faults with their times. Prints as text, so that a failure can be
read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from realign_cluster.domain.recovery_policy import RecoveryPolicy
from realign_cluster.domain.section_limits import SectionLimits
from realign_cluster.domain.training import KlAction, ParallelMode

# Minutes of the real policy are seconds here: a schedule has to come to its end in some thousand events.
POLICY = RecoveryPolicy(
    sections=SectionLimits(load_seconds=20.0, join_seconds=10.0, first_piece_seconds=15.0, write_seconds=10.0),
    arrival_seconds=20.0,
    same_world_seconds=90.0,
    give_up_seconds=60.0,
    kill_patience_seconds=15.0,
    transfer_seconds=20.0,
    transfer_again_seconds=2.0,
    stop_seconds=10.0,
    forgiving_steps=6,
)


@dataclass(frozen=True, slots=True)
class NodeScript:
    name: str
    joins_at: float
    load_seconds: float
    crashes: float = 0.0  # probability that its rank dies in any section


@dataclass(frozen=True, slots=True)
class Fault:
    at: float
    kind: str
    node: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        lasting = f" for {self.seconds:.2f} s" if self.seconds else ""
        return f"{self.at:8.2f} s  {self.kind} {self.node}{lasting}"


@dataclass(frozen=True, slots=True)
class Script:
    seed: int
    nodes: tuple[NodeScript, ...]
    parallel: ParallelMode
    least_nodes: int  # fewer are refused
    steps: int
    step_seconds: float
    checkpoint_every: int
    snapshot_every: int
    reproducible: bool
    faults: tuple[Fault, ...]
    latency: float
    spikes: float  # probability of a delay of up to 2 s
    resets: float  # probability that a message breaks its connection and is lost with all that follows
    return_seconds: float = POLICY.return_seconds
    evaluate_every: int = 0
    kl_every: int = 0
    kl_action: KlAction = "soften"
    kl_over: tuple[
        int, ...
    ] = ()  # how many softenings are behind when each measurement from such a step on is too high
    nan_at: int = 0  # this step's loss is no number; 0: none
    drifts: str = ""  # the replica on this node ends with other weights
    wait_seconds: float | None = None  # reproducible: for the same world; None: as the policy has it
    fewer: bool = False  # reproducible: then it goes on without those that stayed away

    def __str__(self) -> str:
        same = f", reproducible (waits {self.wait_seconds}, then fewer: {self.fewer})" if self.reproducible else ""
        world = f"{self.parallel}, at least {self.least_nodes}{same}"
        lines = [
            f"seed {self.seed}: {self.steps} steps of {self.step_seconds:.2f} s, {world}; checkpoint every "
            f"{self.checkpoint_every}, snapshot every {self.snapshot_every}, evaluation every {self.evaluate_every}, "
            f"KL every {self.kl_every} ({self.kl_action}, over at {self.kl_over}); NaN at {self.nan_at}, "
            f"drift of {self.drifts or 'nobody'}; latency {self.latency:.3f} s, spikes {self.spikes:.3f}, "
            f"resets {self.resets:.4f}; waits {self.return_seconds:.1f} s for nodes",
            *(f"  {node}" for node in self.nodes),
            *(f"  {fault}" for fault in self.faults),
        ]
        return "\n".join(lines)


def policy_of(script: Script) -> RecoveryPolicy:
    return replace(POLICY, return_seconds=script.return_seconds)


RANK_FAULTS = ("crash rank", "crash rank", "hang rank", "stop rank", "wedge rank")
NODE_FAULTS = (
    "cut", "cut", "unlink", "mute", "mute", "reset", "kill node", "power off", "freeze", "restart daemon", "leave",
    "refuse to start", "bar",
)  # fmt: skip
DISK_FAULTS = ("corrupt", "corrupt", "corrupt stored", "disk full")
COORDINATOR_FAULTS = ("kill coordinator", "pause coordinator", "no room", "stop", "stop twice")


def _seconds(rng: Random, kind: str) -> float:
    match kind:
        case "stop rank":
            return rng.choice((1.0, 4.0, 30.0))
        case "cut" | "unlink" | "mute" | "freeze":
            return rng.choice((0.5, 2.0, 5.0, 9.0, 30.0, 200.0))
        case "kill node" | "power off":
            return rng.choice((2.0, 8.0, 25.0, 200.0))
        case "restart daemon" | "leave" | "bar":
            return rng.choice((0.5, 4.0, 30.0))
        case "disk full" | "no room" | "refuse to start":
            return rng.choice((2.0, 10.0, 30.0))
        case "kill coordinator":
            return rng.choice((0.05, 0.5, 2.0, 6.0))
        case "pause coordinator":
            return rng.choice((0.5, 2.0, 6.0))
        case _:
            return 0.0


def make_script(seed: int) -> Script:
    rng = Random(seed)
    parallel: ParallelMode = rng.choice(("data", "data", "data", "single", "single", "tensor", "pipeline", "sharded"))
    count = rng.choice((1, 2, 2, 2, 3)) if parallel in ("data", "single") else rng.choice((2, 2, 3))
    bad = count > 1 and rng.random() < 0.08
    together = rng.random() < 0.6
    names = [f"n{index}" for index in range(count)]
    nodes = tuple(
        NodeScript(
            name=name,
            joins_at=0.1 if together else rng.uniform(0.0, 6.0),
            load_seconds=rng.uniform(0.3, 3.0),
            crashes=rng.choice((0.3, 1.0)) if bad and name == names[-1] else 0.0,
        )
        for name in names
    )
    steps = rng.randint(4, 14)
    step_seconds = rng.choice((0.3, 0.7, 1.0, 2.0))
    span = 5.0 + steps * step_seconds * 1.5
    faults: list[Fault] = []
    together_at = rng.uniform(2.0, span)  # troubles come in company
    for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 5, 8))):
        kinds = rng.choice((RANK_FAULTS, RANK_FAULTS, NODE_FAULTS, NODE_FAULTS, DISK_FAULTS, COORDINATOR_FAULTS))
        kind = rng.choice(kinds)
        node = "" if kinds is COORDINATOR_FAULTS or kind == "corrupt stored" else rng.choice(names)
        at = rng.uniform(0.0, span) if rng.random() < 0.6 else together_at + rng.uniform(0.0, 1.0)
        faults.append(Fault(at, kind, node, _seconds(rng, kind)))
    harsh = rng.random() < 0.35
    kl = rng.random() < 0.15
    ends_badly = rng.random()
    return Script(
        seed=seed,
        nodes=nodes,
        parallel=parallel,
        least_nodes=1 if parallel in ("data", "single") else rng.choice((2, count)),
        steps=steps,
        step_seconds=step_seconds,
        checkpoint_every=rng.choice((2, 3, 5)),
        snapshot_every=rng.choice((1, 1, 2, 3)),
        reproducible=rng.random() < 0.2,
        faults=tuple(sorted(faults, key=lambda fault: fault.at)),
        latency=rng.choice((0.002, 0.02, 0.1)),
        spikes=0.02 if harsh else 0.0,
        resets=rng.choice((0.002, 0.01)) if harsh else 0.0,
        return_seconds=rng.choice((0.5, 3.0, 10.0)),
        evaluate_every=rng.choice((0, 0, 3)),
        kl_every=2 if kl else 0,
        kl_action=rng.choice(("soften", "soften", "soften", "stop")),
        kl_over=tuple(sorted(rng.sample(range(2, steps + 1), min(2, steps - 1)))) if kl else (),
        nan_at=rng.randint(1, steps) if ends_badly < 0.03 else 0,
        drifts=names[-1] if 0.03 <= ends_badly < 0.06 and parallel == "data" and count > 1 else "",
        wait_seconds=rng.choice((None, 2.0, 20.0)),
        fewer=rng.random() < 0.5,
    )
