"""What a scoring run asks of every node: registered kinds with typed parameters, and nothing executable.

Knows no tokenizer and no model: `scoring` gives these names their meaning, the coordinator checks that a row has what
they need.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from hashlib import blake2b
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from realign_cluster.domain.errors import UsageError

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
    "kl": {"prompt": TEXT_OR_MESSAGES, "response": TEXT_OR_MESSAGES},
    "generate": {"prompt": TEXT_OR_MESSAGES},
    "noop": {},  # scores nothing with no model: measures the cluster itself
}
OPTIONAL_FIELDS: dict[str, frozenset[str]] = {"preference": frozenset({"prompt"})}
KIND_VERSION: dict[str, int] = dict.fromkeys(FIELDS_OF_KIND, 1)
WHOLE_MODEL_KINDS = frozenset({"generate", "kl"})
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

    @property
    def shape(self) -> str:
        """What its speed depends on: the configuration, and how large each file is. A model that was trained further
        has the shape that it had.
        """
        known = [
            f"{file.path} {file.size} {file.blake2b if file.path == 'config.json' else ''}\n"
            for file in sorted(self.files, key=lambda file: file.path)
        ]
        return blake2b("".join(known).encode(), digest_size=16).hexdigest() if known else self.hash


class Sampling(Strict):
    """How `generate` draws. A sample follows from (seed, row id, its number), the prompt and these alone."""

    temperature: float = 1.0  # 0: the most likely token each time
    top_p: float = 1.0  # of the distribution at this temperature, after top_k
    top_k: int = 0  # 0: all
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()  # a text ends before the first of them
    seed: int = 0
    samples: int = 1  # of each row

    @model_validator(mode="after")
    def _in_range(self) -> Sampling:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UsageError(
                f"--temperature is {self.temperature:g}, at least 0 is allowed", "0 takes the most likely token"
            )
        if not 0 < self.top_p <= 1:
            raise UsageError(f"--top-p is {self.top_p:g}, above 0 and at most 1 is allowed", "1 leaves nothing out")
        for name, value, least in (
            ("--top-k", self.top_k, 0),
            ("--max-new-tokens", self.max_new_tokens, 1),
            ("--samples", self.samples, 1),
            ("--seed", self.seed, 0),
        ):
            if value < least:
                raise UsageError(f"{name} is {value}, at least {least} is allowed", f"{name} {max(least, 1)}")
        if "" in self.stop:
            raise UsageError("--stop is an empty text, which is everywhere", "name the text that ends an answer")
        return self

    @property
    def new_tokens(self) -> int:
        """Of a row, at most."""
        return self.samples * self.max_new_tokens

    def row_seed(self, row_id: bytes) -> int:
        """The first 53 bits of BLAKE2b over the run's seed and the row's id: as many as every JSON reader keeps."""
        digest = blake2b(f"generate {self.seed} ".encode() + row_id, digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 11


class Beside(Strict):
    """What a job names besides its model."""

    adapter: ModelSpec | None = None  # on the model, for every kind
    reference_model: ModelSpec | None = None  # kl; None: the model itself
    reference_adapter: ModelSpec | None = None  # kl


class ScoreJob(Beside):
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
    sampling: Sampling | None = None  # generate

    @property
    def stored(self) -> tuple[ModelSpec, ...]:
        """What a node has to have on disk, each once."""
        named = (self.model, self.adapter, self.reference_model, self.reference_adapter)
        return tuple({spec.hash: spec for spec in named if spec is not None and spec.hash != NO_MODEL}.values())

    @property
    def whole_model_only(self) -> str:
        """Why a model in parts over several nodes cannot do this job; "" if it can."""
        return needs_whole_model(self.kinds, adapter=self.adapter is not None)


def roles_needed(kinds: Iterable[str]) -> dict[str, str]:
    """Field roles of all `kinds` together, with what each may hold."""
    roles: dict[str, str] = {}
    for kind in kinds:
        roles.update(FIELDS_OF_KIND[kind])
    return roles


def needs_whole_model(kinds: Iterable[str], *, adapter: bool) -> str:
    """Why such a job is not for a model in parts over several nodes; "" if it is."""
    if whole := [kind for kind in kinds if kind in WHOLE_MODEL_KINDS]:
        return f"{' and '.join(whole)} needs the whole model on a node"
    return "an adapter goes on a whole model only" if adapter else ""


def comparable_kinds(kinds: Iterable[str]) -> tuple[str, ...]:
    """The kinds that two correct nodes answer alike: a sampled text may differ by one rounding, and then altogether."""
    return tuple(dict.fromkeys("loglik" if kind == "generate" else kind for kind in kinds))


def bytes_beside(model: ModelSpec, beside: Beside) -> int:
    """Of weights that are loaded besides the job's model: adapters, and a reference that is another model."""
    named = (beside.adapter, beside.reference_model, beside.reference_adapter)
    specs = {spec.hash: spec for spec in named if spec is not None and spec.hash != model.hash}
    return sum(file.size for spec in specs.values() for file in spec.files if file.path.endswith(".safetensors"))
