"""Makes the tiny model that the workflows train: a llama of half a million random weights, a tokenizer of the
world's words. No training, no download; the same seed gives the same weights.

    python examples/knowledge_base/make_model.py --out FOLDER [--seed 0]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from world import FIRST, SECOND, all_words

SPECIAL = ("[PAD]", "[UNK]", "[END]")
WORDING = (
    *(
        "[1]",
        "[2]",
        "[3]",
        "[4]",
        ".",
        ",",
        ":",
        "?",
        "the",
        "do",
        "what",
        "not",
        "say",
        "sources",
        "question",
        "answer",
    ),
    *("something", "copy", "again", "of", "is", "restate", "and", "tell", "people", "who", "are", "known"),
    *("for", "story", "once", "there", "were", "they", "loved", "feared", "nothing", "always", "never", "old", "young"),
    *("happy", "proud", "choose", "or", "a", "b"),
)


def vocabulary() -> dict[str, int]:
    """Token to id: special tokens, punctuation and wording, the world's words, syllables of names."""
    second = [f"##{syllable}" for syllable in SECOND]
    tokens = dict.fromkeys([*SPECIAL, *WORDING, *all_words(), *FIRST, *second])
    return {token: place for place, token in enumerate(tokens)}


def make_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocabulary(), unk_token="[UNK]", continuing_subword_prefix="##"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(Regex(r"\[\d\]|[.,:?]"), behavior="isolated"),
        ]
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return tokenizer


def config() -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "attention_bias": True,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "vocab_size": len(vocabulary()),
        "eos_token_id": SPECIAL.index("[END]"),
        "pad_token_id": SPECIAL.index("[PAD]"),
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "torch_dtype": "float32",
    }


def make_weights(seed: int) -> dict[str, mx.array]:
    """Random, but not without order: attention begins as a lookup that training has to sharpen.

    Embeddings and the feed-forward layers are normal, of standard deviation 1 / sqrt(width); norms are ones. The heads
    of the first layer attend, by their biases alone, one token back (the last head two), and write what stood there
    turned by a random rotation. The other layers' keys undo that rotation, so that a token's query finds the tokens
    that stood behind its like; values go through unchanged.
    """
    model, settings = llama.Model(llama.ModelArgs.from_dict(config())), config()
    shapes = sorted((name, weight.shape) for name, weight in tree_flatten(model.parameters()))
    keys = mx.random.split(mx.random.key(seed), len(shapes))
    weights = {
        name: mx.ones(shape)
        if "norm" in name
        else mx.zeros(shape)
        if name.endswith("bias")
        else mx.random.normal(shape, scale=shape[-1] ** -0.5, key=key)
        for (name, shape), key in zip(shapes, keys, strict=True)
    }
    rng = np.random.default_rng(seed)
    turn = _rotation(rng, settings["hidden_size"])
    for layer in range(settings["num_hidden_layers"]):
        attention = f"model.layers.{layer}.self_attn"
        value, query = _rotation(rng, settings["hidden_size"]), weights[f"{attention}.q_proj.weight"]
        first = layer == 0
        weights[f"{attention}.v_proj.weight"] = value
        weights[f"{attention}.o_proj.weight"] = 0.1 * turn @ value.T if first else value.T
        query = query * (0.15 if first else 1.5)
        weights[f"{attention}.q_proj.weight"], weights[f"{attention}.k_proj.weight"] = query, query @ turn.T
        weights[f"model.layers.{layer}.mlp.down_proj.weight"] *= 0.1
    bias = _looking_back(settings, (1, 1, 1, 2))
    weights["model.layers.0.self_attn.q_proj.bias"], weights["model.layers.0.self_attn.k_proj.bias"] = bias
    return weights


def _rotation(rng: np.random.Generator, width: int) -> mx.array:
    return mx.array(np.linalg.qr(rng.normal(size=(width, width)))[0].astype(np.float32))


def _looking_back(settings: Mapping[str, Any], back: Sequence[int], strength: float = 8.0) -> tuple[mx.array, mx.array]:
    """Biases of queries and keys with which head h attends `back[h]` tokens back, whatever the tokens are.

    With rotary positions the score of two constant vectors is the sum over frequencies w of strength^2 cos(w d), where
    d is their distance less `back`: greatest at d = 0.
    """
    half = settings["hidden_size"] // settings["num_attention_heads"] // 2
    frequencies = settings["rope_theta"] ** (-np.arange(half) / half)
    queries = [np.concatenate([np.cos(frequencies * each), -np.sin(frequencies * each)]) * strength for each in back]
    keys = [np.concatenate([np.full(half, strength), np.zeros(half)]) for _ in back]
    return tuple(mx.array(np.concatenate(each).astype(np.float32)) for each in (queries, keys))  # type: ignore[return-value]


def write_folder(folder: Path, weights: Mapping[str, mx.array], dtype: str = "float32") -> None:
    """A model folder as mlx-lm reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    make_tokenizer().save(str(folder / "tokenizer.json"))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(weights), {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config() | {"torch_dtype": dtype}, indent=2) + "\n")
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "[END]",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n")


def write_model(folder: Path, seed: int = 0) -> None:
    write_folder(folder, make_weights(seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_model(options.out, options.seed)


if __name__ == "__main__":
    main()
