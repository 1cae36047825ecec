"""A rank without MLX: a real process that speaks a rank's frames and does what it is told, misbehaving included.

python -m tests.node.rank_child --read-fd N --write-fd M
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

from realign_cluster.domain.world import RankSpec
from realign_cluster.rpc.frames import FrameReader, write_frame
from realign_cluster.store.state_part import PartHeader, write_part

_PR_SET_PTRACER = 0x59616D61


def report(write: BinaryIO, op: str, **values: Any) -> None:
    write_frame(write, {"op": "report", "body": json.dumps({"op": op, **values}).encode()})


def obey(frame: dict[str, Any], write: BinaryIO, state_dir: Path, run_id: str) -> None:
    match frame["op"]:
        case "go":
            report(write, "joined", generation=frame["generation"], addresses=frame["addresses"])
        case "say":
            for step in range(frame["first"], frame["first"] + frame["count"]):
                report(write, "step", step=step, padding="x" * frame.get("padding", 0))
        case "keep":
            data = os.urandom(frame["size"])
            part = write_part(
                state_dir,
                PartHeader(kind=frame.get("kind", "snapshot"), step=frame["step"], run=run_id),
                [("weights/w", "U8", (len(data),), data)],
                durable=False,
            )
            report(write, "kept", part=part.model_dump())
        case "sit tight":  # as a rank that hangs in a collective: no order and no SIGTERM reaches it
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], close_fds=False)
            report(write, "sitting", helper=helper.pid)
            while True:
                time.sleep(600)
        case "let anybody trace me":
            ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(-1), 0, 0, 0)
            report(write, "traceable")
        case "hang up":
            write.close()
            time.sleep(600)
        case "babble":
            write_frame(write, {"op": "babble"})
        case "exit":
            print("the last words", file=sys.stderr, flush=True)
            os._exit(frame["status"])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--read-fd", type=int, required=True)
    parser.add_argument("--write-fd", type=int, required=True)
    options = parser.parse_args()
    with open(options.read_fd, "rb") as read, open(options.write_fd, "wb") as write:  # noqa: PTH123  # descriptors
        frames = iter(FrameReader(read))
        first = next(frames)
        spec = RankSpec.model_validate_json(first["spec"])
        report(write, "section", section="load", step=spec.start_step)
        report(
            write,
            "here",
            pid=os.getpid(),
            frame={key: value.decode() if isinstance(value, bytes) else value for key, value in first.items()},
            environment={name: os.environ.get(name, "") for name in ("OPENBLAS_NUM_THREADS", "MLX_METAL_FAST_SYNCH")},
        )
        for frame in frames:
            if frame["op"] == "stop":
                report(write, "ended", step=spec.start_step)
                return
            obey(frame, write, Path(first["state_dir"]), first["run_id"])


if __name__ == "__main__":
    main()
