"""What a scoring run asks of every node: registered kinds with typed parameters, and nothing executable.

Knows no tokenizer and no model: `scoring` gives these names their meaning, the coordinator checks that a row has what
they need.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Chat = Literal["auto", "chat", "plain"]
Truncate = Literal["left", "right", "refuse"]

TEXT_OR_MESSAGES = "text or messages"
TEXT = "text"
TEXT_OR_LIST = "text or list of texts"

# kind -> field role -> what it may hold. `preference` may leave `prompt` out (TRL's implicit-prompt conversations).
FIELDS_OF_KIND: dict[str, dict[str, str]] = {
    "loglik": {"prompt": TEXT_OR_MESSAGES, "response": TEXT_OR_MESSAGES},
    "ifd": {"prompt": TEXT_OR_MESSAGES, "response": TEXT_OR_MESSAGES},
    "ifd-ppl": {"prompt": TEXT_OR_MESSAGES, "response": TEXT_OR_MESSAGES},
    "preference": {"prompt": TEXT_OR_MESSAGES, "chosen": TEXT_OR_MESSAGES, "rejected": TEXT_OR_MESSAGES},
    "judge": {"claim": TEXT, "evidence": TEXT_OR_LIST},
    "noop": {},  # scores nothing with no model: measures the cluster itself
}
OPTIONAL_FIELDS: dict[str, frozenset[str]] = {"preference": frozenset({"prompt"})}
KIND_VERSION: dict[str, int] = dict.fromkeys(FIELDS_OF_KIND, 1)
NO_MODEL = "none"
JUDGE_TEMPLATE = "{evidence}\n\nClaim: {claim}\n\nDoes the text above support the claim? Answer with one of: {labels}."
JUDGE_LABELS = ("supported", "not_supported")


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Fields(Strict):
    """Which field of a row plays which role: an exact key first, else a dotted path."""

    prompt: str = "prompt"
    response: str = "response"
    chosen: str = "chosen"
    rejected: str = "rejected"
    claim: str = "claim"
    evidence: str = "evidence"


class ModelFileSpec(Strict):
    path: str
    size: int
    blake2b: str


class ModelSpec(Strict):
    """A model by content: `hash` is BLAKE2b-128 over the sorted (path, size, file hash) of its files."""

    name: str
    hash: str
    files: tuple[ModelFileSpec, ...] = ()


class ScoreJob(Strict):
    """One scoring run as a worker sees it. Equal jobs give equal scores."""

    kinds: tuple[str, ...]
    kind_versions: dict[str, int] = Field(default_factory=dict)
    model: ModelSpec
    fields: Fields = Fields()
    template: str | None = None  # judge: text with {claim} and {evidence}
    labels: tuple[str, ...] = ()  # judge
    chat: Chat = "auto"
    max_tokens: int = 2048
    truncate: Truncate = "left"
    reproducible: bool = False
    blas_threads: int | None = None  # None: the worker's share of the cores
    blas_core_type: str = ""  # pinned when reproducible
    batch_tokens: int | None = None  # None: the calibrated or default budget of the node
    memory_limit_bytes: int | None = None
    canaries: tuple[str, ...] = ()  # rows (JSON) scored alone and batched at join


def roles_needed(kinds: Iterable[str]) -> dict[str, str]:
    """Field roles of all `kinds` together, with what each may hold."""
    roles: dict[str, str] = {}
    for kind in kinds:
        roles.update(FIELDS_OF_KIND[kind])
    return roles
