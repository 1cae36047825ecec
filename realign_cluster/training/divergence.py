"""How far the policy has moved: exact KL from the base model, on completions that the policy itself samples.

    KL = mean over completion tokens of sum_v pi(v) (log pi(v) - log ref(v)),  nats per token

at temperature 1, without top-p, dropout off, prompt excluded, in float32. What is drawn depends on (seed, step,
prompt) only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from realign_cluster.training.adapters import adapters_off

Agree = Callable[[int], int]  # the token that this rank drew -> the one that is taken


def _own(token: int) -> int:
    return token


def sample_completion(
    model: nn.Module,
    prompt: Sequence[int],
    *,
    new_tokens: int,
    stop: Iterable[int],
    key: tuple[int, int, int],
    agree: Agree = _own,
    progress: Callable[[int], None] = lambda tokens: None,
) -> list[int]:
    """Up to `new_tokens` token ids drawn from the model's own distribution, the stop token included. `key`: (seed,
    step, prompt). Ranks that call a model together `agree` on each token: where unlike machines round differently they
    may draw different ones, and would no longer make the same calls.
    """
    stops = frozenset(stop)
    cache = make_prompt_cache(model)
    state = mx.random.key(int.from_bytes(blake2b(repr(key).encode(), digest_size=8).digest(), "little"))
    tokens = mx.array([list(prompt)], dtype=mx.int32)
    drawn: list[int] = []
    while len(drawn) < new_tokens:
        progress(tokens.size)
        state, now = mx.random.split(state)
        logits = model(tokens, cache=cache)[0, -1].astype(mx.float32)
        token = agree(int(np.array(mx.random.categorical(logits, key=now))))
        drawn.append(token)
        if token in stops:
            break
        tokens = mx.array([[token]], dtype=mx.int32)
    return drawn


def divergence(
    model: nn.Module,
    reference: nn.Module | None,
    prompts: Sequence[tuple[int, Sequence[int]]],
    *,
    new_tokens: int,
    stop: Iterable[int],
    seed: int,
    step: int,
    progress: Callable[[int], None],
    agree: Agree = _own,
) -> tuple[float, int]:
    """(sum of KL over completion tokens, their number). `prompts` are (number, token ids).

    `reference` None: the model with its adapters switched off. `progress` is called before each piece of computing,
    with its tokens. `agree`: see `sample_completion`.
    """
    model.eval()
    stops = frozenset(stop)
    total, count = 0.0, 0
    for number, prompt in prompts:
        drawn = sample_completion(
            model, prompt, new_tokens=new_tokens, stop=stops, key=(seed, step, number), agree=agree, progress=progress
        )
        progress(len(prompt) + len(drawn))
        tokens = mx.array([[*prompt, *drawn]], dtype=mx.int32)
        policy = _log_softmax(model, tokens, len(drawn))
        if reference is None:
            with adapters_off(model):
                base = _log_softmax(model, tokens, len(drawn))
        else:
            base = _log_softmax(reference, tokens, len(drawn))
        total += float(np.array(mx.sum(mx.exp(policy) * (policy - base))))
        count += len(drawn)
    model.train()
    return total, count


def _log_softmax(model: nn.Module, tokens: mx.array, last: int) -> mx.array:
    """(last, vocabulary) float32: the distributions that the last `last` tokens were drawn from. Evaluated: adapters
    may be switched afterwards.
    """
    logits = model(tokens[:, :-1])[0, -last:].astype(mx.float32)
    found: mx.array = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    mx.eval(found)
    return found
