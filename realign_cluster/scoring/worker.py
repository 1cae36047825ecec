"""The worker process: frames in, scores out. A child of the daemon, alone with MLX and the model.

    python -m realign_cluster.scoring.worker --read-fd N --write-fd M

A reading thread receives frames and tokenises queued units ahead, the main thread computes. Standard output and error
are logs. When the pipe from the daemon closes the process ends at once: whoever takes over knows only what the daemon
had.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from realign_cluster.domain.group import Place
from realign_cluster.domain.job import ScoreJob
from realign_cluster.rpc.frames import FrameError, FrameReader, write_frame
from realign_cluster.scoring.errors import JobRefused
from realign_cluster.scoring.rows import RowFault
from realign_cluster.scoring.session import Prepared, Session, check_kinds, open_session

REFUSED_EXIT = 3
PROGRESS_SECONDS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    attempt: int
    unit: int
    prepared: Prepared


class Outbox:
    """Frames to the daemon, from either thread; progress is thinned out to a few a second."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._progress = 0
        self._last = 0.0
        self._phase = ("", "")
        self._phase_at = 0.0

    def send(self, op: str, **values: Any) -> None:
        with self._lock:
            try:
                write_frame(self._file, {"op": op, **values})
            except OSError:
                os._exit(0)  # the daemon is gone: nobody is left to tell

    def phase(self, phase: str, what: str, fraction: float) -> None:
        now = time.monotonic()
        self.progress()
        if (phase, what) != self._phase or now - self._phase_at >= PROGRESS_SECONDS:
            self._phase, self._phase_at = (phase, what), now
            self.send("phase", phase=phase, what=what, fraction=fraction)

    def progress(self) -> None:
        now = time.monotonic()
        self._progress += 1
        if now - self._last >= PROGRESS_SECONDS:
            self._last = now
            self.send("progress", n=self._progress)


class Inbox:
    """Units in the order they came, less those that were revoked since. `next` blocks; None means stop."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._units: list[Unit] = []
        self._stopping = False

    def add(self, unit: Unit) -> None:
        with self._changed:
            self._units.append(unit)
            self._changed.notify()

    def revoke(self, attempts: set[int]) -> None:
        with self._changed:
            self._units = [unit for unit in self._units if unit.attempt not in attempts]

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def next(self) -> Unit | None:
        with self._changed:
            while not self._units and not self._stopping:
                self._changed.wait()
            return None if self._stopping else self._units.pop(0)


def read_frames(reader: FrameReader, inbox: Inbox, session: Future[Session], addresses: Future[Sequence[str]]) -> None:
    """Until the pipe closes, which ends the process; so does a failure here: nobody else would hear the daemon."""
    try:
        _read_frames(reader, inbox, session, addresses)
    except BaseException:  # noqa: BLE001  # the border of the thread
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def _read_frames(reader: FrameReader, inbox: Inbox, session: Future[Session], addresses: Future[Sequence[str]]) -> None:
    """Before the session is open only an order to join a group or to stop is expected."""
    while True:
        try:
            frame = reader.read()
        except (FrameError, OSError) as error:
            print(f"the daemon's pipe broke: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        if frame is None:
            os._exit(0)
        match frame["op"]:
            case "unit":
                prepared = session.result().prepare(frame["rows"], frame["count"], frame.get("row_ids", b""))
                inbox.add(Unit(attempt=frame["attempt"], unit=frame["unit"], prepared=prepared))
            case "revoke":
                inbox.revoke(set(frame["attempts"]))
            case "go" if not addresses.done():
                addresses.set_result(frame["addresses"])
            case "stop" if not session.done():
                os._exit(0)  # still loading or measuring: there is nothing in hand
            case "stop":
                inbox.stop()
            case unknown:
                print(f"a frame of unknown kind {unknown!r} was left out", file=sys.stderr, flush=True)


def work(inbox: Inbox, session: Session, outbox: Outbox) -> None:
    """Compute units until told to stop."""
    while (unit := inbox.next()) is not None:
        outbox.send("begin", attempt=unit.attempt)
        obey(unit.prepared.asked_faults)
        started = time.monotonic()
        try:
            result = session.compute(unit.prepared, outbox.progress)
        except RowFault as fault:
            outbox.send(
                "failed", attempt=unit.attempt, unit=unit.unit, code="exception", message=str(fault), row=fault.row
            )
            continue
        outbox.send(
            "result",
            attempt=unit.attempt,
            unit=unit.unit,
            payload=result.payload,
            compute_seconds=time.monotonic() - started,
            tokens=result.tokens,
            rows=unit.prepared.count,
            shape=result.shape,
        )


def obey(asked_faults: dict[int, str]) -> None:
    """Faults that a test ordered by row: dying and hanging here, raising where the row is computed."""
    for fault in asked_faults.values():
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault == "hang":
            while True:
                time.sleep(3600)


def run(read: BinaryIO, write: BinaryIO) -> int:
    reader, outbox, inbox = FrameReader(read), Outbox(write), Inbox()
    if (frame := reader.read()) is None:
        return 0
    if frame.get("op") != "prepare":
        raise FrameError(f"the first frame is {frame.get('op')!r}, not prepare")
    opened: Future[Session] = Future()
    addresses: Future[Sequence[str]] = Future()
    threading.Thread(target=read_frames, args=(reader, inbox, opened, addresses), daemon=True, name="frames").start()
    try:
        if frame.get("group"):
            session = join_group(frame, outbox, addresses)
        else:
            session = open_session(
                ScoreJob.model_validate_json(frame["job"]),
                Path(frame["model_dir"]),
                measure=frame["measure"],
                samples=frame["samples"],
                cores=frame["cores"],
                phase=outbox.phase,
                others={digest: Path(folder) for digest, folder in frame.get("other_dirs", {}).items()},
            )
    except JobRefused as refusal:
        outbox.send("refused", code=refusal.code, message=refusal.message)
        return REFUSED_EXIT
    outbox.send("ready", report=session.report.model_dump_json().encode())
    opened.set_result(session)
    work(inbox, session, outbox)
    return 0


def join_group(frame: Mapping[str, Any], outbox: Outbox, addresses: Future[Sequence[str]]) -> Session:
    """On the leader, its session; on another rank this does not return. Raises JobRefused."""
    from realign_cluster.scoring.membership import Follower, join  # the first import of MLX in this process
    from realign_cluster.scoring.model_session import lead

    def meet(port: int) -> Sequence[str]:
        outbox.send("waiting", port=port)
        return addresses.result()

    job, place = ScoreJob.model_validate_json(frame["job"]), Place.model_validate_json(frame["group"])
    check_kinds(job)
    member = join(job, Path(frame["model_dir"]), place, cores=frame["cores"], phase=outbox.phase, meet=meet)
    if not place.leads:
        follower = Follower(member)
        outbox.send("ready", report=follower.report.model_dump_json().encode())
        follower.follow(outbox.progress)
    return lead(job, member, measure=frame["measure"], samples=frame["samples"], phase=outbox.phase)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="realign_cluster.scoring.worker", description="Scores rows for a daemon.")
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
        os._exit(code)  # the reading thread holds the pipe: an orderly end of the interpreter would wait for it


if __name__ == "__main__":
    sys.exit(main())
