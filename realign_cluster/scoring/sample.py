"""What is asked of a generator, and what it gives. Knows no model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What to answer: `prompt` is not empty. `seed` is the row's."""

    prompt: tuple[int, ...]
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """`tokens` were drawn, those of a stop text included, the token that ends an answer not; `logprob_sum` is theirs,
    in nats, by the model itself (temperature 1, nothing left out).
    """

    text: str
    tokens: int
    finish: Finish
    logprob_sum: float
