"""Makes examples/tiny-model: a llama of under a million weights, trained for about two minutes on the project's own
text.

    python examples/make_tiny_model.py [--steps 700] [--out examples/tiny-model]

Its byte-level BPE scores any text. It is a stand-in of the right shape for demos and tests, not a useful model. The
seed is fixed; the bytes of the weights still depend on the machine's matrix library.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from project_text import Exchange, exchanges, handbook, judgements
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from realign_cluster.domain.job import JUDGE_TEMPLATE
from realign_cluster.scoring.kinds.judge import fill_template

SEED = 20
SPECIAL = ("<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "vocab_size": 2048,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "torch_dtype": "float32",
}


def as_chat(prompt: str, response: str) -> str:
    return f"<|begin|><|user|>\n{prompt}<|end|>\n<|assistant|>\n{response}<|end|>\n"


def make_texts(rng: random.Random) -> list[str]:
    """Chat, plain text and bare answers, so that each way of scoring meets what it was trained on."""
    sources: list[Exchange] = handbook() * 6 + list(exchanges(seed=SEED, count=3000))
    texts = []
    for exchange in sources:
        form = rng.random()
        if form < 0.5:
            texts.append(as_chat(exchange.prompt, exchange.response))
        elif form < 0.7:
            texts.append(f"<|begin|>{exchange.prompt} {exchange.response}<|end|>\n")
        elif form < 0.85:
            texts.append(f"<|begin|>{exchange.prompt}{exchange.response}<|end|>\n")
        else:
            texts.append(f"<|begin|><|assistant|>\n{exchange.response}<|end|>\n")
    for judgement in judgements(seed=SEED, texts=250, claims_each=4):
        question = fill_template(JUDGE_TEMPLATE, claim=judgement.claim, evidence="\n".join(judgement.evidence))
        texts.append(as_chat(question, judgement.label))
    texts += [f"<|begin|>{shuffled_words(rng, sources)}<|end|>\n" for _ in range(1200)]
    rng.shuffle(texts)
    return texts


def shuffled_words(rng: random.Random, sources: list[Exchange]) -> str:
    """Words out of order, some with their letters mixed: so that text unlike the project's own is not absurdly
    unlikely.
    """
    words = " ".join(source.response for source in rng.sample(sources, 3)).split()
    rng.shuffle(words)
    mixed = ["".join(rng.sample(word, len(word))) if rng.random() < 0.4 else word for word in words]
    return " ".join(mixed[: rng.randint(5, 40)])


def train_tokenizer(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="<|begin|> $A", pair="<|begin|> $A $B", special_tokens=[("<|begin|>", 0)]
            ),
        ]
    )
    return tokenizer


def batches(ids: list[list[int]], rng: random.Random, rows: int, length: int) -> tuple[mx.array, mx.array]:
    """Whole texts packed one after another into `rows` sequences of `length` + 1 tokens: (inputs, targets)."""
    packed = np.zeros((rows, length + 1), dtype=np.int32)
    for row in packed:
        filled: list[int] = []
        while len(filled) <= length:
            filled += rng.choice(ids)
        row[:] = filled[: length + 1]
    return mx.array(packed[:, :-1]), mx.array(packed[:, 1:])


def train(ids: list[list[int]], steps: int, rng: random.Random) -> llama.Model:
    mx.random.seed(SEED)
    model = llama.Model(llama.ModelArgs.from_dict(CONFIG))
    mx.eval(model.parameters())
    schedule = optim.join_schedules(
        [optim.linear_schedule(0.0, 3e-3, 30), optim.cosine_decay(3e-3, max(1, steps - 30), 1e-4)], [30]
    )
    optimizer = optim.AdamW(learning_rate=schedule, betas=[0.9, 0.98], weight_decay=0.02)

    def loss_of(model: llama.Model, inputs: mx.array, targets: mx.array) -> mx.array:
        return nn.losses.cross_entropy(model(inputs), targets, label_smoothing=0.1, reduction="mean")

    loss_and_gradient = nn.value_and_grad(model, loss_of)
    started = time.monotonic()
    for step in range(steps):
        loss, gradient = loss_and_gradient(model, *batches(ids, rng, rows=12, length=192))
        gradient, _ = optim.clip_grad_norm(gradient, 1.0)
        optimizer.update(model, gradient)
        mx.eval(model.parameters(), optimizer.state, loss)
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step}: loss {loss.item():.3f} nats/token, {time.monotonic() - started:.0f} s", flush=True)
    return model


def save(folder: Path, model: llama.Model, tokenizer: Tokenizer) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())), {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin|>",
        "eos_token": "<|end|>",
        "pad_token": "<|end|>",
        "additional_special_tokens": list(SPECIAL[2:]),
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONFIG["max_position_embeddings"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "tiny-model")
    parser.add_argument("--steps", type=int, default=700)
    options = parser.parse_args()
    rng = random.Random(SEED)
    texts = make_texts(rng)
    # Mostly the handbook: merges learned from the grammar would be whole sentences, of no use for other text.
    tokenizer = train_tokenizer([text for text in texts if rng.random() < 0.1] + [e.response for e in handbook()] * 20)
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    print(f"{len(texts)} texts, {sum(map(len, texts))} characters, {sum(map(len, ids))} tokens", flush=True)
    save(options.out, train(ids, options.steps, rng), tokenizer)


if __name__ == "__main__":
    main()
