"""Duplicates: what bands of MinHash find is what the formula says, on texts whose similarity is known by making."""

from __future__ import annotations

import random

import numpy as np
import pytest
from rensa import RMinHash, RMinHashLSH

from realign_cluster.curation.deduplicate import (
    BAND_ROWS,
    BANDS,
    deduplicate,
    detection_probability,
    shingles_of,
    sketch,
)

PAIRS = 800
WORDS = 300


def text_pair(jaccard: float, seed: int) -> tuple[str, str, float]:
    """Two texts that share a beginning and then differ in every word, and the similarity of their 5-grams."""
    draw = random.Random(seed)
    shared = round(2 * WORDS * jaccard / (1 + jaccard))
    first = [f"w{draw.getrandbits(40):x}" for _ in range(WORDS)]
    second = first[:shared] + [f"w{draw.getrandbits(40):x}" for _ in range(WORDS - shared)]
    one, two = set(shingles_of(" ".join(first))), set(shingles_of(" ".join(second)))
    return " ".join(first), " ".join(second), len(one & two) / len(one | two)


def test_the_formula_has_the_values_of_fineweb() -> None:
    found = [detection_probability(jaccard) for jaccard in (0.70, 0.75, 0.80, 0.85)]
    assert found == pytest.approx([0.5645, 0.7716, 0.9236, 0.9884], abs=1e-4)  # 0.92355 is given as 0.9236
    assert BANDS * BAND_ROWS == 112


@pytest.mark.parametrize("jaccard", [0.5, 0.70, 0.75, 0.80, 0.85])
def test_detection_is_what_the_formula_says(jaccard: float) -> None:
    made = [text_pair(jaccard, seed) for seed in range(PAIRS)]
    expected = float(np.mean([detection_probability(similarity) for *_, similarity in made]))
    texts = [text for one, two, _ in made for text in (one, two)]
    found = deduplicate(texts)
    assert all(each.of == each.index - 1 for each in found.duplicates)  # unrelated texts never meet
    error = 3.5 * np.sqrt(expected * (1 - expected) / PAIRS)
    assert len(found.duplicates) / PAIRS == pytest.approx(expected, abs=error)
    assert np.mean([similarity for *_, similarity in made]) == pytest.approx(jaccard, abs=0.006)


@pytest.mark.parametrize("threshold", [0.1, 0.8, 0.99])
def test_pairs_are_those_of_rensas_index_whatever_its_threshold(threshold: float) -> None:
    texts = [text for seed in range(150) for text in text_pair(0.7, seed)[:2]]
    shingled = [shingles_of(text) for text in texts]
    index = RMinHashLSH(threshold, BANDS * BAND_ROWS, BANDS)
    index.insert_many(sketches := RMinHash.from_token_sets(shingled, BANDS * BAND_ROWS, 1))
    met = {(min(own, other), own) for own, each in enumerate(sketches) for other in index.query(each) if other < own}
    assert {(each.of, each.index) for each in deduplicate(texts, seed=1).duplicates} == met
    assert 50 < len(met) < 120


def test_sketches_depend_on_the_set_and_the_seed_only() -> None:
    words = [f"w{at}" for at in range(30)]
    turned = [*words[10:], "!", *words[10:]]  # the same grams twice, and four that join the ends
    one = sketch([" ".join(words[10:]), " ".join(turned), " ".join(words)], seed=3)
    assert one.shape == (3, 112)
    assert (one[0] == one[1]).mean() == pytest.approx(16 / 20, abs=0.12)
    assert (one[0] == sketch([" ".join(words[10:]).upper()], seed=3)).all()
    assert (one != sketch([" ".join(words)] * 3, seed=4)).any()
    assert (
        sketch(["a b c d e a b c d e a b c d e"], seed=3).tolist() == sketch(["a b c d e a b c d e"], seed=3).tolist()
    )


def test_the_first_of_a_family_stays() -> None:
    text = " ".join(f"word{at}" for at in range(60))
    found = deduplicate(
        ["another", text, f"  {text}\n", text.upper() + "!", "yet another", text.replace("word59", "x")]
    )
    assert found.kept == (0, 1, 4)
    assert [(each.index, each.of, each.kind) for each in found.duplicates] == [
        (2, 1, "exact"), (3, 1, "near"), (5, 1, "near")
    ]  # fmt: skip
    assert [each.similarity for each in found.duplicates[:2]] == [1.0, 1.0]
    assert found.duplicates[2].similarity == pytest.approx(55 / 57, abs=0.1)
    assert (found.count("exact"), found.count("near"), found.duplicate_fraction) == (1, 2, 0.5)


def test_an_exact_copy_of_a_near_duplicate_is_one_too() -> None:
    found = deduplicate(["one two three four five six", "One, two, three, four, five, six.", "x", " x"] * 2)
    assert found.kept == (0, 2)
    assert [(each.index, each.of, each.kind) for each in found.duplicates] == [
        (1, 0, "near"), (3, 2, "exact"), (4, 0, "exact"), (5, 0, "near"), (6, 2, "exact"), (7, 2, "exact")
    ]  # fmt: skip


def test_a_chain_is_one_family() -> None:
    words = [f"w{at}" for at in range(400)]
    chain = [" ".join(words[at : at + 240]) for at in (0, 8, 16, 24, 32, 40, 48, 56, 64, 72, 80)]
    found = deduplicate(chain)
    assert found.kept == (0,)
    assert found.duplicates[-1].similarity < 0.7  # which would hardly have been found alone


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        ("The answer is 41.", "The answer is 42.", False),
        ("the Answer: is 42", "The answer is 42.", True),
        ("two words", "words two", False),
        ("", "...", False),
        ("東京は日本の首都", "東京は、日本の首都。", True),
        ("東京は日本の首都", "京都は日本の首都", False),
    ],
)
def test_short_texts(one: str, two: str, same: bool) -> None:
    assert bool(deduplicate([one, two]).duplicates) == same


def test_without_near_duplicates_and_without_texts() -> None:
    assert deduplicate(["a b c d e", "A b c d e", "a b c d e"], near=False).kept == (0, 1)
    nothing = deduplicate([])
    assert (nothing.kept, nothing.duplicate_fraction) == ((), None)
