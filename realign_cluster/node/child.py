"""Runs a module as the main program of a process that does not outlive the daemon, not even one killed with -9.

    python -m realign_cluster.node.child PARENT_PID MODULE ARGUMENTS...

On Linux the kernel kills this process with its parent. It asks for that here, after the exec: Python code between fork
and exec is unsafe with gRPC's threads about. Elsewhere the worker ends when its pipe closes.
"""

from __future__ import annotations

import ctypes
import os
import platform
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """Raises SystemExit if the parent is gone already."""
    if platform.system() == "Linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        raise SystemExit(0)


def main() -> None:
    parent_pid, module = int(sys.argv[1]), sys.argv[2]
    del sys.argv[1:3]
    die_with_parent(parent_pid)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
