"""What is wrong with the citations of an answer, and answers made wrong on purpose in the same ways.

right        every sentence that needs one has a citation, and each citation supports its sentence
missing      a sentence that needs a citation has none
swapped      sentences cite what supports each other, not themselves
wrong        a sentence cites nothing that supports it
irrelevant   every sentence is supported, but something is cited beside that does not support it

The first that applies, in the order missing, swapped, wrong, irrelevant. What supports what is a verifier's (or gold
labels') to say: nothing here reads the text of a sentence or a source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Final, Literal

from realign_cluster.curation.draw import fraction, shuffled

Fault = Literal["wrong", "missing", "swapped", "irrelevant"]
CitationVerdict = Literal["right", "wrong", "missing", "swapped", "irrelevant"]
FAULTS: Final[tuple[Fault, ...]] = ("wrong", "missing", "swapped", "irrelevant")


@dataclass(frozen=True, slots=True, kw_only=True)
class CitedSentence:
    """A sentence without its markers, the sources that it cites, and those of the context that support it."""

    text: str
    cites: tuple[str, ...]
    supported_by: frozenset[str]
    needs_citation: bool = True


def judge_citations(sentences: Sequence[CitedSentence]) -> CitationVerdict:
    """Raises ValueError for an answer without sentences."""
    if not sentences:
        raise ValueError("an answer without sentences has no citations to judge")
    if any(sentence.needs_citation and not sentence.cites for sentence in sentences):
        return "missing"
    unsupported = [at for at, each in enumerate(sentences) if each.cites and not set(each.cites) & each.supported_by]
    if unsupported:
        return "swapped" if len(unsupported) > 1 and _swapped(sentences, unsupported) else "wrong"
    if any(set(sentence.cites) - sentence.supported_by for sentence in sentences):
        return "irrelevant"
    return "right"


def _swapped(sentences: Sequence[CitedSentence], unsupported: Sequence[int]) -> bool:
    """Whether each of these sentences cites only what supports another of them."""
    return all(
        set(sentences[at].cites) <= frozenset().union(*(sentences[o].supported_by for o in unsupported if o != at))
        for at in unsupported
    )


def with_fault(
    sentences: Sequence[CitedSentence], fault: Fault, sources: Sequence[str], *, seed: int, name: str
) -> tuple[CitedSentence, ...] | None:
    """The right answer `sentences` with that fault, or None where it cannot have it.

    `sources`: all of the context. (seed, name of the answer, fault) decide where. Raises ValueError for an answer that
    is not right.
    """
    if (verdict := judge_citations(sentences)) != "right":
        raise ValueError(f"the citations are {verdict} already")
    key = (seed, name, fault)
    citing = shuffled([at for at, each in enumerate(sentences) if each.needs_citation], *key)
    made = list(sentences)
    match fault:
        case "missing":
            for turn, at in enumerate(citing):
                if turn == 0 or fraction(*key, "also", at) < 0.5:
                    made[at] = replace(made[at], cites=())
        case "swapped":
            pairs = [(one, two) for one, two in combinations(sorted(citing), 2) if _would_fail(sentences, one, two)]
            if pairs:
                one, two = shuffled(pairs, *key)[0]
                made[one] = replace(made[one], cites=sentences[two].cites)
                made[two] = replace(made[two], cites=sentences[one].cites)
        case "wrong" | "irrelevant":
            for at in citing:
                strangers = shuffled([each for each in sources if each not in sentences[at].supported_by], *key, at)
                if strangers:
                    kept = sentences[at].cites if fault == "irrelevant" else ()
                    made[at] = replace(made[at], cites=(*kept, strangers[0]))
                    break
    return tuple(made) if judge_citations(made) == fault else None


def _would_fail(sentences: Sequence[CitedSentence], one: int, two: int) -> bool:
    first, second = sentences[one], sentences[two]
    return not (set(first.cites) & second.supported_by or set(second.cites) & first.supported_by)
