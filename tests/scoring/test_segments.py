"""Trees of segments: every wanted token keeps its context, whatever is shared, joined or flattened."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from realign_cluster.scoring.encode import Scored, common_prefix
from realign_cluster.scoring.segments import SHARED_AT_LEAST, Segment, flatten, join_trunks, plan_segments

Wanted = dict[int, tuple[tuple[int, ...], int]]  # slot -> (context, token)


def read_out(segment: Segment, before: tuple[int, ...] = ()) -> Wanted:
    """Which token each slot gets the probability of, and after which tokens."""
    found: Wanted = {}
    for position, target, slot in zip(segment.positions, segment.targets, segment.slots, strict=True):
        assert slot not in found
        found[slot] = (before + tuple(segment.tokens[: position + 1]), target)
    for child in segment.children:
        found |= read_out(child, before + tuple(segment.tokens))
    return found


def expected(sequences: Sequence[Scored], first_slot: int = 0) -> Wanted:
    found, slot = {}, first_slot
    for sequence in sequences:
        for start, end in sequence.spans:
            for at in range(start, end):
                found[slot] = (sequence.ids[:at], sequence.ids[at])
                slot += 1
    return found


@st.composite
def families(draw: st.DrawFn) -> tuple[list[Scored], int]:
    """Sequences of one row, most of them with a prefix in common, and a trunk."""
    ids = st.integers(0, 3)
    shared = draw(st.lists(ids, min_size=1, max_size=60))
    sequences = []
    for _ in range(draw(st.integers(1, 4))):
        own = draw(st.lists(ids, max_size=20))
        whole = (shared if draw(st.booleans()) else shared[: draw(st.integers(1, len(shared)))]) + own
        start = draw(st.integers(1, len(whole)))
        end = draw(st.integers(start, len(whole)))
        spans: tuple[tuple[int, int], ...] = ((start, end),) if start < end else ()
        if start < end and draw(st.booleans()) and end + 1 < len(whole):
            spans += ((end + 1, len(whole)),)
        sequences.append(Scored(ids=tuple(whole), spans=spans))
    return sequences, draw(st.integers(0, 70))


@given(families())
def test_every_wanted_token_keeps_its_context(family: tuple[list[Scored], int]) -> None:
    sequences, trunk = family
    trees = plan_segments(sequences, trunk, first_slot=5)
    found: Wanted = {}
    for tree in trees:
        found |= read_out(tree)
    assert found == expected(sequences, first_slot=5)
    assert all(segment.tokens for tree in trees for segment in tree.walk())


@given(families())
def test_flattened_trees_want_the_same(family: tuple[list[Scored], int]) -> None:
    sequences, trunk = family
    found: Wanted = {}
    for tree in plan_segments(sequences, trunk, first_slot=0):
        for leaf in flatten(tree):
            assert not leaf.children
            found |= read_out(leaf)
    assert found == expected(sequences)


@given(st.lists(families(), min_size=1, max_size=4))
def test_joined_trunks_want_the_same(rows: list[tuple[list[Scored], int]]) -> None:
    rows = rows + rows  # so that trunks are equal
    trees: list[Segment] = []
    wanted: Wanted = {}
    slot = 0
    for sequences, trunk in rows:
        trees += plan_segments(sequences, trunk, slot)
        wanted |= expected(sequences, slot)
        slot += sum(sequence.tokens for sequence in sequences)
    before = sum(tree.total_tokens for tree in trees)
    joined = join_trunks(trees)
    found: Wanted = {}
    for tree in joined:
        found |= read_out(tree)
    assert found == wanted
    assert sum(tree.total_tokens for tree in joined) <= before


def test_a_pair_shares_its_prompt() -> None:
    prompt = tuple(range(40))
    pair = [Scored(ids=(*prompt, *tail), spans=((40, 45),)) for tail in ((50, 51, 52, 53, 54), (60, 61, 62, 63, 64))]
    (tree,) = plan_segments(pair, 0, 0)
    assert tree.tokens == list(prompt)
    assert [child.tokens for child in tree.children] == [[50, 51, 52, 53], [60, 61, 62, 63]]
    assert tree.total_tokens == 48


def test_labels_of_one_token_need_no_branch() -> None:
    prompt = tuple(range(40))
    (tree,) = plan_segments([Scored(ids=(*prompt, label), spans=((40, 41),)) for label in (7, 8)], 0, 0)
    assert (tree.tokens, tree.children) == (list(prompt), [])
    assert (tree.positions, tree.targets, tree.slots) == ([39, 39], [7, 8], [0, 1])


def test_short_prefixes_are_computed_again() -> None:
    shared = tuple(range(SHARED_AT_LEAST - 1))
    span = (len(shared), len(shared) + 2)
    pair = [Scored(ids=(*shared, first, 60), spans=(span,)) for first in (50, 51)]
    assert len(plan_segments(pair, 0, 0)) == 2


def test_what_is_not_scored_is_not_computed() -> None:
    assert plan_segments([Scored(ids=(1, 2, 3), spans=())], 0, 0) == []


@given(st.lists(st.integers(0, 1), max_size=30), st.lists(st.integers(0, 1), max_size=30))
def test_common_prefix(left: list[int], right: list[int]) -> None:
    shared = common_prefix(left, right)
    assert left[:shared] == right[:shared]
    assert shared in (len(left), len(right)) or left[shared] != right[shared]
