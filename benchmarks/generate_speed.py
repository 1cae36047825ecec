"""One node's generation against mlx_lm's own batch_generate and generate, on the same prompts in one process, in turn.

    python benchmarks/generate_speed.py [--data FILE --prompt-field F] [--model FOLDER] [--rows 96] [--new-tokens 48]

All take the same token ids and stop at the same tokens; greedy texts are compared. The figure is the median over the
turns of the ratio of generated tokens per second, by the clock and by processor time. Drawn with temperature and top_p
both do more for each token, so that is timed as well (the texts then differ: the draws do). Ours computes units as a
run cuts them. The last line says what a drawn token costs in tokens that are only read: domain.batching.DRAWN_TOKEN.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scoring_speed import EXAMPLES, cut_units, preload_blas, timed
from scoring_speed import make_scorer as make_reader

Generated = tuple[dict[str, str], int]  # text by prompt, tokens (those that end a text not counted)


def make_drawer(model: Path, sampling: Any, *, reproducible: bool = False) -> Any:
    """A scorer of the kind generate, as the worker makes it."""
    from realign_cluster.domain.job import ScoreJob
    from realign_cluster.scoring.model import load
    from realign_cluster.scoring.model_session import make_scorer
    from realign_cluster.store.model_files import describe_model

    job = ScoreJob(
        kinds=("generate",), model=describe_model(model), chat="plain", sampling=sampling, reproducible=reproducible
    )
    return make_scorer(job, load(model, job))


def cut_drawing_units(scorer: Any, rows: list[bytes]) -> list[list[bytes]]:
    """As a run cuts them: about 32 answers each."""
    from realign_cluster.domain.batching import cut_window, drawn_cost, unit_cost_of

    sampling = scorer.job.sampling
    lengths = [scorer.text_bytes(row) for row in rows]
    per_byte = sum(map(scorer.count_text_tokens, rows)) / sum(lengths)
    cost, added = unit_cost_of(sampling.max_new_tokens), drawn_cost(sampling.new_tokens)
    return [[rows[at] for at in unit] for unit in cut_window(lengths, per_byte, cost, added=added)]


def ours(scorer: Any, units: list[list[bytes]]) -> Generated:
    texts: dict[str, str] = {}
    tokens = 0
    for unit in units:
        payload, _ = scorer.compute(scorer.prepare(unit))
        for row, line in zip(unit, payload.split(b"\n"), strict=True):
            (sample,) = json.loads(line)["generate"]["samples"]
            texts[json.loads(row)["prompt"]] = sample["text"]
            tokens += sample["tokens"]
    return texts, tokens


def main() -> None:
    preload_blas()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=EXAMPLES / "data" / "instructions.jsonl")
    parser.add_argument("--prompt-field", default="prompt")
    parser.add_argument("--model", type=Path, default=EXAMPLES / "tiny-model")
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    from mlx_lm import batch_generate, generate
    from mlx_lm import load as load_peer
    from mlx_lm.sample_utils import make_sampler

    from realign_cluster.domain.job import Sampling

    parsed = [json.loads(line)[options.prompt_field] for line in options.data.read_text("utf-8").splitlines()]
    prompts = [prompt for prompt in dict.fromkeys(parsed) if prompt][: options.rows]
    rows = [json.dumps({"prompt": prompt}).encode() for prompt in prompts]
    model, tokenizer = load_peer(str(options.model))
    ids = [tokenizer.encode(prompt) for prompt in prompts]
    most = options.new_tokens
    greedy, drawing = (
        Sampling(temperature=0, max_new_tokens=most),
        Sampling(temperature=0.8, top_p=0.95, max_new_tokens=most),
    )

    def batch(**sampler: Any) -> Generated:
        found = batch_generate(model, tokenizer, ids, max_tokens=most, return_token_ids=True, **sampler)
        kept = [[token for token in each if token not in tokenizer.eos_token_ids] for each in found.token_ids]
        return dict(zip(prompts, found.texts, strict=True)), sum(map(len, kept))

    def one_by_one() -> Generated:
        texts = [generate(model, tokenizer, each, max_tokens=most) for each in ids]
        return dict(zip(prompts, texts, strict=True)), sum(len(tokenizer.encode(text)) for text in texts)

    scorers = {
        "ours, greedy": make_drawer(options.model, greedy),
        "ours, greedy, --reproducible": make_drawer(options.model, greedy, reproducible=True),
        "ours, drawn": make_drawer(options.model, drawing),
    }
    reader = make_reader(options.model, "loglik")
    read = [json.dumps({"prompt": "", "response": prompt}).encode() for prompt in prompts]

    def reading() -> Generated:
        done = [reader.compute(reader.prepare(unit))[1] for unit in cut_units(reader, read)]
        return {}, sum(work.tokens for work in done)

    def drawing_run(name: str) -> Callable[[], Generated]:
        units = cut_drawing_units(scorers[name], rows)
        return lambda: ours(scorers[name], units)

    runs: dict[str, Callable[[], Generated]] = {
        "batch_generate, greedy": batch,
        "ours, greedy": drawing_run("ours, greedy"),
        "generate one by one, greedy": one_by_one,
        "ours, greedy, --reproducible": drawing_run("ours, greedy, --reproducible"),
        "batch_generate, drawn": lambda: batch(sampler=make_sampler(0.8, top_p=0.95)),
        "ours, drawn": drawing_run("ours, drawn"),
        "prompts only read (loglik)": reading,
    }
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    results: dict[str, Generated] = {}
    for repeat in range(options.repeats + 1):
        for name, run in runs.items():
            wall, processor, results[name] = timed(run)
            tokens = results[name][1]
            if repeat:  # the first round warms up
                rates[name].append((tokens / wall, tokens / processor))

    print(
        f"{len(rows)} prompts, up to {most} tokens each, model {options.model.name}, {options.repeats} repeats in turn"
    )
    theirs, mine = results["batch_generate, greedy"][0], results["ours, greedy"][0]
    same = sum(theirs[prompt].strip() == mine[prompt].strip() for prompt in prompts)
    print(f"greedy texts equal to batch_generate's: {same} of {len(prompts)}")
    for name, found in rates.items():
        wall, processor = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"{name:30} {wall:8,.0f} tokens/s  {processor:8,.0f} tokens/s of processor  ({results[name][1]} tokens)")
    for name, peer in (
        ("ours, greedy", "batch_generate, greedy"),
        ("ours, greedy, --reproducible", "generate one by one, greedy"),
        ("ours, drawn", "batch_generate, drawn"),
    ):
        for at, what in enumerate(("by the clock", "by processor time")):
            ratios = [own[at] / other[at] for own, other in zip(rates[name], rates[peer], strict=True)]
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            print(f"{name} is {statistics.median(ratios):.2f} times {peer} {what} ({spread})")
    costs = [
        read[1] / drawn[1]
        for read, drawn in zip(rates["prompts only read (loglik)"], rates["ours, drawn"], strict=True)
    ]
    print(f"a drawn token costs {statistics.median(costs):.1f} tokens that are read, its prompt included")


if __name__ == "__main__":
    main()
