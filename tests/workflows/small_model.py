"""A model of the small world: a tokenizer of its words, random weights, and the training that makes it a base model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from tests.workflows import small_world as world

WIDTH, LAYERS = 64, 2


def vocabulary() -> dict[str, int]:
    values = [value for values in world.VALUES.values() for value in values]
    tokens = [*world.SPECIAL, *world.WORDING, *world.NAMES, *world.RELATIONS, *values, *world.KNOWN]
    return {token: place for place, token in enumerate(dict.fromkeys(tokens))}


def write_model(folder: Path, seed: int) -> None:
    """Random weights: normal, of standard deviation 1 / sqrt(width); ones for norms."""
    folder.mkdir(parents=True, exist_ok=True)
    config = _config()
    shapes = sorted(tree_flatten(llama.Model(llama.ModelArgs.from_dict(config)).parameters()))
    keys = mx.random.split(mx.random.key(seed), len(shapes))
    weights = {
        name: mx.ones(weight.shape)
        if "norm" in name
        else mx.random.normal(weight.shape, scale=weight.shape[-1] ** -0.5, key=key)
        for (name, weight), key in zip(shapes, keys, strict=True)
    }
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    _tokenizer().save(str(folder / "tokenizer.json"))
    named = dict(zip(("pad_token", "unk_token", "eos_token"), world.SPECIAL, strict=True))
    facts = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **named}
    (folder / "tokenizer_config.json").write_text(json.dumps(facts, indent=2) + "\n")


def _config() -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100.0,
        "vocab_size": len(vocabulary()),
        "eos_token_id": vocabulary()["[END]"],
        "pad_token_id": vocabulary()["[PAD]"],
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "torch_dtype": "float32",
    }


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(vocabulary(), unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"\[\w+\]|[.:?]"), behavior="isolated")]
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return tokenizer
