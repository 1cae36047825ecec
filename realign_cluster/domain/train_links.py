"""How long ranks take to exchange what they must: which backend joins them, and what a collective costs over it.

Measured links go before priors, and both say where they come from. Must not know models or methods: it is told bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from realign_cluster.domain.hostfile import MOST_JACCL_HOSTS
from realign_cluster.domain.plan_facts import NodeFacts
from realign_cluster.domain.train_work import LinkFacts, link_between
from realign_cluster.domain.training import Backend

AskedBackend = Backend | Literal["auto"]

TCP_BYTES_PER_SECOND = 1.1e9  # 10 Gb Ethernet, what is on every Mac of the kind
TCP_ROUND_TRIP = 300e-6
LOOPBACK_BYTES_PER_SECOND = 3.0e9
LOOPBACK_ROUND_TRIP = 60e-6
# MLX's ring summed 16 MB between two ranks in 29 ms over loopback, with two cores for both: its threads, not the link,
# were the limit. On Apple's chips there are cores enough; that it then reaches four fifths of the link is assumed.
RING_CPU_BYTES_PER_SECOND = 0.58e9
RING_SHARE_OF_LINK = 0.8
# Thunderbolt 5 carries 80 Gb/s; that RDMA gets half of it through is assumed, nobody has measured it here.
RDMA_BYTES_PER_SECOND = 5.0e9
RDMA_ROUND_TRIP = 30e-6


def asked_backend(asked: AskedBackend, hostfile: str) -> AskedBackend:
    """What was asked for, else what the hostfile names; "any" and what training has no use for leave it open."""
    if asked != "auto":
        return asked
    named: dict[str, AskedBackend] = {"ring": "ring", "jaccl": "jaccl", "mpi": "mpi"}
    return named.get(hostfile, "auto")


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What joins some nodes: the slowest link between any two of them, as the backend uses it."""

    backend: Backend
    ranks: int
    bytes_per_second: float
    round_trip_seconds: float
    source: str

    def sum_seconds(self, size: float, times: int = 1) -> float:
        """`times` sums of `size` bytes over all ranks, everybody getting the result: each rank sends and receives
        2 (n - 1) / n of it.
        """
        steps = 2 * (self.ranks - 1)
        return times * (steps / self.ranks * size / self.bytes_per_second + steps * self.round_trip_seconds / 2)

    def gather_seconds(self, size: float, times: int = 1) -> float:
        """`times` gatherings of `size` bytes, of which each rank has an equal part."""
        steps = self.ranks - 1
        return times * (steps / self.ranks * size / self.bytes_per_second + steps * self.round_trip_seconds / 2)

    def send_seconds(self, size: float) -> float:
        """To a neighbour."""
        return size / self.bytes_per_second + self.round_trip_seconds / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class NoNetwork:
    reason: str
    fix: str


def network(nodes: Sequence[NodeFacts], links: Sequence[LinkFacts], asked: AskedBackend) -> Network | NoNetwork:
    """What joins `nodes`, at least two: as asked, else RDMA where the hostfile names it between any two, else TCP."""
    pairs = [link_between(links, one.name, other.name) for one, other in combinations(nodes, 2)]
    without = [f"{link.one} - {link.other}" for link in pairs if not link.rdma]
    mesh = not without and len(nodes) <= MOST_JACCL_HOSTS
    if asked == "jaccl" and not mesh:
        return _no_mesh(len(nodes), without)
    if asked == "jaccl" or (asked == "auto" and mesh):
        return Network(
            backend="jaccl",
            ranks=len(nodes),
            bytes_per_second=RDMA_BYTES_PER_SECOND,
            round_trip_seconds=RDMA_ROUND_TRIP,
            source="jaccl (RDMA): the hostfile names a device between any two; 5 GB/s assumed, of Thunderbolt 5's "
            "80 Gb/s",
        )
    backend: Backend = "mpi" if asked == "mpi" else "ring"
    speeds = [(_reached(link, nodes), link) for link in pairs]
    slowest, link = min(speeds, key=lambda pair: pair[0])
    return Network(
        backend=backend,
        ranks=len(nodes),
        bytes_per_second=slowest,
        round_trip_seconds=max(_round_trip(link) for link in pairs),
        source=f"{backend} (TCP): {slowest / 1e9:.2f} GB/s between {link.one} and {link.other}, {_source(link)}",
    )


def _no_mesh(count: int, without: Sequence[str]) -> NoNetwork:
    if count > MOST_JACCL_HOSTS:
        return NoNetwork(
            reason=f"jaccl joins at most {MOST_JACCL_HOSTS} nodes, these are {count}", fix="--backend ring"
        )
    return NoNetwork(
        reason=f"jaccl needs RDMA between any two nodes, the hostfile names no device for {', '.join(without)}",
        fix='name the devices: "rdma": [null, "rdma_en2"] per host (mlx.distributed_config writes them), or '
        "--backend ring",
    )


def _reached(link: LinkFacts, nodes: Sequence[NodeFacts]) -> float:
    """Bytes per second that a ring's neighbour gets."""
    prior = LOOPBACK_BYTES_PER_SECOND if link.loopback else TCP_BYTES_PER_SECOND
    speed = (link.bytes_per_second or prior) * RING_SHARE_OF_LINK
    on_cpu = any(node.device.backend == "cpu" for node in nodes if node.name in (link.one, link.other))
    return min(speed, RING_CPU_BYTES_PER_SECOND) if on_cpu else speed


def _round_trip(link: LinkFacts) -> float:
    return link.round_trip_seconds or (LOOPBACK_ROUND_TRIP if link.loopback else TCP_ROUND_TRIP)


def _source(link: LinkFacts) -> str:
    if link.bytes_per_second is not None:
        return f"of {link.bytes_per_second / 1e9:.2f} GB/s measured"
    if link.loopback:
        return "assumed: both are on one machine"
    return "assumed for 10 Gb Ethernet; `realign calibrate` measures it"
