"""What benchmarks of whole trainings share: a llama with random weights as a model folder, and rows.

Run by itself it does nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import sys
from pathlib import Path
from statistics import NormalDist

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.testbed.bed import ROOT

TOKENIZER = ROOT / "examples" / "tiny-model"
VOCABULARY = 2048  # the tokenizer's
GOLDEN = (math.sqrt(5) - 1) / 2
TEXT = (
    "a node may stop at any time and the ledger knows what was done before it did so that nothing is lost or "
    "done twice while others go on with what it held and the rows come out in the order in which they came"
)
WORDS = TEXT.split()


def add_model_options(parser: argparse.ArgumentParser, *, hidden: int, blocks: int) -> None:
    parser.add_argument("--hidden", type=int, default=hidden, help="width of the made model, a multiple of 128")
    parser.add_argument("--blocks", type=int, default=blocks)


def make_llama(folder: Path, *, hidden: int, blocks: int) -> int:
    """A model folder with the tiny model's tokenizer. Returns the number of parameters."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.models.llama import Model, ModelArgs

    config = {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": hidden * 11 // 4,
        "num_hidden_layers": blocks,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 2048,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    mx.random.seed(0)
    weights = dict(tree_flatten(Model(ModelArgs.from_dict(config)).parameters()))
    folder.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / file, folder / file)
    return sum(weight.size for weight in weights.values())


def made_rows(count: int, *, words: int = 60) -> list[dict[str, str]]:
    """Prompts and completions. Completions have log-normal lengths of median `words`, spread evenly by the golden
    ratio: any stretch of rows has the same mix, from a quarter to four times the median.
    """
    chance, normal = random.Random(1), NormalDist()
    rows = []
    for index in range(count):
        quantile = min(max((index * GOLDEN) % 1.0, 0.01), 0.99)
        length = round(words * math.exp(0.6 * normal.inv_cdf(quantile)))
        prompt = f"Question {index}: {' '.join(chance.choices(WORDS, k=8 + length // 8))}"
        rows.append({"prompt": prompt, "completion": " ".join(chance.choices(WORDS, k=length))})
    return rows


def equal_rows(count: int, *, words: int) -> list[dict[str, str]]:
    """Rows of one length in tokens, no two alike: the same words in another order."""
    chance = random.Random(1)
    completion = [WORDS[at % len(WORDS)] for at in range(words)]
    rows = []
    for _ in range(count):
        chance.shuffle(completion)
        rows.append({"prompt": "what does it say", "completion": " ".join(["so", *completion])})
    return rows


def write_rows(path: Path, rows: list[dict[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
