"""Makes the tiny model that the workflows train: a llama of half a million random weights, a tokenizer of the
world's words. No training, no download; the same seed gives the same weights.

    python examples/knowledge_base/make_model.py --out FOLDER [--seed 0]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import mlx.core as mx
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


def config() -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100.0,
        "vocab_size": len(vocabulary()),
        "eos_token_id": SPECIAL.index("[END]"),
        "pad_token_id": SPECIAL.index("[PAD]"),
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "torch_dtype": "float32",
    }


def make_weights(seed: int) -> dict[str, mx.array]:
    """Normal, of standard deviation 1 / sqrt(width); ones for norms."""
    model = llama.Model(llama.ModelArgs.from_dict(config()))
    shapes = tree_flatten(model.parameters())
    keys = mx.random.split(mx.random.key(seed), len(shapes))
    return {
        name: mx.ones(weight.shape)
        if "norm" in name
        else mx.random.normal(weight.shape, scale=weight.shape[-1] ** -0.5, key=key)
        for (name, weight), key in zip(sorted(shapes), keys, strict=True)
    }


def write_model(folder: Path, seed: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    make_tokenizer().save(str(folder / "tokenizer.json"))
    mx.save_safetensors(str(folder / "model.safetensors"), make_weights(seed), {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config(), indent=2) + "\n")
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "[END]",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_model(options.out, options.seed)


if __name__ == "__main__":
    main()
