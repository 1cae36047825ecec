"""Whether the sources are what the questions take them for: the same texts under the same ids, and found by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from realign_cluster.curation.words import grams, words_of
from realign_cluster.metrics.retrieval.choice import choice_of, open_index
from realign_cluster.metrics.retrieval.retriever import Retriever
from realign_cluster.workflows.data_checks import Found
from realign_cluster.workflows.derive import Derived, Inputs, derivation
from realign_cluster.workflows.measured import to_row

CARRYING: Final = ("items", "sealed", "practice", "pairs")  # sets whose rows bring passages with ids
RUN_WORDS: Final = 3
ALIKE: Final = 0.5  # of a passage's runs of words: it may be an excerpt of its source, or be cut otherwise
Row = dict[str, Any]


@derivation(version=2)
def source_measurements(inputs: Inputs, parameters: Mapping[str, Any]) -> Derived:
    """ "measurements": passages that say something else than the source of their id, and sources that a search for
    their own text does not find first (where an index is given); "examples" of both.
    """
    sources = {row["id"]: str(row["text"]) for row in inputs.rows("sources")}
    passages = [
        (passage["id"], str(passage["text"]))
        for name in CARRYING
        if inputs.has(name)
        for row in inputs.rows(name)
        for passage in row["sources"]
    ]
    found = [differing(sources, passages)]
    if inputs.has("index"):
        index = open_index(choice_of(parameters["retriever"]), inputs.folder("index"))
        found.append(_lost(index, sources, parameters["most"]))
    kept = [each for each in found if each.rows]
    return Derived(
        rows={
            "measurements": [to_row(each.measurement()) for each in kept],
            "examples": [row for each in kept for row in each.examples()],
        }
    )


def differing(sources: Mapping[str, str], passages: Sequence[tuple[str, str]]) -> Found:
    """Of the passages whose id is that of a source, each id once: it is wrong if less than half of its runs of words
    are the source's in any of the rows that bring it.
    """
    rows: dict[str, tuple[bool, Row]] = {}
    for name, text in dict.fromkeys(passages):
        if name in sources:
            wrong = _share(text, sources[name]) < ALIKE
            if name not in rows or wrong:
                rows[name] = (wrong, {"passage": text, "source": sources[name]})
    return Found(
        check="passages_differ",
        of="sources",
        rows=tuple((name, wrong, shown) for name, (wrong, shown) in rows.items()),
    )


def _share(passage: str, source: str) -> float:
    words = words_of(passage)
    runs = set(grams(words, min(RUN_WORDS, len(words)))) if words else set()
    if not runs:
        return 1.0
    length = min(RUN_WORDS, len(words))
    return len(runs & set(grams(words_of(source), length))) / len(runs)


def _lost(index: Retriever, sources: Mapping[str, str], most: int) -> Found:
    """Of at most `most` sources, evenly taken. One whose text another has too is found if either is."""
    names = list(sources)[:: max(1, len(sources) // most)][:most]
    rankings = index.search([sources[name] for name in names], 1)
    rows = []
    for name, ranking in zip(names, rankings, strict=True):
        first = ranking.ids[0] if ranking.ids else ""
        wrong = first != name and sources.get(first) != sources[name]
        rows.append((name, wrong, {"source": sources[name], "found": sources.get(first, "")}))
    return Found(check="not_found_by_itself", of="index", rows=tuple(rows))
