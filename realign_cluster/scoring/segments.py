"""What is prefilled once: sequences as trees of token segments, with the log-probabilities that each position has to
give.

Pure. The tree of a row follows from the row alone (its own sequences, and the trunk that its kinds name), so that a
row is computed in the same shape whichever rows are near it; trees of different rows are only joined at trunks that
are equal and give the same positions.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from realign_cluster.scoring.encode import Scored, common_prefix

SHARED_AT_LEAST = 16  # tokens: below it a prefix is cheaper to compute again than to keep


@dataclass(slots=True, kw_only=True)
class Segment:
    """A run of tokens after its parent's. Target i: at `positions[i]` (in this segment) the log-probability of
    `targets[i]` is wanted, and goes to `slots[i]` of the result.
    """

    tokens: list[int]
    positions: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    children: list[Segment] = field(default_factory=list)

    @property
    def total_tokens(self) -> int:
        """Tokens that go through the model for this segment and all below it."""
        return len(self.tokens) + sum(child.total_tokens for child in self.children)

    def walk(self) -> Iterator[Segment]:
        yield self
        for child in self.children:
            yield from child.walk()


def plan_segments(sequences: Sequence[Scored], trunk: int, first_slot: int) -> list[Segment]:
    """Trees for one row's sequences. Slots count the scored tokens of all sequences in order, from `first_slot`.

    Sequences without a scored token get no tree: nothing of them is computed.
    """
    slots, at = [], first_slot
    for sequence in sequences:
        slots.append(at)
        at += sequence.tokens
    wanted = [(sequence, slot) for sequence, slot in zip(sequences, slots, strict=True) if sequence.spans]
    trees: list[Segment] = []
    while wanted:
        family = [wanted.pop(0)]
        first = family[0][0].ids
        shared = len(first)
        for other in list(wanted):
            common = common_prefix(first, other[0].ids)
            if common >= SHARED_AT_LEAST:
                family.append(other)
                wanted.remove(other)
                shared = min(shared, common)
        trees.append(_tree(family, shared, trunk))
    return trees


def _tree(family: list[tuple[Scored, int]], shared: int, trunk: int) -> Segment:
    ids = family[0][0].ids
    ends = [0]
    if SHARED_AT_LEAST <= trunk < shared:
        ends.append(trunk)
    if len(family) > 1:
        ends.append(shared)
    spine = [Segment(tokens=list(ids[start:end])) for start, end in itertools.pairwise(ends)]
    for above, below in itertools.pairwise(spine):
        above.children.append(below)
    for sequence, first_slot in family:
        leaf = Segment(tokens=list(sequence.ids[ends[-1] : -1]))  # the last token is predicted, never read
        for segment, low, high in zip([*spine, leaf], ends, [*ends[1:], len(sequence.ids)], strict=True):
            slot = first_slot
            for start, end in sequence.spans:
                # token i is predicted at position i - 1, which is in this segment if low <= i - 1 < high
                first, last = max(start, low + 1), min(end, high + 1)
                if first < last:
                    segment.positions.extend(range(first - 1 - low, last - 1 - low))
                    segment.targets.extend(sequence.ids[first:last])
                    segment.slots.extend(range(slot + first - start, slot + last - start))
                slot += end - start
        leaf.tokens = leaf.tokens[: max(leaf.positions, default=-1) + 1]
        if not spine:
            return leaf
        if leaf.tokens:
            spine[-1].children.append(leaf)
    root = spine[0]
    _trim(root)
    return root


def _trim(segment: Segment) -> None:
    """A segment that nothing follows needs no token after its last target; a child without tokens needs no forward
    pass.
    """
    for child in segment.children:
        _trim(child)
    segment.children = [child for child in segment.children if child.tokens]
    if not segment.children:
        segment.tokens = segment.tokens[: max(segment.positions, default=-1) + 1]


def join_trunks(trees: Iterable[Segment]) -> list[Segment]:
    """Trees whose roots are the same tokens and are wanted at the same positions become one: a root that gives more
    logits than it would alone is another shape. Every tree must have children: nothing else is worth sharing.
    """
    joined: dict[tuple[tuple[int, ...], tuple[int, ...]], Segment] = {}
    for tree in trees:
        key = tuple(tree.tokens), tuple(sorted(set(tree.positions)))
        known = joined.setdefault(key, tree)
        if known is not tree:
            known.positions += tree.positions
            known.targets += tree.targets
            known.slots += tree.slots
            known.children += tree.children
    return list(joined.values())


def flatten(tree: Segment) -> list[Segment]:
    """The same targets as separate sequences, for models whose cache cannot be rewound: prefixes are computed again."""
    if not tree.children:
        return [tree]
    result = []
    for child in tree.children:
        for leaf in flatten(child):
            shift = len(tree.tokens)
            result.append(
                Segment(
                    tokens=tree.tokens + leaf.tokens,
                    positions=[position + shift for position in leaf.positions],
                    targets=leaf.targets,
                    slots=leaf.slots,
                )
            )
    if tree.positions:
        own = result[0]
        own.positions, own.targets, own.slots = (
            tree.positions + own.positions,
            tree.targets + own.targets,
            tree.slots + own.slots,
        )
    return result
