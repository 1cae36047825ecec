"""How much of a claim's wording its evidence holds: the measurements behind the lexical verifier.

Words are compared by stem; one that is not there but shares its first five letters with one that is ("invent",
"inventor") counts in part. Must not decide anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from realign_cluster.metrics.verifiers.words import Word

SHARED_BEGINNING = 5  # letters
WINDOW_SENTENCES = 7
GATHERED_SENTENCES = 3

Cover = npt.NDArray[np.float64]  # (sentences, claim words): 1 there, `kin` only a word that begins alike, 0 neither


@dataclass(frozen=True, slots=True, kw_only=True)
class Containment:
    """Shares are of the claim's distinct content words, 0 to 1; counts are of distinct words."""

    sentence: float  # in the one best sentence
    gathered: float  # in the best three sentences, taken greedily
    window: float  # in the best seven consecutive sentences
    numbers_missing: int  # nowhere in the evidence
    names_missing: int  # capitalised within the claim, nowhere in the evidence
    best_sentence: int


def content_words(words: Sequence[Word]) -> list[Word]:
    """Content words, each stem once: the first one, or the first one with a small initial."""
    found: dict[str, Word] = {}
    for word in words:
        if word.is_content:
            found.setdefault(word.stem, word)
    return list(found.values())


def measure(claim: Sequence[Word], sentences: Sequence[Sequence[Word]], *, kin: float) -> Containment | None:
    """None for a claim without content words, or without sentences to look in."""
    wanted = content_words(claim)
    if not wanted or not sentences:
        return None
    cover = _cover(wanted, sentences, kin)
    rarity = np.log1p((len(sentences) + 1) / ((cover == 1.0).sum(axis=0) + 1))
    best = int(np.argmax(cover @ rarity))  # rare words tell which sentence is meant
    gathered = cover[best]
    for _ in range(min(GATHERED_SENTENCES, len(sentences)) - 1):
        reached = np.maximum(cover, gathered)
        gathered = reached[int(np.argmax(reached.sum(axis=1)))]
    nowhere = (cover != 1.0).all(axis=0)
    within = {word.stem for word in claim[1:] if word.is_capitalised}  # the first word of a sentence always is
    missing = [word for word, gone in zip(wanted, nowhere, strict=True) if gone]
    return Containment(
        sentence=float(cover[best].mean()),
        gathered=float(gathered.mean()),
        window=_best_window(cover),
        numbers_missing=sum(word.is_number for word in missing),
        names_missing=sum(word.stem in within and not word.is_number for word in missing),
        best_sentence=best,
    )


def _cover(wanted: Sequence[Word], sentences: Sequence[Sequence[Word]], kin: float) -> Cover:
    cover = np.zeros((len(sentences), len(wanted)))
    for row, sentence in enumerate(sentences):
        stems = {word.stem for word in sentence}
        beginnings = {stem[:SHARED_BEGINNING] for stem in stems if len(stem) >= SHARED_BEGINNING}
        for column, word in enumerate(wanted):
            if word.stem in stems:
                cover[row, column] = 1.0
            elif not word.is_number and word.stem[:SHARED_BEGINNING] in beginnings:
                cover[row, column] = kin
    return cover


def _best_window(cover: Cover) -> float:
    width = min(WINDOW_SENTENCES, len(cover))
    windows = np.lib.stride_tricks.sliding_window_view(cover, width, axis=0)
    return float(windows.max(axis=2).mean(axis=1).max())
