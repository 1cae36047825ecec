"""What a verifier is asked and what it answers: whether a claim is supported by its evidence.

Offsets are characters of the evidence as one text: a list of passages is joined by newlines, as scoring does. Must not
know how a verdict comes about.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import orjson

from realign_cluster.metrics.verifiers.report import CalibrationReport

Label = Literal["supported", "contradicted", "unverifiable"]
LABELS: tuple[Label, ...] = ("supported", "contradicted", "unverifiable")
EVEN_ODDS = 0.5  # from this probability on "supported", unless a calibration chose another threshold


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Characters `start` up to, not including, `end`."""

    start: int
    end: int

    def of(self, text: str) -> str:
        return text[self.start : self.end]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    claim: str
    evidence: str | tuple[str, ...]

    @property
    def text(self) -> str:
        """The evidence as one text, which spans point into."""
        return self.evidence if isinstance(self.evidence, str) else "\n".join(self.evidence)

    @property
    def key(self) -> str:
        """32 hex digits: BLAKE2b-128 of the claim and of the hash of the evidence's text."""
        evidence = hashlib.blake2b(self.text.encode(), digest_size=16).digest()
        return hashlib.blake2b(evidence + self.claim.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`supported` is a probability. `supported` and `label` are None together, where there is no answer: `reason`
    says why. Otherwise `reason` may say what decided or what limits the answer. `span` is the best evidence found.
    """

    supported: float | None
    label: Label | None
    span: Span | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        if (self.supported is None) != (self.label is None):
            raise ValueError("a verdict has a probability and a label, or neither")
        if self.supported is not None and not 0.0 <= self.supported <= 1.0:
            raise ValueError(f"{self.supported} is no probability")
        if self.label is None and not self.reason:
            raise ValueError("an undefined verdict says why")


@runtime_checkable
class Verifier(Protocol):
    def score(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """One verdict a pair, in their order."""
        ...

    def facts(self) -> Mapping[str, Any]:
        """All that verdicts depend on besides the pair, as JSON: rules or weights, prompt, tokenizer, calibration."""
        ...

    def fingerprint(self) -> str:
        """`fingerprint_of(facts())`: equal fingerprints give equal verdicts."""
        ...

    def calibration_report(self) -> CalibrationReport | None:
        """How it did against human labels; None for one that was never held against any."""
        ...


def fingerprint_of(facts: Mapping[str, Any]) -> str:
    """32 hex digits: BLAKE2b-128 of the facts as canonical JSON."""
    return hashlib.blake2b(orjson.dumps(facts, option=orjson.OPT_SORT_KEYS), digest_size=16).hexdigest()


def undefined(reason: str) -> Verdict:
    return Verdict(supported=None, label=None, reason=reason)


def unanswerable(pair: Pair) -> Verdict | None:
    """The verdict on a pair that no verifier needs to look at: nothing supports a claim without evidence, and a claim
    without text is none.
    """
    if not pair.claim.strip():
        return undefined("the claim is empty")
    if not pair.text.strip():
        return Verdict(supported=0.0, label="unverifiable", reason="there is no evidence")
    return None
