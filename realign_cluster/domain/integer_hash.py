"""A fixed hash of integers, the same on every platform and with every version of NumPy: what is "random" in training.

Steele, Lea and Flood's splitmix64: a step by the golden ratio, then a finaliser in which every bit of the input changes
each bit of the output with probability 1/2. Must not know what is hashed.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

GOLDEN: Final = 0x9E3779B97F4A7C15
_MASK: Final = 2**64 - 1
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_STEP = np.uint64(GOLDEN)


def hash_words(words: Words) -> Words:
    """Of each word, any shape; a bijection, so that different words stay different."""
    mixed = words + _STEP
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _FIRST
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _SECOND
    return mixed ^ (mixed >> np.uint64(31))


def hash_integers(*parts: int) -> int:
    """64 bits of a sequence of integers; their order counts, and of each integer the low 64 bits."""
    state = np.zeros(1, dtype=np.uint64)
    for part in parts:
        state = hash_words(state ^ np.array([part & _MASK], dtype=np.uint64))
    return int(state[0])
