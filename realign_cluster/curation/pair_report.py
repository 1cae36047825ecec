"""What was found of preference pairs: one verdict a check, with its figure, its reason and its rows.

A check passes, fails, or is undefined where what it needs was not given: no scorer, no evaluation set, no other split.
Undefined is not passed. Rows are counted from 1, in the order in which they were given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from realign_cluster.curation.decontaminate import Decontamination
from realign_cluster.curation.deduplicate import Deduplicated

CheckName = Literal[
    "enough pairs", "readable", "empty fields", "identical", "duplicates", "contradictions", "gap", "length bias",
    "contamination", "leakage",
]  # fmt: skip
Status = Literal["passed", "failed", "undefined"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """`value` and `threshold` in `unit`; None where there is none. `rows`: the first of those that are at fault."""

    name: CheckName
    status: Status
    reason: str
    value: float | None = None
    threshold: float | None = None
    unit: str = ""
    rows: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PairLimits:
    """`length_bias`: the largest fraction of pairs of which their lengths alone may tell the chosen one. A limit of
    None is reported on and never fails.
    """

    gap: float = 0.15
    pairs: int = 1000
    clean_fraction: float = 0.9
    length_bias: float = 0.7
    near_duplicate_fraction: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Mean of (score chosen - score rejected) by `scorer`, in its unit. `reversed_fraction`: scored the other way
    round.
    """

    scorer: str
    pairs: int
    mean: float
    standard_error: float | None  # None: fewer than two pairs
    reversed_fraction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthBias:
    """Lengths in words. `predicted`: the fraction of pairs of unequal length of which a rule by length alone ("the
    longer one", or "the shorter one", whichever does better) names the chosen; `bound` its lower exact one-sided 95 %
    bound (Clopper-Pearson, the choice of the rule allowed for). `correlation`: Spearman's, of difference in length and
    gap, None without scores.
    """

    mean_chosen_words: float
    mean_rejected_words: float
    unequal: int
    longer_chosen: int
    predicted: float
    bound: float
    correlation: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """Row `row` has what row `other` of the split `split` has: the same prompt, or the same group key."""

    row: int
    split: str
    other: int
    kind: Literal["content", "group"]
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PairReport:
    """Everything that was found."""

    pairs: int
    checks: tuple[Check, ...]
    gap: Gap | None
    length: LengthBias | None
    duplicates: Deduplicated
    decontamination: Decontamination | None
    leaks: tuple[Leak, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.status == "failed")

    @property
    def undefined(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.status == "undefined")

    @property
    def passed(self) -> bool:
        """Whether every check passed: none failed, and none is undefined."""
        return all(check.status == "passed" for check in self.checks)

    def check(self, name: CheckName) -> Check:
        return next(check for check in self.checks if check.name == name)

    def text(self) -> str:
        """One line a check."""
        return "\n".join(f"{check.status}: {check.name}: {check.reason}" for check in self.checks)
