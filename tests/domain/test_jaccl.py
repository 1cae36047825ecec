"""What ranks over Thunderbolt are told: equal to what MLX's own launcher would tell them, refused where it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realign_cluster.domain.hostfile import Hostfile, parse_hostfile
from realign_cluster.domain.jaccl import NotLinked, device_matrix, jaccl_environment, link, with_links
from realign_cluster.domain.world import WorldPlan

HOSTFILES = Path(__file__).parents[2] / "hostfiles"
NAMES = ("alpha", "beta", "gamma", "delta", "eps", "zeta", "eta", "theta", "iota")
RING_OF_TWO_CABLES = [
    [None, ["rdma_en2", "rdma_en3"], ["rdma_en4", "rdma_en5"]],
    [["rdma_en4", "rdma_en5"], None, ["rdma_en2", "rdma_en3"]],
    [["rdma_en2", "rdma_en3"], ["rdma_en4", "rdma_en5"], None],
]
MESH: list[list[Any]] = [[None, "rdma_en2", "rdma_en3"], ["rdma_en3", None, "rdma_en4"], ["rdma_en5", "rdma_en6", None]]

FIVE_CABLES = [f"rdma_en{number}" for number in range(5)]


def hostfile_json(matrix: list[list[Any]], backend: str) -> str:
    hosts = [
        {
            "ssh": "127.0.0.1",
            "ips": [f"127.0.0.{rank + 1}"],
            "rdma": row,
            "realign": {"name": NAMES[rank], "port": 47100 + rank, "state": f"~/{NAMES[rank]}"},
        }
        for rank, row in enumerate(matrix)
    ]
    return json.dumps({"backend": backend, "envs": ["MLX_METAL_FAST_SYNCH=1"], "hosts": hosts})


def hostfile_of(matrix: list[list[Any]], backend: str = "jaccl") -> Hostfile:
    return parse_hostfile(hostfile_json(matrix, backend), "h.json")


def ring_hosts(matrix: list[list[Any]]) -> Hostfile:
    """The hosts of a file that says nothing of jaccl, so that reading it finds no fault with its devices."""
    return hostfile_of(matrix, "ring")


def mlx_launch(hostfile: str, folder: Path) -> tuple[str, str]:
    """What MLX's launcher and the ranks it started wrote: each prints what it was told."""
    (folder / "hosts.json").write_text(hostfile)
    (folder / "rank.py").write_text(
        "import json, os\n"
        "told = {name: value for name, value in os.environ.items() if 'JACCL' in name or name == 'MLX_RANK'}\n"
        "told['matrix'] = json.load(open(os.environ['MLX_IBV_DEVICES']))\n"
        "print(json.dumps(told), flush=True)\n"
    )
    launcher = subprocess.Popen(
        [
            Path(sys.executable).with_name("mlx.launch"),
            *("--python", sys.executable, "--hostfile", folder / "hosts.json"),
            folder / "rank.py",
        ],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert launcher.stdout is not None  # standard input stays open: a closed one makes mlx.launch spin
        assert launcher.stderr is not None
        return launcher.stdout.read(), launcher.stderr.read()
    finally:
        launcher.kill()
        launcher.communicate()


@pytest.mark.parametrize(("matrix", "backend"), [(MESH, "jaccl"), (RING_OF_TWO_CABLES, "jaccl-ring")])
def test_ranks_are_told_what_mlx_launch_tells_them(matrix: list[list[Any]], backend: str, tmp_path: Path) -> None:
    printed, errors = mlx_launch(hostfile_json(matrix, backend), tmp_path)
    told = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert sorted(one["MLX_RANK"] for one in told) == ["0", "1", "2"], errors
    links = link(hostfile_of(matrix, backend), NAMES[:3])
    for theirs in told:
        ours = jaccl_environment(links, int(theirs["MLX_RANK"]), "FILE", "127.0.0.1:32323")
        assert ours.pop("MLX_IBV_DEVICES") == "FILE"
        assert theirs.pop("matrix") == device_matrix(links) == matrix
        assert ours == theirs


@pytest.mark.parametrize(
    ("backend", "matrix", "said"),
    [
        ("jaccl", [[None, None, "rdma_en3"], *MESH[1:]], "alpha has no device towards beta"),
        ("jaccl-ring", [[None, "rdma_en2"], [None, None]], "beta has no device towards alpha"),
        ("jaccl", [["rdma_en9", "rdma_en2"], ["rdma_en3", None]], "alpha lists rdma_en9 towards itself"),
        ("jaccl", [[None, "rdma_en2"], [None]], "beta lists 1 RDMA devices for 2 hosts"),
    ],
)
def test_what_mlx_launch_refuses_is_refused(backend: str, matrix: list[list[Any]], said: str, tmp_path: Path) -> None:
    printed, errors = mlx_launch(hostfile_json(matrix, backend), tmp_path)
    assert "hostfile is malformed" in errors
    assert "MLX_RANK" not in printed
    read = replace(ring_hosts(matrix), backend=backend)
    with pytest.raises(NotLinked) as refused:
        link(read, NAMES[: len(matrix)])
    assert said in str(refused.value)
    assert "--backend ring" in refused.value.fix


@pytest.mark.parametrize(
    ("matrix", "ring", "said"),
    [
        (
            [[None, "rdma_en2", "rdma_en2"], ["rdma_en3", None, "rdma_en4"], ["rdma_en3", "rdma_en4", None]],
            False,
            "alpha: rdma_en2 cannot lead both to beta and to gamma",
        ),
        ([[None, ["rdma_en2", "rdma_en3"]], ["rdma_en2", None]], False, "alpha lists 2 cables towards beta"),
        ([[None, ["rdma_en2", "rdma_en2"]], [["rdma_en2", "rdma_en3"], None]], True, "alpha lists a device twice"),
        (
            [
                [None, ["rdma_en2", "rdma_en3"], "rdma_en4"],
                [["rdma_en2", "rdma_en3"], None, "rdma_en4"],
                ["rdma_en2", "rdma_en3", None],
            ],
            True,
            "as many cables between all neighbours, here 1 and 2",
        ),
        ([[None, FIVE_CABLES], [FIVE_CABLES, None]], True, "at most 4"),
    ],
)
def test_what_would_hang_is_refused(matrix: list[list[Any]], ring: bool, said: str) -> None:
    with pytest.raises(NotLinked) as refused:
        link(replace(ring_hosts(matrix), backend="jaccl-ring" if ring else "jaccl"), NAMES[: len(matrix)])
    assert said in str(refused.value)


def full_mesh(size: int) -> list[list[Any]]:
    return [[None if here == there else f"rdma_en{there}" for there in range(size)] for here in range(size)]


def test_a_mesh_has_at_most_eight_ranks() -> None:
    assert len(link(ring_hosts(full_mesh(9)), NAMES[:8]).devices) == 8
    with pytest.raises(NotLinked, match="9 nodes: a mesh has at most 8"):
        link(ring_hosts(full_mesh(9)), NAMES)
    assert link(hostfile_of(full_mesh(9), "jaccl-ring"), NAMES).ring
    with pytest.raises(NotLinked, match="1 node: a group has at least 2"):
        link(ring_hosts(full_mesh(9)), NAMES[:1])


@given(st.permutations(range(6)), st.integers(2, 6))
def test_some_of_the_hosts_in_another_order(order: list[int], size: int) -> None:
    chosen = order[:size]
    matrix = device_matrix(link(hostfile_of(full_mesh(6)), [NAMES[at] for at in chosen]))
    assert matrix == [[full_mesh(6)[here][there] for there in chosen] for here in chosen]


def test_a_part_of_a_ring_is_no_ring() -> None:
    ring = [
        [None, "rdma_en2", None, "rdma_en3"],
        ["rdma_en3", None, "rdma_en2", None],
        [None, "rdma_en3", None, "rdma_en2"],
        ["rdma_en2", None, "rdma_en3", None],
    ]
    hostfile = hostfile_of(ring, "jaccl-ring")
    assert link(hostfile, ["beta", "gamma", "delta", "alpha"]).ring  # turned
    with pytest.raises(NotLinked, match="gamma has no device towards alpha"):
        link(hostfile, ["alpha", "beta", "gamma"])
    with pytest.raises(NotLinked, match="beta has no device towards delta"):
        link(hostfile, ["alpha", "beta", "delta", "gamma"])


@pytest.mark.parametrize("name", ["m4max-m3ultra-rdma.json", "four-mac-mesh.json"])
def test_the_hostfiles_that_are_shipped_link(name: str) -> None:
    hostfile = parse_hostfile((HOSTFILES / name).read_text(), name)
    links = link(hostfile, [host.name for host in hostfile.hosts])
    assert device_matrix(links) == [list(host.rdma) for host in hostfile.hosts]


def test_a_world_with_links_travels_and_others_stay_as_they_are() -> None:
    hostfile = hostfile_of(RING_OF_TWO_CABLES, "jaccl-ring")
    plain = WorldPlan(parallel="tensor", backend="jaccl", nodes=NAMES[:3], shares=(1.0, 0.0, 0.0))
    world = with_links(plain, hostfile)
    assert world.rdma == link(hostfile, NAMES[:3])
    assert WorldPlan.model_validate_json(world.model_dump_json()) == world
    alone = WorldPlan(parallel="single", backend="jaccl", nodes=NAMES[:1], shares=(1.0,))
    for other in (plain.model_copy(update={"backend": "ring"}), alone):
        assert with_links(other, hostfile) == other
    assert WorldPlan.model_validate_json('{"parallel": "single", "nodes": ["a"], "shares": [1.0]}').rdma is None
