"""What speaks against a claim in the sentence closest to it: another number, another name or value in the same place,
or a negation in only one of the two.

Looks only where sentence and claim are about the same thing, so most claims that are not supported come out as merely
not found. Must not look at more than the one sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Literal

from realign_cluster.metrics.verifiers.words import Word

Mismatch = Literal["negation", "number", "value"]
LONGEST_SWAP = 3  # content words that can stand for one value


def find_mismatch(claim: Sequence[Word], sentence: Sequence[Word], *, least_shared: float) -> Mismatch | None:
    """`least_shared` is the share of the claim's content words, without those in question, that the sentence must
    hold to be about the same thing.
    """
    claim = [word for word in claim if word.is_content or word.is_negation]
    sentence = [word for word in sentence if word.is_content or word.is_negation]
    here = {word.stem for word in sentence}
    plain = [word for word in claim if not word.is_negation]
    missing = [word for word in plain if word.stem not in here]
    if len(plain) == len(missing):
        return None
    if not missing and _negated(claim) != _negated(sentence):
        return "negation"
    swapped = _swapped(claim, sentence)
    if not swapped or len(missing) > len(swapped):
        return None
    rest = [word for word in plain if word not in swapped]
    if not rest or sum(word.stem in here for word in rest) < least_shared * len(rest):
        return None
    return "number" if any(word.is_number for word in swapped) else "value"


def _negated(words: Sequence[Word]) -> bool:
    return sum(word.is_negation for word in words) % 2 == 1


def _swapped(claim: Sequence[Word], sentence: Sequence[Word]) -> Sequence[Word]:
    """The claim's words that the sentence does not have, where it has others in the same place: after the same word
    and before the same word, or at the same end. None where there are several such places: then it is another
    sentence, not another value.
    """
    here, there = [word.stem for word in sentence], [word.stem for word in claim]
    known, wanted = set(here), set(there)
    places: list[Sequence[Word]] = []
    for kind, begin, end, other_begin, other_end in SequenceMatcher(None, there, here, autojunk=False).get_opcodes():
        if kind != "replace" or max(end - begin, other_end - other_begin) > LONGEST_SWAP:
            continue
        ours, theirs = claim[begin:end], sentence[other_begin:other_end]
        if known.isdisjoint(there[begin:end]) and wanted.isdisjoint(here[other_begin:other_end]):
            numbers = any(word.is_number for word in ours), any(word.is_number for word in theirs)
            if numbers[0] == numbers[1] and not any(word.is_negation for word in (*ours, *theirs)):
                places.append(ours)
    return places[0] if len(places) == 1 else []
