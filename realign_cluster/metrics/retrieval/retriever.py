"""What a retriever is given and what it answers. Must not know how scores are computed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import orjson

from realign_cluster.domain.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    id: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Best first. Equal scores are in the order of the passages in the index."""

    ids: tuple[str, ...]
    scores: tuple[float, ...]


@runtime_checkable
class Retriever(Protocol):
    def search(self, queries: Sequence[str], k: int) -> list[Ranking]:
        """One ranking a query, of at most `k` passages; fewer where no more have anything to do with it."""
        ...

    def fingerprint(self) -> str:
        """Of all that rankings depend on besides the query: passages, method, parameters."""
        ...


def check_passages(passages: Sequence[Passage]) -> None:
    """Raises UsageError for no passages, one without text, or two of one id."""
    if not passages:
        raise UsageError("there are no passages to index", "name sources that hold text")
    seen: set[str] = set()
    for number, passage in enumerate(passages, 1):
        if not passage.text.strip():
            raise UsageError(f"passage {number} ({passage.id}) has no text", "leave it out of the sources")
        if passage.id in seen:
            raise UsageError(f"passage {number} has the id {passage.id} of an earlier one", "give each its own id")
        seen.add(passage.id)


def digest_of_passages(passages: Iterable[Passage]) -> str:
    """32 hex digits: BLAKE2b-128 of ids and texts in order."""
    digest = hashlib.blake2b(digest_size=16)
    for passage in passages:
        digest.update(orjson.dumps([passage.id, passage.text]) + b"\n")
    return digest.hexdigest()


def fingerprint_of_index(facts: Mapping[str, Any]) -> str:
    """32 hex digits: BLAKE2b-128 of passages, method and parameters as canonical JSON."""
    return hashlib.blake2b(orjson.dumps(facts, option=orjson.OPT_SORT_KEYS), digest_size=16).hexdigest()


def best(ids: Sequence[str], scores: npt.NDArray[np.floating], k: int, *, above: float | None = None) -> Ranking:
    """The `k` highest of `scores` (passages,), those at or below `above` left out. Of equal scores the earlier passage
    comes first, also where only some of them fit. Raises ValueError for k < 1.
    """
    if k < 1:
        raise ValueError(f"the best {k} are asked for, it is at least 1")
    places = np.arange(len(scores)) if above is None else np.flatnonzero(scores > above)
    if len(places) > k:
        kth = np.partition(scores[places], len(places) - k)[len(places) - k]
        places = places[scores[places] >= kth]
    order = places[np.argsort(-scores[places], kind="stable")][:k]
    return Ranking(ids=tuple(ids[at] for at in order), scores=tuple(float(scores[at]) for at in order))
