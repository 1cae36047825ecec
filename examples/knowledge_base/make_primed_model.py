"""Makes primed-model/: the tiny model that has learnt to look up what it has read, and a table by heart; nothing else.

    python examples/knowledge_base/make_primed_model.py --out FOLDER [--seed 0] [--steps 700]

Each row is a passage of different random tokens of the whole vocabulary, then pieces of it again in random order,
between separators. After the first token of a piece, only looking it up in the passage says what comes next: no
position does, and nothing can be learnt by heart. Beside that, the closed-book questions, so that there is something
to forget. No other text of the workflows is in it. Passages become longer as the model gets better. A few minutes on
one core; the same seed gives the same weights on the same machine.
"""

from __future__ import annotations

import argparse
from collections import deque
from functools import partial
from pathlib import Path
from typing import Final

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import wording
from make_model import SPECIAL, config, make_tokenizer, make_weights, vocabulary, write_folder
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from world import KNOWN, TIES

ROWS: Final = 64
LEARNT_SHARE: Final = 0.45  # of a batch's positions, drawn from those inside pieces: a fixed number compiles once
SHORTEST, FIRST_LONGEST, LONGEST = 4, 5, 24  # tokens of a passage
PIECE: Final = (2, 6)
LEARNING_RATE, WARM_UP = 1e-3, 50
Batch = tuple[mx.array, mx.array, mx.array]
"""Inputs [rows, length], targets [learnt], and where those are in the flattened inputs [learnt]."""


def row_length(longest: int) -> int:
    return 32 if longest <= 8 else 48 if longest <= 16 else 64


def lookup_batch(rng: np.random.Generator, longest: int) -> Batch:
    """ROWS passages of SHORTEST to `longest` tokens, each followed by pieces of it."""
    length = row_length(longest)
    tokens, inside = np.zeros((ROWS, length + 1), np.int32), np.zeros((ROWS, length), bool)
    for row in range(ROWS):
        size = int(rng.integers(SHORTEST, longest + 1))
        drawn = len(SPECIAL) + rng.permutation(len(vocabulary()) - len(SPECIAL))[: size + 1]
        passage, separator = drawn[:size], drawn[size]
        text = [*passage, separator]
        while len(text) <= length:
            width = int(rng.integers(PIECE[0], min(PIECE[1], size) + 1))
            begin = int(rng.integers(0, size - width + 1))
            inside[row, len(text) : len(text) + width - 1] = True
            text += [*passage[begin : begin + width], separator]
        tokens[row] = text[: length + 1]
    learnt = rng.permutation(np.flatnonzero(inside))[: int(LEARNT_SHARE * ROWS * length)]
    learnt = np.resize(np.sort(learnt), int(LEARNT_SHARE * ROWS * length))
    return mx.array(tokens[:, :-1]), mx.array(tokens[:, 1:].reshape(-1)[learnt]), mx.array(learnt)


def closed_book_batch() -> Batch:
    """All that is to be known by heart; the answers are learnt, with the end after them."""
    tokenizer, end = make_tokenizer(), SPECIAL.index("[END]")
    rows, starts = [], []
    for tie in TIES:
        for word in KNOWN:
            prompt, answer = wording.closed_book(tie, word)
            rows.append([*tokenizer.encode(prompt + answer).ids, end])
            starts.append(len(tokenizer.encode(prompt).ids))
    (length,) = {len(row) for row in rows}  # all are alike
    tokens = np.array(rows, np.int32)
    learnt = np.array([row * (length - 1) + at for row, s in enumerate(starts) for at in range(s - 1, length - 1)])
    return mx.array(tokens[:, :-1]), mx.array(tokens[:, 1:].reshape(-1)[learnt]), mx.array(learnt)


def loss_and_accuracy(model: llama.Model, batch: Batch) -> tuple[mx.array, mx.array]:
    """Mean cross entropy in nats per learnt token, and how many of them are said rightly."""
    tokens, targets, learnt = batch
    states = model.model(tokens)
    logits = model.model.embed_tokens.as_linear(states.reshape(-1, states.shape[-1])[learnt])
    return nn.losses.cross_entropy(logits, targets, reduction="mean"), mx.mean(mx.argmax(logits, -1) == targets)


def prime(seed: int, steps: int) -> llama.Model:
    model = llama.Model(llama.ModelArgs.from_dict(config()))
    model.load_weights(list(make_weights(seed).items()))
    rate = optim.join_schedules(
        [
            optim.linear_schedule(LEARNING_RATE / WARM_UP, LEARNING_RATE, WARM_UP),
            optim.cosine_decay(LEARNING_RATE, max(1, steps - WARM_UP), LEARNING_RATE / 20),
        ],
        [WARM_UP],
    )
    optimizer = optim.AdamW(learning_rate=rate, betas=[0.9, 0.98], weight_decay=0.01)

    def loss(model: llama.Model, lookup: Batch, known: Batch) -> tuple[mx.array, mx.array, mx.array]:
        looked_up, accuracy = loss_and_accuracy(model, lookup)
        by_heart, remembered = loss_and_accuracy(model, known)
        return looked_up + 0.3 * by_heart, accuracy, remembered

    gradient_of = nn.value_and_grad(model, loss)
    state = [model.state, optimizer.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def step(lookup: Batch, known: Batch) -> tuple[mx.array, mx.array, mx.array]:
        found, gradients = gradient_of(model, lookup, known)
        gradients, _ = optim.clip_grad_norm(gradients, 1.0)
        optimizer.update(model, gradients)
        return found

    rng, known, longest = np.random.default_rng(seed), closed_book_batch(), float(FIRST_LONGEST)
    recent: deque[float] = deque(maxlen=5)
    for number in range(1, steps + 1):
        value, accuracy, remembered = step(lookup_batch(rng, int(longest)), known)
        mx.eval(value, accuracy, remembered, state)
        recent.append(float(accuracy.item()))
        if number > 10 and np.mean(recent) > 0.9:
            longest = min(LONGEST, longest + 0.4)
        if number % 50 == 0 or number == steps:
            print(
                f"step {number}: passages of up to {int(longest)} tokens, {np.mean(recent):.3f} looked up rightly, "
                f"{remembered.item():.3f} known by heart, loss {value.item():.3f}",
                flush=True,
            )
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=700)
    options = parser.parse_args()
    model = prime(options.seed, options.steps)
    weights = {name: weight.astype(mx.float16) for name, weight in tree_flatten(model.parameters())}
    write_folder(options.out, weights, dtype="float16")


if __name__ == "__main__":
    main()
