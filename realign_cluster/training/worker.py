"""The process of one training rank: orders in, reports out. A child of the daemon, alone with MLX and the model.

    python -m realign_cluster.training.worker --read-fd N --write-fd M

The main thread trains; one thread reads frames, one watches, one writes states. Standard output and error are logs.
When the pipe from the daemon closes, or nothing came through it for too long, the process ends at once: what it had
not kept by then is for the next generation to do again.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import traceback
from typing import BinaryIO

from realign_cluster.domain.rank_report import Failed, RankReport
from realign_cluster.rpc.frames import FrameError, FrameReader, write_frame
from realign_cluster.training.lifeline import Lifeline
from realign_cluster.training.orders import Mailbox, Orders

FAILED_EXIT = 3


class Outbox:
    """Reports to the daemon, from any thread."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._lock = threading.Lock()

    def say(self, report: RankReport) -> None:
        with self._lock:
            try:
                write_frame(self._file, {"op": "report", "body": report.model_dump_json().encode()})
            except OSError:
                os._exit(0)  # the daemon is gone: nobody is left to tell


def read_frames(reader: FrameReader, mailbox: Mailbox) -> None:
    """Until the pipe closes, which ends the process."""
    lifeline = Lifeline()
    while True:
        try:
            frame = reader.read()
        except (FrameError, OSError) as error:
            print(f"the daemon's pipe broke: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        if frame is None:
            os._exit(0)
        if frame.get("op") == "beat":
            lifeline.heard(float(frame["within_seconds"]))
        elif not mailbox.put(frame):
            print(f"a frame of unknown kind {frame.get('op')!r} was left out", file=sys.stderr, flush=True)


def run(read: BinaryIO, write: BinaryIO) -> int:
    reader, outbox, mailbox = FrameReader(read), Outbox(write), Mailbox()
    if (frame := reader.read()) is None:
        return 0
    if frame.get("op") != "prepare":
        raise FrameError(f"the first frame is {frame.get('op')!r}, not prepare")
    threading.Thread(target=read_frames, args=(reader, mailbox), daemon=True, name="frames").start()
    try:
        orders = Orders.from_frame(frame)
    except (ValueError, KeyError) as error:
        outbox.say(
            Failed(
                code="orders",
                message=f"this node does not understand the job: {error}\n"
                "  fix: install the same version of realign-cluster on all nodes: realign-launch --install",
                step=0,
            )
        )
        return FAILED_EXIT
    from realign_cluster.training.rank import run_rank  # the first import of MLX in this process

    return 0 if run_rank(orders, mailbox, outbox.say) else FAILED_EXIT


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="realign_cluster.training.worker", description="Trains for a daemon.")
    parser.add_argument("--read-fd", type=int, required=True)
    parser.add_argument("--write-fd", type=int, required=True)
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt at the terminal is the coordinator's to handle
    with open(options.read_fd, "rb") as read, open(options.write_fd, "wb") as write:  # noqa: PTH123  # descriptors
        try:
            code = run(read, write)
        except BaseException:  # noqa: BLE001  # the border of the process: a crash must end it, not wait for a thread
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # the reading thread holds the pipe, and MLX's ring threads would be waited for


if __name__ == "__main__":
    sys.exit(main())
