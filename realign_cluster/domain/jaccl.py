"""jaccl, MLX's collectives over Thunderbolt cables: from the devices of a hostfile to what MLX wants to be told.

Pure: takes hosts and which of them are ranks, answers with their links or with everything that is in the way. Whether a
cable is really there is `realign doctor`'s to find out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.hostfile import MOST_JACCL_HOSTS, Hostfile, Rdma
from realign_cluster.domain.world import RdmaLinks, WorldPlan

MOST_RING_CABLES = 4  # between two neighbours
# MLX takes the first of each pair. What a daemon was started with must not reach a rank.
VARIABLES = (
    ("JACCL_IBV_DEVICES", "MLX_IBV_DEVICES"),
    ("JACCL_COORDINATOR", "MLX_JACCL_COORDINATOR"),
    ("JACCL_RANK", "MLX_RANK"),
    ("JACCL_RING", "MLX_JACCL_RING"),
)


class NotLinked(UsageError):
    """These nodes cannot be joined by RDMA as the hostfile has them: a line for each reason."""


def link(hostfile: Hostfile, nodes: Sequence[str]) -> RdmaLinks:
    """The links between `nodes`, in rank order; a ring where the hostfile's backend is jaccl-ring, else a full mesh.

    Raises NotLinked.
    """
    places = [[host.name for host in hostfile.hosts].index(node) for node in nodes]
    short = [host for host in hostfile.hosts if host.name in nodes and len(host.rdma) != len(hostfile.hosts)]
    if short:
        raise _not_linked(
            hostfile,
            [f"{host.name} lists {len(host.rdma)} RDMA devices for {len(hostfile.hosts)} hosts" for host in short],
        )
    links = RdmaLinks(
        devices=tuple(tuple(_cables(hostfile.hosts[here].rdma[there]) for there in places) for here in places),
        ring=hostfile.backend == "jaccl-ring",
    )
    if found := list(faults(links, nodes)):
        raise _not_linked(hostfile, found)
    return links


def with_links(world: WorldPlan, hostfile: Hostfile) -> WorldPlan:
    """The world with what jaccl needs; any other as it is. Raises NotLinked."""
    if world.backend != "jaccl" or world.size < 2:
        return world
    return world.model_copy(update={"rdma": link(hostfile, world.nodes)})


def faults(links: RdmaLinks, nodes: Sequence[str]) -> Iterator[str]:
    """What keeps MLX from making a group of these links, and what it would not notice until they hang."""
    devices, size = links.devices, len(nodes)
    if size < 2:
        yield f"{size} node: a group has at least 2"
    if size > MOST_JACCL_HOSTS and not links.ring:
        yield f"{size} nodes: a mesh has at most {MOST_JACCL_HOSTS}"
    for rank, node in enumerate(nodes):
        if devices[rank][rank]:
            yield f"{node} lists {' '.join(devices[rank][rank])} towards itself"
        peers = {peer: devices[rank][peer] for peer in range(size) if peer != rank}
        for peer, cables in peers.items():
            if not cables and (not links.ring or (peer - rank) % size in (1, size - 1)):
                yield f"{node} has no device towards {nodes[peer]}"
            if len(set(cables)) < len(cables):
                yield f"{node} lists a device twice towards {nodes[peer]}"
        for one, other in combinations(peers, 2):
            for device in sorted({*peers[one]} & {*peers[other]}):
                yield f"{node}: {device} cannot lead both to {nodes[one]} and to {nodes[other]}"
    for one, other in combinations(range(size), 2):
        here, there = len(devices[one][other]), len(devices[other][one])
        if here and there and here != there:
            yield f"{nodes[one]} lists {here} cables towards {nodes[other]}, which lists {there}"
    if links.ring and size >= 2:
        counts = {len(devices[rank][(rank + 1) % size]) for rank in range(size)} - {0}
        if len(counts) > 1:
            yield f"a ring has as many cables between all neighbours, here {' and '.join(map(str, sorted(counts)))}"
        elif counts and max(counts) > MOST_RING_CABLES:
            yield f"{max(counts)} cables between neighbours: a ring uses at most {MOST_RING_CABLES}"


def device_matrix(links: RdmaLinks) -> list[list[str | list[str] | None]]:
    """As the file behind MLX_IBV_DEVICES has it: a name, several names, or null."""
    return [
        [None if not cables else cables[0] if len(cables) == 1 else list(cables) for cables in row]
        for row in links.devices
    ]


def jaccl_environment(links: RdmaLinks, rank: int, matrix_file: str, coordinator: str) -> dict[str, str]:
    """`coordinator` is rank 0's "ip:port", reached by all: over TCP the ranks tell each other how to connect."""
    environment = {"MLX_RANK": str(rank), "MLX_IBV_DEVICES": matrix_file, "MLX_JACCL_COORDINATOR": coordinator}
    if links.ring:
        environment["MLX_JACCL_RING"] = "1"  # that it is set counts, not to what
    return environment


def _cables(devices: Rdma) -> tuple[str, ...]:
    if devices is None:
        return ()
    return (devices,) if isinstance(devices, str) else devices


def _not_linked(hostfile: Hostfile, found: list[str]) -> NotLinked:
    return NotLinked(
        "\n".join(f"{hostfile.name}: {line}" for line in found),
        'correct "rdma" in the hostfile (mlx.distributed_config --over thunderbolt reads the cables and writes it), '
        "or train over TCP: --backend ring",
    )
