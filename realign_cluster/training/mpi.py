"""A group over Open MPI for ranks that mpirun did not start.

MPI's world is what one mpirun starts; a rank is the child of its daemon, which orders, hears and ends it. So rank 0
starts one mpirun a generation, of a small process for each rank (`mpi_place`), and each rank takes that one's place. If
a rank goes, its holder goes, mpirun ends the others, and their ranks end with them: a world is never repaired.

Between machines mpirun needs ssh from rank 0's machine to the others, and Python at the same path on all of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from ctypes.util import find_library
from pathlib import Path

from realign_cluster.domain.errors import RealignError
from realign_cluster.training import mpi_place
from realign_cluster.training.mpi_place import LEAVES, MEET_SECONDS, PREFIXES, meeting_place

INSTALL = "install Open MPI on every node: brew install open-mpi   (Debian: sudo apt-get install openmpi-bin)"
LOOK_SECONDS = 0.2
END_SECONDS = 5.0
LOST_EXIT = 76
SETTINGS = {"OMPI_MCA_mpi_yield_when_idle": "1"}  # a rank that waits leaves the cores to those that compute
_SSH = "-o BatchMode=yes -o ConnectTimeout=10"
SSH_SETTINGS = {"OMPI_MCA_plm_rsh_args": _SSH, "PRTE_MCA_plm_ssh_args": _SSH}  # Open MPI 4 and 5


class NoMpi(RealignError):
    """What a group over MPI needs is not on this machine."""


class Place:
    """This rank's in MPI's world, from `take_place` on. `mpirun` is there on rank 0."""

    def __init__(
        self, holder: socket.socket, mpirun: subprocess.Popen[bytes] | None, lost: Callable[[str], None]
    ) -> None:
        self._holder = holder
        self._mpirun = mpirun
        self._lost = lost
        self._leaving = False
        threading.Thread(target=self._watch, daemon=True, name="mpi").start()

    def leave(self) -> None:
        """Waits for all ranks, then parts from them: after this a rank may end without ending the others."""
        from mpi4py import MPI

        MPI.COMM_WORLD.Barrier()
        self._leaving = True
        MPI.Finalize()
        self._holder.sendall(LEAVES)
        if self._mpirun is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._mpirun.wait(END_SECONDS)

    def _watch(self) -> None:
        with contextlib.suppress(OSError):
            self._holder.recv(1)
        if not self._leaving:
            self._lost("mpirun has ended the world: another rank has gone")
            os._exit(LOST_EXIT)


def take_place(rank: int, addresses: Sequence[str], lost: Callable[[str], None]) -> Place:
    """Puts into the environment what MPI_Init makes the world from. When the world ends early, `lost` is called from a
    thread, and then this process ends, as MPI itself would end it.

    Raises NoMpi, or RuntimeError when the world is not there in time.
    """
    library = find_mpi()
    path = meeting_place(addresses[rank])
    mpirun: subprocess.Popen[bytes] | None = None
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            path.unlink(missing_ok=True)
            listener.bind(str(path))
            listener.listen(1)
            if rank == 0:
                mpirun = _start_mpirun(addresses)
            holder = _await_holder(listener, mpirun)
        with holder.makefile("rb") as said:
            given = json.loads(said.readline())
    except (RuntimeError, OSError, ValueError) as error:
        if mpirun is not None:
            mpirun.terminate()
        raise RuntimeError(f"Open MPI made no world: {error}") from error
    finally:
        path.unlink(missing_ok=True)
    os.environ.update({name: value for name, value in given.items() if name.startswith(PREFIXES)} | SETTINGS)
    os.environ["MLX_MPI_LIBNAME"] = library
    return Place(holder, mpirun, lost)


def _start_mpirun(addresses: Sequence[str]) -> subprocess.Popen[bytes]:
    """In a session of its own: it ends with the ranks' holders, not with rank 0, and so tidies up after both."""
    environment = os.environ | SSH_SETTINGS
    environment.pop("LD_PRELOAD", None)  # the BLAS of ranks
    return subprocess.Popen(world_command(addresses), stdin=subprocess.DEVNULL, env=environment, start_new_session=True)


def find_mpi() -> str:
    """Open MPI's library, as MLX is told. Raises NoMpi."""
    mpirun = shutil.which("mpirun")
    name = "libmpi.dylib" if platform.system() == "Darwin" else "libmpi.so"
    beside = Path(mpirun).parent.parent / "lib" / name if mpirun is not None else None
    library = str(beside) if beside is not None and beside.exists() else find_library("mpi")
    if mpirun is None or library is None:
        raise NoMpi("there is no mpirun on this node" if mpirun is None else "there is no libmpi on this node", INSTALL)
    return library


def world_command(addresses: Sequence[str]) -> list[str]:
    """One mpirun, whose process k is on the machine of rank k."""
    command = ["mpirun", "--oversubscribe", *(["--allow-run-as-root"] if os.geteuid() == 0 else [])]
    for rank, address in enumerate(addresses):
        host = address.rpartition(":")[0]
        command += [":"] if rank else []
        command += ["--host", host, "-n", "1", sys.executable, "-m", mpi_place.__name__, address]
    return command


def _await_holder(listener: socket.socket, mpirun: subprocess.Popen[bytes] | None) -> socket.socket:
    """Raises RuntimeError when mpirun ends before, or nobody comes."""
    deadline = time.monotonic() + MEET_SECONDS
    listener.settimeout(LOOK_SECONDS)
    while time.monotonic() < deadline:
        if mpirun is not None and mpirun.poll() is not None:
            raise RuntimeError(
                f"mpirun ended with status {mpirun.returncode}, its words are in the log of rank 0's node"
            )
        with contextlib.suppress(TimeoutError):
            holder, _ = listener.accept()
            holder.settimeout(None)
            return holder
    raise RuntimeError(f"mpirun has not come to this node within {MEET_SECONDS:.0f} s: can rank 0's node ssh to it?")
