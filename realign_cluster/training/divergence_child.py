"""KL of a model from another one, measured in a short-lived process for a caller that never imports MLX.

    python -m realign_cluster.training.divergence_child --order FILE --out FILE

The order is domain.divergence_order.DivergenceOrder; the answer one JSON object {"prompts": [[sum, tokens], ...],
"vocabulary": n}. Both models are whole in this process; the policy of a base model and an adapter shares the base
model's weights.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import orjson
from mlx_lm.utils import load_adapters, load_config, load_model, load_tokenizer

from realign_cluster.domain.divergence_order import DivergenceOrder
from realign_cluster.domain.errors import RealignError, UsageError
from realign_cluster.scoring import device
from realign_cluster.scoring.encode import Conversation, TextEncoder, as_text
from realign_cluster.scoring.errors import RowRefused
from realign_cluster.store.durable import write_durably
from realign_cluster.store.model_files import check_model_folder
from realign_cluster.training.divergence import divergence
from realign_cluster.training.finite import NotFinite, require_finite


def measure(order: DivergenceOrder) -> dict[str, Any]:
    """Raises UsageError for models that cannot be compared, and for prompts that the template refuses; NotFinite."""
    device.set_blas_threads(order.cores)
    device.apply_memory_limits(device.find_memory_limit(None))
    folder = Path(order.policy)
    reference = _load(Path(order.reference))
    policy = _load(folder)
    if order.policy == order.reference:
        policy.update(reference.parameters())
    if order.adapter:
        load_adapters(policy, order.adapter)
    for model in (reference, policy):
        model.eval()
    tokenizer = load_tokenizer(folder, eos_token_ids=load_config(folder).get("eos_token_id"))
    encoder = TextEncoder(tokenizer, chat=order.chat, max_tokens=order.max_tokens, truncate="left")
    widths = [int(model(mx.array([[0]])).shape[-1]) for model in (policy, reference)]
    if widths[0] != widths[1]:
        raise UsageError(
            f"the models have vocabularies of {widths[0]} and {widths[1]} tokens, so no KL",
            "compare a model with the one that it was made from",
        )
    found = []
    for number, prompt in enumerate(order.prompts):
        total, tokens = divergence(
            policy,
            reference,
            [(number, _prompt_ids(encoder, prompt, number))],
            new_tokens=order.new_tokens,
            stop=getattr(tokenizer, "eos_token_ids", ()),
            seed=order.seed,
            step=0,
            progress=lambda pieces: None,
        )
        require_finite({"divergence": total}, f"on prompt {number + 1}", 0)
        found.append([total, tokens])
    return {"prompts": found, "vocabulary": widths[0]}


def _load(folder: Path) -> nn.Module:
    check_model_folder(folder)
    try:
        model, _ = load_model(folder, lazy=True)
    except Exception as error:  # any model type's own code runs here
        raise UsageError(
            f"mlx-lm cannot load {folder}: {type(error).__name__}: {error}", "give an mlx-lm model"
        ) from error
    return model


def _prompt_ids(encoder: TextEncoder, prompt: Conversation, number: int) -> list[int]:
    """What an answer directly follows, its end where it is too long."""
    try:
        if encoder.chat and not isinstance(prompt, str):
            scored = encoder.completion(prompt, "a")
            ids = list(scored.ids[: scored.spans[0][0]])
        else:
            ids = encoder.encode_prompt_text(encoder.prompt_text(as_text(prompt)))[-encoder.max_tokens :]
    except RowRefused as error:
        raise UsageError(f"prompt {number + 1}: {error}", "correct or remove it") from error
    if not ids:
        raise UsageError(
            f"prompt {number + 1} is empty and the tokenizer adds no start token", "give prompts with text"
        )
    return ids


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="realign_cluster.training.divergence_child", description="Measures KL.")
    for name in ("order", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        order = DivergenceOrder.model_validate_json(options.order.read_bytes())
        write_durably(options.out, orjson.dumps(measure(order)))
    except (RealignError, NotFinite, OSError) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
