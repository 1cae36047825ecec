"""What snapshots and checkpoints cost a training that goes on beside them, at steps of a second or more.

    python benchmarks/train_state_overhead.py [--steps 48] [--kinds lora full] [--json]

Two daemons on this machine train a made llama together, on rows of one length, so that all steps are alike. Every
second step leaves a snapshot and every eighth a checkpoint instead, so a step beside which a state is written has one
next to it beside which none is: neighbours are compared, since from one run to another a machine drifts by more than
what is looked for. A step lasts from the report of the one before to its own: what holds the ranks up between steps
counts, and so does what daemons and coordinator do with the state. A checkpoint is given the two steps after it: it
goes to the run folder meanwhile.

What that comes to in a run as it is: snapshots as often as a second, short run takes them by itself, checkpoints
every hundred steps (the default). Medians, and the quartiles of the pairs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bed import machine
from made_training import add_model_options, equal_rows, make_llama, write_rows

from realign_cluster.coordinator.train_history import TrainHistory
from realign_cluster.domain.training import TrainSettings
from tests.cluster.kit import CurateCluster
from tests.cluster.train_kit import TrainCommands, history_of

NODES = ("alpha", "beta")
SNAPSHOT_EVERY, CHECKPOINT_EVERY = 2, 8
WARM_UP = 2  # steps that are left out: kernels are compiled
PACED_STEPS = 40
GOALS = {"lora": 0.01, "full": 0.03}
LEARNING_RATE = {"lora": "1e-4", "full": "1e-5"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Of one kind of training. Costs are seconds a state; fractions are of the time of a step without."""

    kind: str
    step_seconds: float  # median, nothing being written
    state_bytes: int
    snapshot_seconds: tuple[float, float, float]  # quartiles of what a snapshot adds
    checkpoint_seconds: tuple[float, float, float]
    noise: float  # standard error of the snapshots' median, seconds
    write_seconds: float  # beside the training, a snapshot
    write_cpu_seconds: float  # of these, on a processor: what it takes from a step that uses them all
    blocked_seconds: float  # that the step had to wait for a snapshot
    durable_seconds: float  # a checkpoint, synced
    snapshot_every: float  # steps, as a run chooses by itself
    pairs: int

    @property
    def overhead(self) -> float:
        every = TrainSettings.model_fields["checkpoint_every"].default
        each_step = self.snapshot_seconds[1] / self.snapshot_every + self.checkpoint_seconds[1] / every
        return each_step / self.step_seconds


def intervals(history: TrainHistory) -> dict[int, float]:
    """Seconds by step, from the report of the step before to its own."""
    return {after.step: after.wall - before.wall for before, after in itertools.pairwise(history.steps)}


def interval(taken: list[int]) -> float:
    """Steps from one snapshot to the next, once the run knows what one takes. After one alone: those that were left."""
    return statistics.median(
        [after - before for before, after in itertools.pairwise(taken)] or [PACED_STEPS - taken[0]]
    )


def quartiles(values: list[float]) -> tuple[float, float, float]:
    first, middle, last = statistics.quantiles(values, n=4, method="inclusive")
    return first, middle, last


def judge(kind: str, history: TrainHistory, paced: TrainHistory) -> Found:
    lasted = {step: seconds for step, seconds in intervals(history).items() if step > WARM_UP}
    written: dict[str, list[Any]] = {"snapshot": [], "checkpoint": []}
    for _, kept in history.kept:
        written[kept.part.kind].append(kept)
    states = {kept.part.step: kind for kind, all_kept in written.items() for kept in all_kept}
    beside = {step: states.get(step - 1, "") for step in lasted}
    # in the second step after a checkpoint nothing is written, but its way to the run folder may not be over
    plain = {step for step in lasted if not beside[step] and states.get(step - 2) != "checkpoint"}
    pairs = [
        lasted[step] - statistics.mean(lasted[near] for near in (step - 1, step + 1) if near in plain)
        for step in lasted
        if beside[step] == "snapshot" and {step - 1, step + 1} & plain
    ]
    without = statistics.median(lasted[step] for step in plain)
    checkpoints = [
        lasted[step] + lasted[step + 1] - 2 * without
        for step in lasted
        if beside[step] == "checkpoint" and step + 1 in lasted
    ]
    taken = sorted({kept.part.step for _, kept in paced.kept if kept.part.kind == "snapshot"})
    return Found(
        kind=kind,
        step_seconds=without,
        state_bytes=written["snapshot"][0].part.bytes,
        snapshot_seconds=quartiles(pairs),
        checkpoint_seconds=quartiles(checkpoints),
        write_seconds=statistics.median(kept.seconds for kept in written["snapshot"]),
        write_cpu_seconds=statistics.median(kept.cpu_seconds for kept in written["snapshot"]),
        blocked_seconds=statistics.median(kept.blocked_seconds for kept in written["snapshot"]),
        durable_seconds=statistics.median(kept.seconds for kept in written["checkpoint"]),
        snapshot_every=interval(taken),
        noise=1.25 * statistics.stdev(pairs) / len(pairs) ** 0.5,
        pairs=len(pairs),
    )


class Bench:
    def __init__(self, commands: TrainCommands, folder: Path, options: argparse.Namespace) -> None:
        self._commands = commands
        self._folder = folder
        self._options = options
        self.parameters = make_llama(folder / "model", hidden=options.hidden, blocks=options.blocks)
        self._data = write_rows(folder / "rows.jsonl", equal_rows(4 * options.rows, words=options.words))

    def measure(self, kind: str) -> Found:
        states = ("--snapshot-every", str(SNAPSHOT_EVERY), "--checkpoint-every", str(CHECKPOINT_EVERY))
        return judge(kind, self._train(kind, self._options.steps, *states), self._train(kind, PACED_STEPS))

    def _train(self, kind: str, steps: int, *more: str) -> TrainHistory:
        out = self._folder / f"{kind}-{'asked' if more else 'paced'}"
        command = self._commands.command(
            self._data, out, "--fine-tune", kind, "--steps", str(steps), "--global-batch", str(self._options.rows),
            "--layers", "-1", "--learning-rate", LEARNING_RATE[kind], "--parallel", "data", *more,
            model=self._folder / "model",
        )  # fmt: skip
        self._commands.start(command, out).finish(seconds=600.0 + steps * 30.0)
        return history_of(out)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    described = machine()
    with tempfile.TemporaryDirectory() as name:
        cluster = CurateCluster(Path(name))
        try:
            for node in NODES:
                cluster.start(node, cores=1)
            with TrainCommands(cluster) as commands:
                bench = Bench(commands, Path(name), options)
                found = []
                for kind in options.kinds:
                    print(f"{time.strftime('%H:%M:%S')} {kind}", file=sys.stderr, flush=True)
                    found.append(bench.measure(kind))
        finally:
            cluster.close()
    return {
        "machine": described,
        "load_after": machine().rpartition("load ")[2],
        "date": time.strftime("%Y-%m-%d"),
        "parameters": bench.parameters,
        "found": found,
    }


def table(measured: dict[str, Any]) -> str:
    lines = [
        f"{measured['machine']} (after: {measured['load_after']}); {measured['date']}",
        f"llama of {measured['parameters'] / 1e6:.1f} million parameters on {len(NODES)} nodes of one core",
    ]
    for each in measured["found"]:
        rate = each.state_bytes / each.write_seconds / 1e6
        held = each.blocked_seconds + each.write_cpu_seconds
        lines += [
            "",
            f"{each.kind}: steps of {each.step_seconds:.2f} s, states of {each.state_bytes / 1e6:.1f} MB on each node;"
            f" {each.pairs} pairs",
            f"  a snapshot adds   {_milliseconds(each.snapshot_seconds)} to a step; by the rank's own measure it waits"
            f" {each.blocked_seconds * 1e3:.1f} ms, and {each.write_cpu_seconds * 1e3:.1f} ms of a processor go into"
            f" writing ({each.write_seconds * 1e3:.0f} ms by the clock, {rate:,.0f} MB/s)",
            f"  a checkpoint adds {_milliseconds(each.checkpoint_seconds)} to two steps; written and synced in"
            f" {each.durable_seconds * 1e3:.0f} ms",
            f"  in all {each.overhead:.2%} with a snapshot every {each.snapshot_every:g} steps, as the run takes them,"
            f" and a checkpoint every hundred (goal {GOALS[each.kind]:.0%}); by the rank's own measure of snapshots"
            f" {held / each.snapshot_every / each.step_seconds:.2%}",
        ]
        if each.noise > GOALS[each.kind] * each.step_seconds * each.snapshot_every:
            lines.append(f"  the machine is not quiet: the figure of a snapshot is known to {each.noise * 1e3:.0f} ms")
        if each.step_seconds < 1:
            lines.append("  steps are shorter than a second here: a larger --hidden or --rows")
        if each.write_seconds > each.step_seconds:
            lines.append(
                "  writing takes longer than a step: it reaches into the next one, and more than this is added"
            )
    return "\n".join(lines)


def _milliseconds(found: tuple[float, float, float]) -> str:
    first, middle, last = (value * 1e3 for value in found)
    return f"{middle:+.1f} ms (quartiles {first:+.1f} to {last:+.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=48, help="of the run whose steps are compared")
    parser.add_argument("--kinds", nargs="+", choices=list(GOALS), default=list(GOALS))
    parser.add_argument("--rows", type=int, default=48, help="of one step")
    parser.add_argument("--words", type=int, default=40, help="of a completion")
    parser.add_argument("--json", action="store_true", help="the figures as JSON on standard output")
    add_model_options(parser, hidden=384, blocks=4)
    options = parser.parse_args()
    found = measure(options)
    if options.json:
        print(json.dumps(found, indent=1, default=lambda each: {name: getattr(each, name) for name in each.__slots__}))
    else:
        print(table(found))


if __name__ == "__main__":
    main()
