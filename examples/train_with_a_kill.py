"""Fine-tunes the tiny model on two nodes of this machine and kills a rank on the way, as `kill -9` does.

    python examples/train_with_a_kill.py [--hostfile hostfiles/local.json] [--out runs/demo-train]

What it prints is what `realign-launch ... train` says, and what this script did to it. At the end it reads the run's
folder and checks that the ranks that took over went on where the others had been: nothing is left out, little is done
twice, and what is done twice gives the same loss. Exit status 0 only if all of that is so.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from realign_cluster.coordinator.hostfile_reader import read_hostfile
from realign_cluster.coordinator.train_history import TrainHistory, read_train_history
from realign_cluster.domain.hostfile import Host
from realign_cluster.store.train_ledger import TrainLedgerReader

EXAMPLES = Path(__file__).parent
STEPS = 60
KILL_AFTER = 25
SNAPSHOT_EVERY = 5
SAME_LOSS = 1e-3  # nats; the order of floating-point sums may differ where shares have shifted
TRAIN = [
    *("--data", str(EXAMPLES / "data" / "cards.jsonl"), "--valid", str(EXAMPLES / "data" / "cards-held-out.jsonl")),
    *("--model", str(EXAMPLES / "tiny-model"), "--steps", str(STEPS), "--global-batch", "16"),
    *("--learning-rate", "2e-3", "--evaluate-every", "10"),
    *("--snapshot-every", str(SNAPSHOT_EVERY), "--checkpoint-every", "20"),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hostfile", type=Path, default=EXAMPLES.parent / "hostfiles" / "local.json")
    parser.add_argument("--out", type=Path, default=Path(f"runs/demo-train-{time.strftime('%Y%m%d-%H%M%S')}"))
    options = parser.parse_args()
    victim = read_hostfile(options.hostfile).hosts[-1]
    launch = [str(Path(sys.executable).with_name("realign-launch")), "--hostfile", str(options.hostfile)]
    command = [*launch, "train", *TRAIN, "--out", str(options.out), "--json"]
    print("$", " ".join(command), flush=True)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        killed_at: float | None = None
        for line in run.stdout:
            event = json.loads(line)
            if event["event"] != "progress" or event["phase"] != "training":
                continue
            print(f"         step {event['rows_done']:2} of {STEPS}: {event['message']}", flush=True)
            if event["rows_done"] >= KILL_AFTER and killed_at is None:
                pid, killed_at = kill_rank(victim), time.time()
                print(f"         kill -9 {pid}: the rank on {victim.name}", flush=True)
    if run.returncode:
        print(f"demo: the run ended with exit status {run.returncode}", file=sys.stderr)
        return 1
    faults = check(options.out, killed_at)
    for fault in faults:
        print(f"demo: {fault}", file=sys.stderr)
    print(f"\nReport: {(options.out / 'report.html').absolute()}")
    return 1 if faults else 0


def kill_rank(host: Host) -> int:
    """SIGKILL for the rank below that node's daemon. Returns its process id."""
    daemon = json.loads((Path(host.state).expanduser() / "daemon.json").read_text())["pid"]
    ranks = [child for child in psutil.Process(daemon).children(recursive=True) if is_rank(child)]
    ranks[0].kill()
    return ranks[0].pid


def is_rank(process: psutil.Process) -> bool:
    return "realign_cluster.training.worker" in process.cmdline()


def check(run: Path, killed_at: float | None) -> list[str]:
    """What is not as it should be after a kill at that time."""
    summary = json.loads((run / "summary.json").read_text())
    ledger = TrainLedgerReader(run / "ledger.sqlite")
    try:
        history = read_train_history(ledger)
    finally:
        ledger.close()
    if killed_at is None or len(history.generations) < 2:
        return ["no rank was killed, or no second generation of ranks took over"]
    difference = max((abs(lost.loss - history.steps[lost.step - 1].loss) for lost in history.lost), default=0.0)
    print_summary(summary, history, killed_at, difference)
    found = {
        f"the run is {summary['state']}": summary["state"] != "complete",
        "the curve has holes": [step.step for step in history.steps] != list(range(1, STEPS + 1)),
        f"{len(history.lost)} steps were lost, more than {SNAPSHOT_EVERY}": len(history.lost) > SNAPSHOT_EVERY,
        f"steps that were done twice differ by {difference}": difference > SAME_LOSS,
    }
    return [fault for fault, so in found.items() if so]


def print_summary(summary: dict[str, Any], history: TrainHistory, killed_at: float, difference: float) -> None:
    before, after = history.generations[:2]
    print(f"\n{len(history.steps)} steps by {len(history.generations)} generations of ranks")
    if before.noticed is not None and after.first_step is not None:
        print(
            f"the kill was noticed after {before.noticed - killed_at:.2f} s, the next generation's first step was done"
            f" after {after.first_step - killed_at:.1f} s; {len(history.lost)} steps were lost and done again, with"
            f" losses that differ by {difference:.1g}"
        )
    loss, validation = summary["loss"], summary["validation"]
    for what, found in (("training", loss), ("held-out rows", validation)):
        print(f"loss on {what}: {found['first']:.2f} at first, {found['last']:.2f} at last")


if __name__ == "__main__":
    sys.exit(main())
