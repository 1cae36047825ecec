"""Two unequal hosts that train one LoRA: `realign-launch ... train` against mlx_lm.lora under mlx.launch, in turn.

    python benchmarks/train_two_hosts.py [--steps 9] [--turns 1] [--rows 32] [--hidden 512] [--blocks 4] [--json]

On the test bed, hosts of 65.5 % and 34.5 % of one CPU: a split by speed can be 1.449 times as fast as an equal one, if
nothing but shares differs. Both train the same made llama on the same rows of mixed lengths, with the same adapters,
optimizer and BLAS, over MLX's ring:

    ours      after a short training from which the cluster knows how fast its hosts are
    mlx_lm    the same batches: the rows lie in its file in the order of our steps (it takes the steps in another
              order); what its trainer counts is compared to see that it is so. Every batch is padded to its longest row
    by length mlx_lm with the rows sorted by length in its file: other batches, with nearly no padding

The first third of each side's steps is left out: kernels are compiled. Ours is timed from the report of one step to
that of another, states and all that is between steps included; mlx_lm by what its trainer says of its steps. Tokens
are those of the rows, without padding. The whole commands are timed too, from start to exit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bed import COORDINATOR, CpuMeter, bed_of, machine
from made_training import add_model_options, made_rows, make_llama, write_rows
from transformers import AutoTokenizer

from realign_cluster.coordinator.train_history import TrainHistory, read_train_history
from realign_cluster.domain.batch_order import rows_of_step
from realign_cluster.node.blas import find_openblas
from realign_cluster.store.train_ledger import TrainLedgerReader
from tests.testbed.bed import ROOT, Bed

SHARES = {"m4max-1": 65.5, "m3ultra-1": 34.5}
RATE = 1e-4
RANK, SCALE = 8, 20.0
PAD_TO = 32  # both make sequences a multiple of this
WARM_UP_STEPS = 4
SEED = 0
GOAL = 1.3
SIDES = ("ours", "mlx_lm", "by length")
# A sum over two equal halves lasts as long as the slower one takes for half of the work.
CEILING = sum(SHARES.values()) / (2 * min(SHARES.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One training. `seconds` and `tokens` (of rows, without padding) are of the steps that count."""

    tokens: int
    padding: float  # of these, added
    seconds: float
    whole_seconds: float  # of the command
    cpu: dict[str, float]  # % of one CPU that each host was given in the steps that count
    shares: dict[str, float]
    waited: dict[str, float]  # fraction of the steps' time that each host spent in all-reduce, where known

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


class Bench:
    def __init__(self, bed: Bed, meter: CpuMeter, options: argparse.Namespace) -> None:
        self._bed = bed
        self._meter = meter
        self._options = options
        self._first = options.steps // 3
        self._model = bed.state / "model"
        self.parameters = make_llama(self._model, hidden=options.hidden, blocks=options.blocks)
        rows = made_rows(options.steps * options.rows, words=options.words)
        self._ours = write_rows(bed.state / "ours" / "train.jsonl", rows)
        lengths = token_counts(self._model, rows)
        steps = [rows_of_step(SEED, step, len(rows), options.rows) for step in range(options.steps)]
        self._orders = {"mlx_lm": [at for step in steps for at in step]}
        self._orders["by length"] = sorted(range(len(rows)), key=lambda at: lengths[at])
        self._lengths = {name: [lengths[at] for at in order] for name, order in self._orders.items()}
        for name, order in self._orders.items():
            write_rows(bed.state / name / "train.jsonl", [rows[at] for at in order])

    def warm_up(self) -> None:
        self._train("warm-up", WARM_UP_STEPS)

    # --- ours ---

    def ours(self, number: int) -> Turn:
        folder = f"run-{number}"
        whole = self._train(folder, self._options.steps)
        history = _history(self._bed.disk(COORDINATOR) / folder)
        tokens = [sum(lengths) for lengths in batched(self._lengths["mlx_lm"], self._options.rows)]
        assert [step.tokens for step in history.steps] == tokens
        start, counted = history.steps[self._first - 1].wall, history.steps[self._first :]
        end = counted[-1].wall
        own = {host: sum(step.ranks[host].own_tokens for step in counted) for host in SHARES}
        padded = sum(rank.own_padded for step in counted for rank in step.ranks.values())
        total = sum(own.values())
        return Turn(
            tokens=total,
            padding=padded / total - 1,
            seconds=end - start,
            whole_seconds=whole,
            cpu=self._cpu(start, end),
            shares={host: tokens / total for host, tokens in own.items()},
            waited={host: sum(step.ranks[host].reduce_seconds for step in counted) / (end - start) for host in SHARES},
        )

    def _train(self, folder: str, steps: int) -> float:
        """Seconds of the command."""
        options = self._options
        began = time.time()
        self._bed.python(
            *(COORDINATOR, "realign_launcher.main", "--hostfile", self._bed.hostfile(*SHARES, cores=1), "train"),
            *("--data", self._ours, "--model", self._model, "--out", self._bed.data / folder),
            *("--steps", steps, "--global-batch", options.rows, "--parallel", "data", "--backend", "ring"),
            *("--rank", RANK, "--scale", SCALE, "--layers", -1, "--learning-rate", RATE, "--schedule", "constant"),
            *("--clip-norm", 0, "--seed", SEED, "--no-mask-prompt"),
            seconds=600.0 + steps * 60.0,
        ).ok()
        return time.time() - began

    # --- theirs ---

    def theirs(self, which: str, number: int) -> Turn:
        options, folder = self._options, self._bed.state / which
        reports, said = folder / f"reports-{number}.jsonl", folder / f"said-{number}.log"
        settings = {
            "lora_parameters": {"rank": RANK, "dropout": 0.0, "scale": SCALE},
            "optimizer_config": {"adamw": {"weight_decay": 0.01, "bias_correction": True}},
        }
        config = folder / "settings.yaml"
        config.write_text(json.dumps(settings))
        environment = {"OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "TERM": "dumb"}
        if (library := find_openblas()) is not None:
            environment["LD_PRELOAD"] = str(library)
        command = [
            *(sys.executable, "-c", "from mlx._distributed_utils.launch import main; main()", "--backend", "ring"),
            *("--hostfile", self._bed.hostfile(*SHARES), "--cwd", ROOT),
            *(word for name, value in environment.items() for word in ("--env", f"{name}={value}")),
            *("--", sys.executable, ROOT / "benchmarks" / "mlx_lm_lora.py", reports, "--train"),
            *("--model", self._model, "--data", folder, "--fine-tune-type", "lora"),
            *("--num-layers", "-1", "--batch-size", options.rows, "--iters", options.steps, "--optimizer", "adamw"),
            *("--learning-rate", RATE, "--seed", SEED, "--steps-per-report", self._first),
            *("--save-every", 10**9, "--adapter-path", folder / f"adapters-{number}", "-c", config),
        ]
        began = time.time()
        with said.open("w") as log:
            # an open pipe: on a closed standard input mlx.launch would spin
            process = subprocess.Popen(
                self._bed.command(COORDINATOR, command), stdin=subprocess.PIPE, stdout=log, stderr=log
            )
            try:
                status = process.wait(options.steps * 60.0)
            finally:
                process.kill()
        ended = time.time()
        if status or not reports.exists():
            sys.exit(f"mlx.launch: exit status {status}\n{said.read_text()[-4000:]}")
        found = [json.loads(line) for line in reports.read_text().splitlines()]
        batches = list(batched(self._lengths[which], options.rows))
        np.random.seed(SEED)  # as mlx_lm.lora does before it draws the order of its batches
        order = np.random.permutation(options.steps)[self._first :].tolist()
        halves = [batches[step][rank::2] for step in order for rank in range(2)]
        padded = sum(len(half) * -(-(max(half) + 1) // PAD_TO) * PAD_TO for half in halves)
        tokens = sum(sum(batches[step]) for step in order)
        # its own count is of what is predicted, and of one token of padding for each row
        if round(found[-1]["trained_tokens"] - found[0]["trained_tokens"]) != tokens + options.rows * len(order):
            sys.exit(f"mlx_lm's trainer counts other tokens than these batches have: {found}, {tokens}")
        seconds = sum(self._first / report["iterations_per_second"] for report in found[1:])
        return Turn(
            tokens=tokens,
            padding=padded / tokens - 1,
            seconds=seconds,
            whole_seconds=ended - began,
            cpu=self._cpu(ended - seconds - 1, ended - 1),
            shares={},
            waited={},
        )

    def _cpu(self, begin: float, end: float) -> dict[str, float]:
        return {host: self._meter.percent(host, begin, end) for host in SHARES}


def token_counts(model: Path, rows: Sequence[dict[str, str]]) -> list[int]:
    """Of each row, as both sides make a conversation of it: what is read, all but the last."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    return [
        len(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}],
                return_dict=False,
            )
        )
        - 1
        for row in rows
    ]


def batched(values: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (values[at : at + size] for at in range(0, len(values), size))


def _history(folder: Path) -> TrainHistory:
    with closing(TrainLedgerReader(folder / "ledger.sqlite")) as ledger:
        return read_train_history(ledger)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    def say(text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

    described = machine()
    turns: dict[str, list[Turn]] = {name: [] for name in SIDES}
    with bed_of(SHARES) as bed, CpuMeter(bed) as meter:
        bench = Bench(bed, meter, options)
        say(f"{bench.parameters / 1e6:.1f} million parameters; a short training, for the hosts' speeds")
        bench.warm_up()
        for number in range(options.turns):
            for name in SIDES:
                turn = bench.ours(number) if name == "ours" else bench.theirs(name, number)
                turns[name].append(turn)
                say(f"{name}: {turn.rate:,.0f} tokens/s, {turn.whole_seconds:.0f} s in all")
    return {
        "machine": described,
        "load_after": machine().rpartition("load ")[2],
        "date": time.strftime("%Y-%m-%d"),
        "quota": SHARES,
        "ceiling": CEILING,
        "parameters": bench.parameters,
        "rows": options.rows,
        "steps": options.steps,
        "left_out": options.steps // 3,
        "turns": {name: [asdict(turn) | {"rate": turn.rate} for turn in found] for name, found in turns.items()},
        "times_as_fast_as": {
            name: [ours.rate / each.rate for ours, each in zip(turns["ours"], found, strict=True)]
            for name, found in turns.items()
            if name != "ours"
        },
        "whole_command_times_as_fast_as": {
            name: [each.whole_seconds / ours.whole_seconds for ours, each in zip(turns["ours"], found, strict=True)]
            for name, found in turns.items()
            if name != "ours"
        },
    }


def table(found: dict[str, Any]) -> str:
    counted = found["steps"] - found["left_out"]
    lines = [
        f"{found['machine']} (after: {found['load_after']}); {found['date']}",
        f"llama of {found['parameters'] / 1e6:.1f} million parameters; {found['steps']} steps of {found['rows']} rows,"
        f" of which {counted} count",
        "",
        f"{'':10} {'tokens/s':>9} {'s a step':>9} {'padding':>8} {'command':>8}   CPU given, % of one",
    ]
    for name, turns in found["turns"].items():
        for turn in turns:
            given = "  ".join(f"{host} {percent:.1f}" for host, percent in turn["cpu"].items())
            shares = " : ".join(f"{share:.3f}" for share in turn["shares"].values())
            waited = " : ".join(f"{part:.1%}" for part in turn["waited"].values())
            lines.append(
                f"{name:10} {turn['rate']:9,.0f} {turn['seconds'] / counted:9.2f} {turn['padding']:8.0%}"
                f" {turn['whole_seconds']:6.0f} s   {given}"
                + (f"; shares {shares}; in all-reduce {waited}" if shares else "")
            )
    lines.append("")
    for name, ratios in found["times_as_fast_as"].items():
        whole = found["whole_command_times_as_fast_as"][name]
        lines.append(
            f"ours is {statistics.median(ratios):.2f} times as fast as {name} ({_spread(ratios)}), the whole command"
            f" {statistics.median(whole):.2f} times ({_spread(whole)})"
        )
    lines.append(f"goal {GOAL}; {found['ceiling']:.3f} is what shares alone can bring")
    return "\n".join(lines)


def _spread(values: Iterable[float]) -> str:
    ordered = sorted(values)
    return f"{ordered[0]:.2f} to {ordered[-1]:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=9, help="of each training, a multiple of 3")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--rows", type=int, default=32, help="of one step, over both hosts")
    parser.add_argument("--words", type=int, default=30, help="median of a completion")
    parser.add_argument("--json", action="store_true", help="the figures as JSON on standard output")
    add_model_options(parser, hidden=512, blocks=4)
    options = parser.parse_args()
    found = measure(options)
    print(json.dumps(found, indent=1) if options.json else table(found))


if __name__ == "__main__":
    main()
