"""Code of the user's: a retriever or an embedder, named as `module:attribute`, which is called without arguments.

The module is that of whoever configured it: an installed package, or a file beside the configuration. It is imported
where the workflow runs, never sent to a node. Whatever it raises is said with its name.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

from realign_cluster.domain.errors import RealignError, UsageError
from realign_cluster.metrics.retrieval.index_folder import verify_index, write_index
from realign_cluster.metrics.retrieval.retriever import (
    Passage,
    Ranking,
    check_passages,
    digest_of_passages,
)

KIND: Final = "own"
CODE: Final = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")  # module:attribute


@runtime_checkable
class OwnRetriever(Protocol):
    def fingerprint(self) -> str:
        """Of all that rankings depend on besides passages and query: method, weights, parameters."""
        ...

    def build(self, passages: Sequence[Passage], folder: Path) -> None:
        """Writes an index of the passages into `folder`, which is empty; with the same content each time."""
        ...

    def search(self, folder: Path, queries: Sequence[str], k: int) -> Sequence[Ranking]:
        """One ranking a query, of at most `k` passages of the index in `folder`, which is only read."""
        ...


def load_code(code: str, wanted: Any, beside: Path | None = None) -> Any:
    """What `code` names, called without arguments. Modules in the folder `beside` are found after installed ones, from
    then on. Raises UsageError for code that is not there, fails, or gives something else than `wanted`.
    """
    module, _, attribute = code.partition(":")
    if beside is not None and (folder := str(beside.absolute())) not in sys.path:
        sys.path.append(folder)
    try:
        with explained(code):
            found: Any = getattr(importlib.import_module(module), attribute)()
            fitting = isinstance(found, wanted) and isinstance(found.fingerprint(), str)
    except RealignError as error:
        raise UsageError(error.message, "install what it needs beside realign-cluster, or correct it") from error
    if not fitting:
        methods = ", ".join(name for name in vars(wanted) if not name.startswith("_"))
        raise UsageError(
            f"{code} gave a {type(found).__name__} that has not all of: {methods}", "give it these methods"
        )
    return found


@contextlib.contextmanager
def explained(code: str) -> Iterator[None]:
    """Turns what the user's code raises into a RealignError with its name."""
    try:
        yield
    except RealignError:
        raise
    except Exception as error:  # another project's code: whatever it raises is said, with whose it is
        raise RealignError(f"{code}: {type(error).__name__}: {error}", "correct it, and run the same again") from error


def build_own_index(passages: Sequence[Passage], folder: Path, *, code: str, retriever: OwnRetriever) -> OwnIndex:
    """An index of the same passages and retriever that is there is opened instead. Raises UsageError as
    `build_bm25_index` does, RealignError for what the code raises.
    """
    check_passages(passages)
    with explained(code):
        facts: dict[str, Any] = {
            "kind": KIND,
            "passages": digest_of_passages(passages),
            "retriever": retriever.fingerprint(),
        }
    write_index(
        folder,
        partial(_write, passages, code, retriever),
        passages=len(passages),
        facts=facts,
    )
    return OwnIndex(folder, code=code, retriever=retriever)


class OwnIndex:
    """An index folder, open for searching by the code that made it."""

    def __init__(self, folder: Path, *, code: str, retriever: OwnRetriever) -> None:
        """Raises UsageError where there is none, or one of another retriever; DamagedIndex."""
        self._folder = folder
        self._manifest = verify_index(folder, KIND)
        self._code = code
        self._retriever = retriever
        with explained(code):
            there, asked = self._manifest.parameters["retriever"], retriever.fingerprint()
        if there != asked:
            raise UsageError(f"{folder} was indexed by {there}, not by {asked}", "index it again in another folder")

    def __len__(self) -> int:
        return self._manifest.passages

    def search(self, queries: Sequence[str], k: int) -> list[Ranking]:
        with explained(self._code):
            rankings = list(self._retriever.search(self._folder, queries, k))
        if len(rankings) != len(queries) or any(
            not isinstance(each, Ranking) or len(each.ids) > k or len(set(each.ids)) < len(each.ids)
            for each in rankings
        ):
            raise RealignError(
                f"{self._code} gave no list of {len(queries)} rankings of at most {k} different passages",
                "one Ranking a query, as realign_cluster.metrics.retrieval.retriever has it",
            )
        return rankings

    def fingerprint(self) -> str:
        return self._manifest.fingerprint


def _write(passages: Sequence[Passage], code: str, retriever: OwnRetriever, folder: Path) -> None:
    with explained(code):
        retriever.build(passages, folder)
