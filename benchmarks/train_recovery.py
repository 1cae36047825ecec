"""From a kill to the next new step of a training, against a cold start of the same ranks in the same run.

    python benchmarks/train_recovery.py [--runs 3] [--hidden 256] [--blocks 4] [--json]

Two daemons on this machine train a made llama together. In each run a rank and a daemon are killed with SIGKILL, in an
order that changes from run to run; a daemon is started again at once, as launchd or systemd would. All times are those
of the run's own ledger, apart from the moment of the kill:

    noticed   from the kill until the coordinator knows that the generation cannot go on
    stopped   until the last rank of that generation is known to be dead
    planned   until the next generation's ranks are started (a daemon that died is back by then)
    loaded    until all of its ranks have model, data and a verified state
    joined    until MLX has made their group
    stepped   until the first new step

A cold start is the way of the run's first generation from "started" to its first step, which nothing cached.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from bed import machine
from made_training import add_model_options, made_rows, make_llama, write_rows

from realign_cluster.coordinator.train_generations import GenerationRecord, takeover
from tests.cluster.kit import CurateCluster
from tests.cluster.train_kit import TrainCommands, history_of

Victim = Literal["rank", "daemon"]
VICTIMS: tuple[Victim, ...] = ("rank", "daemon")
NODES = ("alpha", "beta")
STEPS_BETWEEN = 4
GOAL = 2.0
PHASES = ("noticed", "stopped", "planned", "fetched", "loaded", "joined", "stepped")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    victim: Victim
    phases: dict[str, float]  # seconds, by what was reached at their end; "noticed" from the kill
    lost: int  # steps that were done again
    cold_seconds: float  # of the same run

    @property
    def seconds(self) -> float:
        """From detection to the first new step."""
        return sum(seconds for name, seconds in self.phases.items() if name != "noticed")

    @property
    def ratio(self) -> float:
        return self.seconds / self.cold_seconds


def recovery(
    victim: Victim, killed_at: float, before: GenerationRecord, after: GenerationRecord, cold: float
) -> Recovery:
    assert before.noticed is not None
    phases = {"noticed": before.noticed - killed_at}
    for phase in takeover(before, after):
        if phase.name != "noticed":
            phases[phase.name] = phases.get(phase.name, 0.0) + phase.end - phase.begin
    lost = max(0, before.last_step - after.start_step)
    return Recovery(victim=victim, phases=phases, lost=lost, cold_seconds=cold)


class Bench:
    def __init__(self, commands: TrainCommands, folder: Path, options: argparse.Namespace) -> None:
        self._commands = commands
        self._folder = folder
        self.parameters = make_llama(folder / "model", hidden=options.hidden, blocks=options.blocks)
        self._data = write_rows(folder / "rows.jsonl", made_rows(40 * options.rows, words=20))
        self._rows = options.rows

    def run(self, number: int) -> list[Recovery]:
        """A training with a kill of each kind."""
        steps = STEPS_BETWEEN * (len(VICTIMS) + 1) + 4
        out = self._folder / f"run-{number}"
        command = self._commands.command(
            self._data, out, "--steps", str(steps), "--global-batch", str(self._rows), "--layers", "-1",
            "--parallel", "data", "--snapshot-every", "1", model=self._folder / "model",
        )  # fmt: skip
        training = self._commands.start(command, out)
        kills: list[tuple[Victim, float]] = []
        for victim in VICTIMS if number % 2 else VICTIMS[::-1]:
            training.reach(training.last_step() + STEPS_BETWEEN, generation=len(kills) + 1)
            kills.append((victim, self._kill(victim, NODES[number // 2 % 2])))
            training.wait_for(lambda: training.generation > len(kills), "the next generation")
        training.finish()
        generations = history_of(out).generations
        first = generations[0]
        assert first.first_step is not None
        cold = first.first_step - first.started
        assert len(generations) == len(kills) + 1, [each.why for each in generations]
        return [
            recovery(victim, at, before, after, cold)
            for (victim, at), (before, after) in zip(kills, itertools.pairwise(generations), strict=True)
        ]

    def _kill(self, victim: Victim, node: str) -> float:
        """When it was."""
        daemon = self._commands.cluster.daemons[node]
        at = time.time()
        if victim == "rank":
            os.kill(self._commands.rank(node), signal.SIGKILL)
        else:
            daemon.kill()
            daemon.start()
        return at


def measure(options: argparse.Namespace) -> dict[str, Any]:
    described = machine()
    found: list[Recovery] = []
    with tempfile.TemporaryDirectory() as name:
        cluster = CurateCluster(Path(name))
        try:
            for node in NODES:
                cluster.start(node, cores=1)
            with TrainCommands(cluster) as commands:
                bench = Bench(commands, Path(name), options)
                for number in range(options.runs):
                    found += bench.run(number)
                    print(
                        f"{time.strftime('%H:%M:%S')} run {number + 1} of {options.runs}", file=sys.stderr, flush=True
                    )
        finally:
            cluster.close()
    return {
        "machine": described,
        "load_after": machine().rpartition("load ")[2],
        "date": time.strftime("%Y-%m-%d"),
        "parameters": bench.parameters,
        "recoveries": found,
    }


def table(measured: dict[str, Any]) -> str:
    found: list[Recovery] = measured["recoveries"]
    names = [name for name in PHASES if any(name in each.phases for each in found)]
    cold = sorted({each.cold_seconds for each in found})
    lines = [
        f"{measured['machine']} (after: {measured['load_after']}); {measured['date']}",
        f"llama of {measured['parameters'] / 1e6:.1f} million parameters on {len(NODES)} nodes of one core; cold starts"
        f" of the ranks: {', '.join(f'{seconds:.1f}' for seconds in cold)} s",
        "",
        f"{'killed':8} {'lost':>4} "
        + " ".join(f"{name:>8}" for name in names)
        + f" {'detected to step':>17} {'x cold':>7}",
    ]
    for each in sorted(found, key=lambda each: each.victim):
        seconds = " ".join(f"{each.phases.get(name, 0.0):6.2f} s" for name in names)
        lines.append(f"{each.victim:8} {each.lost:>4} {seconds} {each.seconds:15.1f} s {each.ratio:7.2f}")
    for victim in VICTIMS:
        ratios = [each.ratio for each in found if each.victim == victim]
        lines.append(
            f"a {victim}: median {statistics.median(ratios):.2f} times a cold start, at most {max(ratios):.2f}"
            f" (goal {GOAL:g})"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="trainings, each with both kills")
    parser.add_argument("--rows", type=int, default=16, help="of one step")
    parser.add_argument("--json", action="store_true", help="the figures as JSON on standard output")
    add_model_options(parser, hidden=256, blocks=4)
    options = parser.parse_args()
    found = measure(options)
    if options.json:
        print(json.dumps(found | {"recoveries": [asdict(each) for each in found["recoveries"]]}, indent=1))
    else:
        print(table(found))


if __name__ == "__main__":
    main()
