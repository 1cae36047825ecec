"""What is asked of the process that measures how far one model is from another."""

from __future__ import annotations

from pydantic import Field

from realign_cluster.domain.job import Chat, Strict


class DivergenceOrder(Strict):
    """Folders of policy and reference (the same one where an adapter makes the difference), and on what to compare
    them: from each prompt (a text or messages) the policy draws up to `new_tokens` tokens.
    """

    policy: str
    reference: str
    adapter: str = ""
    prompts: tuple[str | list[dict[str, str]], ...]
    new_tokens: int = Field(default=64, ge=1)
    max_tokens: int = Field(default=2048, ge=1)
    chat: Chat = "auto"
    seed: int = 0
    cores: int = 1
