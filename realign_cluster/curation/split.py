"""Hold-outs: rows into train, validation and test by group, so that nothing of a group is on two sides.

A group's place is a hash of its key and a salt: it does not depend on the other rows, so a group that was held out
once stays held out when data is added. Sizes are therefore near the fractions, not exact. Each split has a digest of
its groups, by which a sealed one is recognised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from realign_cluster.curation.draw import fraction
from realign_cluster.domain.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """`rows` are indexes (from 0) in order; `digest` is BLAKE2b-128 of the sorted group keys."""

    name: str
    rows: tuple[int, ...]
    groups: int
    digest: str


def split_by_group(groups: Sequence[str], fractions: Mapping[str, float], *, salt: str = "") -> dict[str, Part]:
    """`groups`: the key of each row's group (an entity, a source document, a conversation). `fractions` add up to 1.

    Raises UsageError where they do not, and where a part gets no group.
    """
    if abs(sum(fractions.values()) - 1) > 1e-9 or any(each <= 0 for each in fractions.values()):
        raise UsageError(f"the fractions {dict(fractions)} do not add up to 1", "give parts above 0 that do")
    places = {group: _place(fraction("split", salt, group), fractions) for group in set(groups)}
    parts = {}
    for name in fractions:
        own = sorted(group for group, place in places.items() if place == name)
        if not own:
            raise UsageError(
                f"none of {len(places)} groups falls into {name} ({fractions[name]:.1%})",
                "give more groups, a larger fraction, or another salt",
            )
        digest = blake2b("\0".join(own).encode(), digest_size=16).hexdigest()
        rows = tuple(at for at, group in enumerate(groups) if places[group] == name)
        parts[name] = Part(name=name, rows=rows, groups=len(own), digest=digest)
    return parts


def _place(drawn: float, fractions: Mapping[str, float]) -> str:
    below = 0.0
    for name, part in fractions.items():
        below += part
        if drawn < below:
            return name
    return list(fractions)[-1]  # the parts add up to a little less than 1 in floating point
