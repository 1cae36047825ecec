"""What a training plan is made from beside nodes and model: the work of a step, and the links between nodes.

Facts only; decides nothing. Lengths are in tokens, after truncation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from realign_cluster.domain.batching import ATTENTION_TOKENS
from realign_cluster.domain.train_memory import MicroBatchShape
from realign_cluster.domain.training import TrainSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainWork:
    """`sequence_tokens` is the mean length of a sequence, `longest_tokens` that of the longest; a row of a preference
    method has two. `target_fraction` of the tokens are predicted. `too_long` of the sequences that were looked at are
    longer than allowed.
    """

    settings: TrainSettings
    rows: int
    sequence_tokens: float
    longest_tokens: int
    target_fraction: float = 1.0
    too_long: int = 0
    estimated_from: str = ""  # "the first 512 rows", empty when every row was read

    @property
    def sequences_per_row(self) -> int:
        return 2 if self.settings.preference else 1

    @property
    def row_cost(self) -> float:
        """Of a mean row, in token equivalents (domain.batching.row_cost). A packed row pays for attention over its
        whole line, which is computed and masked.
        """
        tokens = self.sequence_tokens
        line = tokens
        if self.settings.packing:
            line = max(tokens, min(self._line_tokens(self.settings.global_batch), self.step_tokens))
        return self.sequences_per_row * (tokens + tokens * line / ATTENTION_TOKENS)

    @property
    def step_tokens(self) -> float:
        return self.settings.global_batch * self.sequences_per_row * self.sequence_tokens

    @property
    def step_cost(self) -> float:
        return self.settings.global_batch * self.row_cost

    @property
    def padded_longest(self) -> int:
        return -(-self.longest_tokens // self.settings.pad_to) * self.settings.pad_to

    def _line_tokens(self, rows: float) -> int:
        """Padded, of a line of the tokens that go through the model: one sequence or, packed, those of as many of a
        rank's `rows` as fit. Attention is as wide as that, whoever may look at whom.
        """
        if not self.settings.packing:
            return self.padded_longest
        room = min(self.settings.max_tokens, self.settings.micro_batch_tokens, math.ceil(rows) * self.longest_tokens)
        return -(-max(room, self.longest_tokens) // self.settings.pad_to) * self.settings.pad_to

    def micro_batch(self, rows: float) -> MicroBatchShape:
        """The largest that a rank with `rows` of a step's rows puts through the model: at least its longest row."""
        line = self._line_tokens(rows)
        own = math.ceil(rows) * self.sequences_per_row * self.padded_longest
        tokens = max(self.sequences_per_row * line, min(self.settings.micro_batch_tokens, own))
        return MicroBatchShape(
            tokens=tokens,
            row_tokens=line,
            targets=math.ceil(tokens * self.target_fraction),
            several=self.micro_batches(rows) > 1,
        )

    def micro_batches(self, rows: float) -> int:
        """Of one step, for a rank with `rows` of its rows."""
        own = rows * self.sequences_per_row * self.sequence_tokens
        one_row = self.sequences_per_row * self.padded_longest
        return max(1, math.ceil(own / max(self.settings.micro_batch_tokens, one_row)))


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkFacts:
    """Between two nodes, either way. `bytes_per_second` is what a plain TCP stream reaches, None: not measured.
    `rdma`: the hostfile names a device from each to the other. `loopback`: they are on one machine.
    """

    one: str
    other: str
    bytes_per_second: float | None = None
    round_trip_seconds: float | None = None
    rdma: bool = False
    loopback: bool = False


def link_between(links: Iterable[LinkFacts], one: str, other: str) -> LinkFacts:
    """What is known of a pair, in whichever order it was given; nothing is a link all the same."""
    for link in links:
        if {link.one, link.other} == {one, other}:
            return link
    return LinkFacts(one=one, other=other)
