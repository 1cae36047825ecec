"""Runs the `realign` command of a launch as a child: signals are passed on, its exit status is ours."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence

ON_A_CLUSTER = ("curate", "train", "workflow", "calibrate", "plan", "nodes", "doctor")
_NO_MIN_NODES = ("doctor", "workflow plan")  # look at whatever is there
_NO_HOSTFILE = ("status", "gates", "rollback", "report", "diagnose", "init")  # of workflow: they read a run's folder
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def command_line(arguments: Sequence[str], hostfile: str, min_nodes: int | None) -> list[str]:
    """`realign ARGUMENTS --hostfile FILE [--min-nodes N]`; what the arguments say themselves is left alone."""
    given = {argument.partition("=")[0] for argument in arguments}
    if arguments[0] == "workflow" and len(arguments) > 1 and arguments[1] in _NO_HOSTFILE:
        return [sys.executable, "-m", "realign_cluster.cli.main", *arguments]
    added = [] if "--hostfile" in given else ["--hostfile", hostfile]
    command = " ".join(arguments[:2]) if arguments[0] == "workflow" else arguments[0]
    if min_nodes is not None and "--min-nodes" not in given and command not in _NO_MIN_NODES:
        added += ["--min-nodes", str(min_nodes)]
    end = arguments.index("--") if "--" in arguments else len(arguments)  # after it all words are input files
    return [sys.executable, "-m", "realign_cluster.cli.main", *arguments[:end], *added, *arguments[end:]]


async def run_child(command: Sequence[str]) -> int:
    """Its exit status; 128 + n when signal n killed it."""
    loop = asyncio.get_running_loop()
    process = await asyncio.create_subprocess_exec(*command)

    def forward(number: signal.Signals) -> None:
        # A Ctrl-C at the terminal has reached the child already, which is in our process group.
        if process.returncode is None and not (number is signal.SIGINT and _at_a_terminal()):
            process.send_signal(number)

    for number in _FORWARDED:
        loop.add_signal_handler(number, forward, number)
    try:
        status = await process.wait()
    finally:
        for number in _FORWARDED:
            loop.remove_signal_handler(number)
    return 128 - status if status < 0 else status


def _at_a_terminal() -> bool:
    """Whether we are the foreground process group of a terminal, so that it signals all of us itself."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
