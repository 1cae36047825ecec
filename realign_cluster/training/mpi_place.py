"""What mpirun starts for each rank: it lends the rank its place in MPI's world and holds it until the rank has ended.

    python -m realign_cluster.training.mpi_place ADDRESS

MPI finds its world through the environment that mpirun gives to its children. Ranks are children of their daemons, so
each borrows the environment of one of these, which runs on the same machine as the same user. When the rank ends
without leaving, this ends with an error, and mpirun ends the world. Must not import MLX or MPI: it only waits.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path

PREFIXES = ("OMPI_", "PMIX_", "PRTE_")  # what Open MPI gives to its children
LEAVES = b"."  # the rank has finished with MPI
MEET_SECONDS = 45.0
RETRY_SECONDS = 0.05


def meeting_place(address: str) -> Path:
    """Of the rank that has this "ip:port": a socket where no other user of this machine can listen or connect."""
    folder = Path.home() / ".realign" / "mpi"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    return folder / f"{address.replace(':', '-')}.sock"


def meet(path: Path, seconds: float = MEET_SECONDS) -> socket.socket:
    """Waits for the rank to listen. Raises OSError when it does not."""
    deadline = time.monotonic() + seconds
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(path))
            return connection
        except OSError:
            connection.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(RETRY_SECONDS)


def main(address: str) -> int:
    with meet(meeting_place(address)) as rank:
        place = {name: value for name, value in os.environ.items() if name.startswith(PREFIXES)}
        rank.sendall(json.dumps(place).encode() + b"\n")
        try:
            return 0 if rank.recv(1) == LEAVES else 1
        except ConnectionError:
            return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
