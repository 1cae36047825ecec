"""Writes examples/data: instructions of mixed quality, claims with evidence, preference pairs, cards to learn to write.
Always the same.

python examples/make_data.py [--out examples/data]
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from project_text import GENERIC, Exchange, draw_node, exchanges, handbook, judgements

SEED = 7  # not the tiny model's: what it was trained on should not be all it is shown
INSTRUCTIONS = 500
PREFERENCES = 120
CARDS = 320
CARDS_HELD_OUT = 48


def sources() -> list[Exchange]:
    """The handbook, then the grammar's, each question once."""
    unique = {exchange.prompt: exchange for exchange in [*handbook(), *exchanges(seed=SEED, count=600)]}
    return list(unique.values())[:INSTRUCTIONS]


def spoil(rng: random.Random, exchange: Exchange, all_exchanges: list[Exchange], quality: str) -> str:
    """An answer of that quality to the question of `exchange`."""
    match quality:
        case "mismatched":
            return rng.choice([other for other in all_exchanges if other.response != exchange.response]).response
        case "generic":
            return rng.choice(GENERIC)
        case "cut":
            words = exchange.response.split()
            return " ".join(words[: max(1, len(words) // 3)])
        case _:
            return exchange.response


def instructions() -> Iterable[dict[str, Any]]:
    rng = random.Random(SEED)
    chosen = sources()
    rng.shuffle(chosen)
    for exchange in chosen:
        quality = rng.choices(("good", "mismatched", "generic", "cut"), weights=(70, 12, 9, 9))[0]
        yield {"prompt": exchange.prompt, "response": spoil(rng, exchange, chosen, quality), "quality": quality}


def claims() -> Iterable[dict[str, Any]]:
    for judgement in judgements(seed=SEED, texts=40, claims_each=4):
        yield {"evidence": judgement.evidence, "claim": judgement.claim, "label": judgement.label}


def preferences() -> Iterable[dict[str, Any]]:
    rng = random.Random(SEED + 1)
    chosen = sources()
    for exchange in rng.sample(chosen, PREFERENCES):
        rejected = spoil(rng, exchange, chosen, rng.choice(("mismatched", "generic", "cut")))
        yield {"prompt": exchange.prompt, "chosen": exchange.response, "rejected": rejected}


def cards() -> list[dict[str, Any]]:
    """Facts about a node, to be put on a card: a form of answer that the tiny model has not seen. No two are equal."""
    rng = random.Random(SEED + 2)
    found: dict[str, dict[str, Any]] = {}
    while len(found) < CARDS + CARDS_HELD_OUT:
        node = draw_node(rng)
        sentences = node.sentences()
        told = ["memory", *rng.sample([about for about in sentences if about != "memory"], k=rng.randint(2, 4))]
        prompt = " ".join(sentences[about] for about in told) + " Write a card."
        facts = "; ".join(f"{about} {getattr(node, about)}" for about in sentences if about in told)
        found.setdefault(prompt, {"prompt": prompt, "completion": f"Node {node.name}; {facts}."})
    return list(found.values())


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    write(out / "instructions.jsonl", instructions())
    write(out / "claims.jsonl", claims())
    write(out / "preferences.jsonl", preferences())
    write(out / "cards.jsonl", cards()[:CARDS])
    write(out / "cards-held-out.jsonl", cards()[CARDS:])


if __name__ == "__main__":
    main()
