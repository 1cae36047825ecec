"""The verifier that needs no model: how much of the claim's wording is in the evidence, and what speaks against it.

It cannot read: a claim that uses the evidence's words for something else is supported to it, and one in other words is
not. Its probability is meant for claims like Wikipedia's against articles; elsewhere calibrate it first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from realign_cluster.metrics.verifiers.containment import Containment, measure
from realign_cluster.metrics.verifiers.evidence import sentence_spans
from realign_cluster.metrics.verifiers.mismatch import find_mismatch
from realign_cluster.metrics.verifiers.report import CalibrationReport
from realign_cluster.metrics.verifiers.verdict import (
    EVEN_ODDS,
    Label,
    Pair,
    Span,
    Verdict,
    fingerprint_of,
    unanswerable,
    undefined,
)
from realign_cluster.metrics.verifiers.words import WORDS_VERSION, Word, words_of

RULES_VERSION = 2  # raise it whenever the same pair would get another verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class LexicalRules:
    """log odds of "supported" = constant + gathered + window + the missing and mismatched. The five numbers up to
    `name_missing` are the logistic regression (supported against the rest) on the odd rows of WiCE's development set,
    ridge 1 on standardised measurements; `benchmarks/verifier_quality.py` fits them again and judges them on the
    even rows.
    """

    constant: float = -4.47
    gathered: float = 1.90
    window: float = 4.48
    number_missing: float = -1.15
    name_missing: float = -0.60
    mismatch: float = -3.0
    kin: float = 0.6  # what a word counts that only begins like one of the evidence's
    least_shared: float = 0.75  # of the claim's other words, in a sentence that is to contradict it


class LexicalVerifier:
    def __init__(self, rules: LexicalRules | None = None) -> None:
        self.rules = rules or LexicalRules()
        self._read = lru_cache(maxsize=16)(_sentences)  # claims on one evidence come together

    def score(self, pairs: Sequence[Pair]) -> list[Verdict]:
        return [self._judge(pair) for pair in pairs]

    def facts(self) -> Mapping[str, Any]:
        return {"verifier": "lexical", "version": [RULES_VERSION, WORDS_VERSION], "rules": asdict(self.rules)}

    def fingerprint(self) -> str:
        return fingerprint_of(self.facts())

    def calibration_report(self) -> CalibrationReport | None:
        return None

    def containment(self, pair: Pair) -> Containment | None:
        """The measurements alone; None where there is nothing to measure."""
        return measure(words_of(pair.claim), self._read(pair.text)[1], kin=self.rules.kin)

    def _judge(self, pair: Pair) -> Verdict:
        if (answer := unanswerable(pair)) is not None:
            return answer
        spans, sentences = self._read(pair.text)
        claim = words_of(pair.claim)
        found = measure(claim, sentences, kin=self.rules.kin)
        if found is None:
            return undefined("the claim has no words that say anything")
        mismatch = find_mismatch(claim, sentences[found.best_sentence], least_shared=self.rules.least_shared)
        supported = probability(found, self.rules, mismatched=mismatch is not None)
        label: Label = "unverifiable" if mismatch is None else "contradicted"
        if supported >= EVEN_ODDS:
            label = "supported"
        reason = "" if mismatch is None else f"{mismatch} mismatch"
        span = spans[found.best_sentence] if found.sentence > 0 else None
        return Verdict(supported=supported, label=label, span=span, reason=reason)


def probability(found: Containment, rules: LexicalRules, *, mismatched: bool) -> float:
    log_odds = (
        rules.constant
        + rules.gathered * found.gathered
        + rules.window * found.window
        + rules.number_missing * found.numbers_missing
        + rules.name_missing * found.names_missing
        + rules.mismatch * mismatched
    )
    return 1.0 / (1.0 + math.exp(-log_odds))


def _sentences(text: str) -> tuple[list[Span], list[list[Word]]]:
    spans = sentence_spans(text)
    return spans, [words_of(span.of(text)) for span in spans]
