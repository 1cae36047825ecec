"""A retriever of the user's own: `module:attribute` names a callable that is given the passages and a folder for its
files, and returns a `Retriever`. The module is code of whoever configured it, imported where the workflow runs, never
sent to a node.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from realign_cluster.domain.errors import UsageError
from realign_cluster.metrics.retrieval.retriever import Passage, Retriever, check_passages


def build_retriever(entry: str, passages: Sequence[Passage], folder: Path) -> Retriever:
    """Raises UsageError for an entry that is not there, or whose result has not what a retriever has."""
    check_passages(passages)
    module, _, attribute = entry.partition(":")
    if not module or not attribute:
        raise UsageError(f"the retriever {entry!r} is not of the form module:attribute")
    try:
        make = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"the retriever {entry}: {error}", "install its package beside realign-cluster") from None
    retriever = make(passages, folder)
    if not isinstance(retriever, Retriever):
        raise UsageError(f"{entry} gave a {type(retriever).__name__} without search and fingerprint")
    return retriever
