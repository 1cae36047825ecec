"""Which retriever: what the parameters of a job say of it, and the index that it makes or opens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, assert_never

from realign_cluster.domain.errors import UsageError
from realign_cluster.metrics.retrieval.bm25 import Bm25Index, Bm25Parameters, build_bm25_index
from realign_cluster.metrics.retrieval.plugin import OwnIndex, OwnRetriever, build_own_index, explained, load_code
from realign_cluster.metrics.retrieval.retriever import Passage, Retriever
from realign_cluster.metrics.retrieval.vectors import Embedder, VectorIndex, Vectors, build_vector_index

_INTERFACE: Final[Mapping[str, Any]] = {"vectors": Embedder, "own": OwnRetriever}


@dataclass(frozen=True, slots=True, kw_only=True)
class UsersCode:
    """A retriever or embedder of the user's: `code` is its module:attribute, `fingerprint` what it says of itself."""

    kind: Literal["vectors", "own"]
    code: str
    fingerprint: str


RetrieverChoice = Bm25Parameters | UsersCode


def choice_of(parameters: Mapping[str, Any]) -> RetrieverChoice:
    """From a job's parameters, which are those of `asdict`."""
    return UsersCode(**parameters) if "code" in parameters else Bm25Parameters(**parameters)


def pinned_code(kind: Literal["vectors", "own"], code: str, beside: Path) -> UsersCode:
    """Loads it, and asks what it is; modules in the folder `beside` are found from then on. Raises UsageError as
    `load_code` does.
    """
    loaded = load_code(code, _INTERFACE[kind], beside)
    return UsersCode(kind=kind, code=code, fingerprint=loaded.fingerprint())


def build_index(choice: RetrieverChoice, passages: Sequence[Passage], folder: Path) -> Retriever:
    """Raises UsageError for passages or a folder that will not do, and for code that is not what was pinned."""
    match choice:
        case Bm25Parameters():
            return build_bm25_index(passages, folder, parameters=choice)
        case UsersCode(kind="vectors"):
            return build_vector_index(passages, folder, embedder=_Explained(choice.code, _loaded(choice)))
        case UsersCode():
            return build_own_index(passages, folder, code=choice.code, retriever=_loaded(choice))
        case _:
            assert_never(choice)


def open_index(choice: RetrieverChoice, folder: Path) -> Retriever:
    """Raises UsageError for a folder without an index of this retriever, DamagedIndex for a damaged one."""
    match choice:
        case Bm25Parameters():
            return Bm25Index(folder)
        case UsersCode(kind="vectors"):
            return VectorIndex(folder, embedder=_Explained(choice.code, _loaded(choice)))
        case UsersCode():
            return OwnIndex(folder, code=choice.code, retriever=_loaded(choice))
        case _:
            assert_never(choice)


def _loaded(choice: UsersCode) -> Any:
    loaded = load_code(choice.code, _INTERFACE[choice.kind])
    if (now := loaded.fingerprint()) != choice.fingerprint:
        raise UsageError(f"{choice.code} was {choice.fingerprint}, and is {now}", "run the same command again")
    return loaded


@dataclass(frozen=True, slots=True)
class _Explained:
    """The user's embedder; what it raises is said with its name."""

    code: str
    embedder: Embedder

    def embed(self, texts: Sequence[str]) -> Vectors:
        with explained(self.code):
            return self.embedder.embed(texts)

    def fingerprint(self) -> str:
        return self.embedder.fingerprint()
