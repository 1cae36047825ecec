"""The checklists of both workflows: every item is ticked from facts of the run, but the two that a person signs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

Phase = Literal["before", "during", "after"]
THRESHOLDS_UNDERSTOOD: Final = "thresholds understood"
DOCUMENTATION_COMPLETE: Final = "documentation complete"
SIGNED_ITEMS: Final = (THRESHOLDS_UNDERSTOOD, DOCUMENTATION_COMPLETE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Of a run: the last attempt of each stage by its name, and its verdicts; who signed what."""

    stages: Mapping[str, Mapping[str, Any]]
    verdicts: Mapping[str, Mapping[str, str]]  # stage -> gate -> outcome; an override counts as what it overrode
    signatures: Mapping[str, str]  # item -> "NAME, TIME"
    state: str

    def ended(self, stage: str) -> bool:
        return stage in self.stages

    def passed(self, stage: str, *gates: str) -> bool:
        """All of these gates, or all of the stage's if none is named."""
        found = self.verdicts.get(stage, {})
        wanted = gates or tuple(found)
        return bool(wanted) and all(found.get(gate) == "PASS" for gate in wanted)

    def value(self, stage: str, metric: str) -> float | None:
        measured = self.stages.get(stage, {}).get("measurements", {})
        value = measured.get(metric, {}).get("value")
        return None if value is None else float(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    phase: Phase
    text: str
    ticked: Callable[[Facts], bool]
    signed: str = ""  # the name under which a person signs


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticked:
    phase: Phase
    text: str
    done: bool
    by: str = ""  # who signed and when; "" for what facts say


def _improved(metric: str, *, lower_is_better: bool = False) -> Callable[[Facts], bool]:
    def check(facts: Facts) -> bool:
        before, after = facts.value("preparation", metric), facts.value("evaluation", metric)
        if before is None or after is None:
            return False
        return after < before if lower_is_better else after > before

    return check


def _signed(item: str) -> Callable[[Facts], bool]:
    return lambda facts: item in facts.signatures


def _retained(facts: Facts) -> bool:
    gates = [name for name in facts.verdicts.get("evaluation", {}) if name.startswith("retention_")]
    return bool(gates) and facts.passed("evaluation", *gates)


def _kl_watched(facts: Facts) -> bool:
    return facts.value("optimisation", "kl") is not None


_BASE = Item(
    phase="before", text="SFT base trained and validated", ticked=lambda f: f.passed("preparation", "perplexity")
)
_UNDERSTOOD = Item(
    phase="before", text="thresholds understood", ticked=_signed(THRESHOLDS_UNDERSTOOD), signed=THRESHOLDS_UNDERSTOOD
)
_KL = Item(phase="during", text="KL watched", ticked=_kl_watched)
_ENFORCED = Item(
    phase="during",
    text="gates enforced",
    ticked=lambda f: bool(f.stages) and all(f.verdicts.get(name) for name in f.stages),
)
_THRESHOLDS = Item(
    phase="after", text="all thresholds met", ticked=lambda f: f.state == "complete" and f.passed("evaluation")
)
_RETAINED = Item(phase="after", text="no capability regression", ticked=_retained)
_CITATION = Item(phase="after", text="citation accuracy improved", ticked=_improved("citation_recall"))
_COMPLETE = Item(
    phase="after",
    text="documentation complete (model card, stage pages)",
    ticked=_signed(DOCUMENTATION_COMPLETE),
    signed=DOCUMENTATION_COMPLETE,
)

CHECKLISTS: Final[Mapping[str, tuple[Item, ...]]] = {
    "source-attribution": (
        _BASE,
        Item(
            phase="before",
            text="baseline citation accuracy measured",
            ticked=lambda f: f.value("preparation", "citation_precision") is not None,
        ),
        Item(phase="before", text="source databases found and indexed", ticked=lambda f: f.ended("sources")),
        Item(
            phase="before",
            text="citation format fixed",
            ticked=lambda f: f.value("preparation", "citation_format") is not None,
        ),
        _UNDERSTOOD,
        Item(phase="during", text="source data validated (retrieval)", ticked=lambda f: f.passed("sources")),
        Item(phase="during", text="citation training done", ticked=lambda f: f.passed("citation")),
        Item(
            phase="during",
            text="attribution verification in place (coverage)",
            ticked=lambda f: f.passed("verification", "attribution_coverage"),
        ),
        _KL,
        _ENFORCED,
        _THRESHOLDS,
        _RETAINED,
        _CITATION,
        Item(
            phase="after",
            text="attribution consistent",
            ticked=lambda f: (f.value("evaluation", "attribution_consistency") or 0.0) >= 0.9,
        ),
        _COMPLETE,
    ),
    "antihallucination": (
        _BASE,
        Item(
            phase="before",
            text="baseline hallucination rate measured",
            ticked=lambda f: f.value("preparation", "hallucination_rate") is not None,
        ),
        Item(phase="before", text="factual sources identified", ticked=lambda f: f.ended("facts")),
        Item(
            phase="before",
            text="citation system designed",
            ticked=lambda f: f.value("preparation", "citation_format") is not None,
        ),
        _UNDERSTOOD,
        Item(phase="during", text="factual data validated (citation accuracy)", ticked=lambda f: f.passed("facts")),
        Item(phase="during", text="citation training done (factuality)", ticked=lambda f: f.passed("citation")),
        Item(phase="during", text="hallucination detection in place", ticked=lambda f: f.passed("detection")),
        _KL,
        _ENFORCED,
        _THRESHOLDS,
        _RETAINED,
        Item(phase="after", text="hallucination reduced", ticked=_improved("hallucination_rate", lower_is_better=True)),
        _CITATION,
        _COMPLETE,
    ),
}


def tick(workflow: str, facts: Facts) -> list[Ticked]:
    """Every item, in order, with whether it is so."""
    return [
        Ticked(phase=item.phase, text=item.text, done=item.ticked(facts), by=facts.signatures.get(item.signed, ""))
        for item in CHECKLISTS[workflow]
    ]
