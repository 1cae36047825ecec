"""One node's scoring speed against mlx_lm's own log-likelihood (mlx_lm.evaluate), on the same rows in one process.

    python benchmarks/scoring_speed.py [--data FILE --prompt-field F --response-field F] [--model FOLDER] [--rows 400]

Both tokenise and score the same prompts and responses as plain text; the sums are compared. They take turns, and the
figure is the median over the turns of the ratio, by the clock and, for machines that do other things as well, by
processor time (which says nothing of a GPU). On Linux the program starts itself again with OpenBLAS preloaded, so
that both get it. The worker's full task (loglik and ifd) is timed as well.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OPENBLAS = Path("/usr/lib/x86_64-linux-gnu/openblas-pthread/libblas.so.3")
EXAMPLES = Path(__file__).parents[1] / "examples"


def preload_blas() -> None:
    """Start again with OpenBLAS and one thread, unless the caller chose."""
    if sys.platform == "linux" and OPENBLAS.exists() and "LD_PRELOAD" not in os.environ:
        threads = os.environ.get("OPENBLAS_NUM_THREADS", "1")
        environment = {**os.environ, "LD_PRELOAD": str(OPENBLAS), "OPENBLAS_NUM_THREADS": threads}
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)


@dataclass(frozen=True, slots=True)
class Request:
    """What mlx_lm.evaluate gets from lm_eval: `args` are context and continuation."""

    args: tuple[str, str]


def load_peer(model: Path) -> Any:
    """mlx_lm.evaluate's MLXLM. Of lm_eval it needs only a base class and a decorator, which stand in where it is
    missing.
    """
    os.environ["TQDM_DISABLE"] = "1"
    try:
        importlib.import_module("lm_eval")
    except ImportError:
        names = ("lm_eval", "lm_eval.api", "lm_eval.api.model", "lm_eval.api.registry")
        modules: dict[str, Any] = {name: types.ModuleType(name) for name in names}
        modules["lm_eval.api.model"].LM = object
        modules["lm_eval.api.registry"].register_model = lambda name: lambda found: found
        sys.modules.update(modules)
    from mlx_lm.evaluate import MLXLM

    return MLXLM(str(model), use_chat_template=False)


def make_scorer(model: Path, *kinds: str, reproducible: bool = False) -> Any:
    """A scorer as the worker makes it."""
    from realign_cluster.domain.job import ScoreJob
    from realign_cluster.scoring import device
    from realign_cluster.scoring.encode import TextEncoder
    from realign_cluster.scoring.forward import Forward
    from realign_cluster.scoring.model import load
    from realign_cluster.scoring.model_session import shape_for
    from realign_cluster.scoring.scorer import Scorer
    from realign_cluster.store.model_files import describe_model

    job = ScoreJob(kinds=kinds, model=describe_model(model), chat="plain", max_tokens=8192, reproducible=reproducible)
    loaded = load(model, job)
    encoder = TextEncoder(loaded.tokenizer, chat=job.chat, max_tokens=job.max_tokens, truncate=job.truncate)
    on_cpu = device.backend() == "cpu"
    forward = Forward(loaded.split, shape_for(job, loaded), on_cpu=on_cpu, one_by_one=reproducible)
    return Scorer(job, encoder, forward)


def cut_units(scorer: Any, rows: list[bytes]) -> list[list[bytes]]:
    """As a run cuts them: sorted by length, about UNIT_COST tokens each."""
    from realign_cluster.domain.batching import cut_window

    lengths = [scorer.text_bytes(row) for row in rows]
    per_byte = sum(map(scorer.count_text_tokens, rows)) / sum(lengths)
    return [[rows[at] for at in unit] for unit in cut_window(lengths, per_byte)]


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """(seconds, processor seconds, result)."""
    wall, processor = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - wall, time.process_time() - processor, result


def main() -> None:
    preload_blas()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=EXAMPLES / "data" / "instructions.jsonl")
    parser.add_argument("--prompt-field", default="prompt")
    parser.add_argument("--response-field", default="response")
    parser.add_argument("--model", type=Path, default=EXAMPLES / "tiny-model")
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    parsed = [json.loads(line) for line in options.data.read_text(encoding="utf-8").splitlines()]
    pairs = [(row[options.prompt_field], row[options.response_field]) for row in parsed]
    pairs = [pair for pair in pairs if pair[0] and pair[1]][: options.rows]
    rows = [json.dumps({"prompt": prompt, "response": response}).encode() for prompt, response in pairs]

    peer = load_peer(options.model)
    requests = [Request(pair) for pair in pairs]
    scorer, reproducible = make_scorer(options.model, "loglik"), make_scorer(options.model, "loglik", reproducible=True)
    task = make_scorer(options.model, "loglik", "ifd")
    units = cut_units(scorer, rows)

    def ours(which: Any) -> tuple[dict[bytes, float | None], int]:
        sums: dict[bytes, float | None] = {}
        tokens = 0
        for unit in units:
            payload, work = which.compute(which.prepare(unit))
            tokens += work.tokens
            for row, line in zip(unit, payload.split(b"\n"), strict=True):
                sums[row] = json.loads(line)["loglik"]["sum"]
        return sums, tokens

    runs: dict[str, Callable[[], Any]] = {
        "mlx_lm.evaluate": lambda: [value for value, _ in peer.loglikelihood(requests)],
        "scoring worker": lambda: ours(scorer),
        "scoring worker, --reproducible": lambda: ours(reproducible),
        "scoring worker, loglik and ifd": lambda: ours(task),
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    results: dict[str, Any] = {}
    for repeat in range(options.repeats + 1):
        for name, run in runs.items():
            wall, processor, results[name] = timed(run)
            if repeat:  # the first round warms up
                seconds[name].append((wall, processor))

    sums, tokens = results["scoring worker"]
    tokens_of = dict.fromkeys(runs, tokens) | {
        "scoring worker, loglik and ifd": results["scoring worker, loglik and ifd"][1]
    }
    differences = [
        abs(found - sums[row]) / max(len(row), 1)
        for row, found in zip(rows, results["mlx_lm.evaluate"], strict=True)
        if sums[row] is not None
    ]
    print(f"{len(rows)} rows, {tokens} tokens, model {options.model.name}, {options.repeats} repeats in turn")
    print(f"largest difference of the sums: {max(differences):.2e} nats per byte of its row")
    for name, times in seconds.items():
        wall, processor = (statistics.median(column) for column in zip(*times, strict=True))
        rate = tokens_of[name] / wall
        print(f"{name:32} {wall:8.2f} s  {processor:8.2f} s of processor  {rate:10,.0f} tokens/s")
    for name in list(runs)[1:3]:
        turns = list(zip(seconds["mlx_lm.evaluate"], seconds[name], strict=True))
        for at, what in enumerate(("by the clock", "by processor time")):
            ratios = [theirs[at] / mine[at] for theirs, mine in turns]
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            print(f"{name} is {statistics.median(ratios):.2f} times mlx_lm.evaluate {what} ({spread})")


if __name__ == "__main__":
    main()
