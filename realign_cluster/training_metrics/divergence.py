"""How far a model has moved from another one: exact KL on what it draws itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from realign_cluster.domain.divergence_order import DivergenceOrder
from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.job import Chat
from realign_cluster.node.local_divergence import measure_divergence_here
from realign_cluster.store.model_files import describe_model, resolve_model
from realign_cluster.training_metrics.inputs import Paths, prompts_of

BUDGET_NATS: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class KlDivergence:
    """Exact, in nats per completion token: mean over the tokens that the policy drew of sum_v pi (log pi - log ref),
    float32, temperature 1. None (undefined) without tokens. `by_prompt`: (sum over its tokens, tokens) of each.
    """

    policy: str
    reference: str
    adapter: str
    prompts: int
    vocabulary: int
    budget_nats_per_token: float
    by_prompt: tuple[tuple[float, int], ...]
    seed: int
    new_tokens: int

    @property
    def tokens(self) -> int:
        return sum(tokens for _, tokens in self.by_prompt)

    @property
    def nats_per_token(self) -> float | None:
        return sum(total for total, _ in self.by_prompt) / self.tokens if self.tokens else None

    @property
    def within_budget(self) -> bool | None:
        """Of the estimate itself; a gate asks its confidence bound."""
        found = self.nats_per_token
        return None if found is None else found <= self.budget_nats_per_token

    def text(self) -> str:
        found = self.nats_per_token
        what = "undefined: nothing was drawn" if found is None else f"{found:.4f} nats per token"
        return (
            f"{what} over {self.tokens:,} tokens from {self.prompts:,} prompts "
            f"(budget {self.budget_nats_per_token:g}), exact over {self.vocabulary:,} tokens of vocabulary"
        )


def kl_divergence(
    policy: str | Path,
    prompts: Paths | Sequence[str],
    *,
    reference: str | Path | None = None,
    adapter: str | Path | None = None,
    prompt_field: str = "prompt",
    limit: int | None = None,
    new_tokens: int = 64,
    max_tokens: int = 2048,
    chat: Chat = "auto",
    budget: float = BUDGET_NATS,
    seed: int = 0,
    cores: int | None = None,
) -> KlDivergence:
    """How far `policy` (with `adapter`, if it has one) has moved from `reference` (None: `policy` without the adapter).

    `prompts`: a file (field `prompt_field`) or texts; the first `limit` of them. From each the policy draws up to
    `new_tokens` tokens with its own distribution; prompt and padding are not counted. On this machine, in a process of
    its own that holds both models. Raises RunFailed if that dies.
    """
    if reference is None and adapter is None:
        raise UsageError("the policy would be compared with itself", "name a reference, or the policy's adapter")
    texts = prompts_of(prompts, prompt_field)[:limit]
    folder = resolve_model(policy)
    base = resolve_model(reference) if reference is not None else folder
    if adapter is not None and not (Path(adapter) / "adapter_config.json").is_file():
        raise UsageError(f"{adapter} holds no adapter", "name a folder with adapter_config.json")
    cores = cores or os.cpu_count() or 1
    order = DivergenceOrder(
        policy=str(folder.resolve()),
        reference=str(base.resolve()),
        adapter=str(Path(adapter).resolve()) if adapter is not None else "",
        prompts=tuple(texts),
        new_tokens=new_tokens,
        max_tokens=max_tokens,
        chat=chat,
        seed=seed,
        cores=cores,
    )
    answer = measure_divergence_here(order)
    return KlDivergence(
        policy=describe_model(policy).name,
        reference=describe_model(base).name,
        adapter=str(adapter or ""),
        prompts=len(texts),
        vocabulary=int(answer["vocabulary"]),
        budget_nats_per_token=budget,
        by_prompt=tuple((float(total), int(tokens)) for total, tokens in answer["prompts"]),
        seed=seed,
        new_tokens=new_tokens,
    )
