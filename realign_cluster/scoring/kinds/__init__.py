"""The score kinds: each is one small file that says which sequences to score and how their log-likelihoods become
numbers.

To add a kind:

1. Write `kinds/NAME.py` with a class that has `name`, `version` and `plan(fields, encoder, job) -> KindPlan`.
   `fields` maps each role that the kind needs to the row's value, already checked. `plan` encodes them into `Scored`
   sequences and returns, with them, a `reduce` function: it is given one float32 array of token log-probabilities
   (nats) per sequence, in the same order, and returns the JSON object that goes into `scores` under the kind's name.
   Undefined numbers are None, with "undefined" naming the reason; never NaN. Raise `RowRefused` for a row that no node
   can ever score.
2. Name its field roles in `domain.job.FIELDS_OF_KIND`: the coordinator checks rows by that table, without importing
   this package.
3. Add it to `KINDS` below. Raise `version` (and `domain.job.KIND_VERSION`) whenever the same row would get other
   numbers.

A kind that needs texts instead of numbers (`generate`) returns a `SamplePlan`: a prompt, and what becomes of its
samples. One that compares two models (`kl`) says so by `measure`, and is given the divergence at each scored token.

Kinds must not batch, cache or know the model: equal sequences of several kinds are computed once, and shared prefixes
once.
"""

from __future__ import annotations

from collections.abc import Iterable

from realign_cluster.scoring.kinds.base import Kind, KindPlan, SamplePlan
from realign_cluster.scoring.kinds.generate import Generate
from realign_cluster.scoring.kinds.ifd import Ifd, IfdPpl
from realign_cluster.scoring.kinds.judge import Judge
from realign_cluster.scoring.kinds.kl import KlDivergence
from realign_cluster.scoring.kinds.loglik import LogLikelihood
from realign_cluster.scoring.kinds.noop import Noop
from realign_cluster.scoring.kinds.preference import Preference

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (LogLikelihood(), Ifd(), IfdPpl(), Preference(), Judge(), KlDivergence(), Generate(), Noop())
}


def kinds_named(names: Iterable[str]) -> list[Kind]:
    """The kinds of a job. Raises KeyError for a name that is not registered."""
    return [KINDS[name] for name in names]


__all__ = ["KINDS", "Kind", "KindPlan", "SamplePlan", "kinds_named"]
