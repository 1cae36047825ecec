"""What a diagnosis says: an issue, the numbers that show it, what to do about it, and what follows from it.

Must not decide when an issue is there (`diagnosis`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

Kind = Literal["data", "configuration", "weights", "symptom"]
Issue = Literal[
    "wrong ids",
    "swapped sources",
    "mixed-up sources",
    "evaluation leak",
    "pad token scored",
    "examples without citations",
    "invented examples",
    "abstaining examples",
    "examples cut short",
    "damaged base",
    "truncated answers",
    "unending answers",
    "poor index",
    "low citation accuracy",
    "poor source retrieval",
    "low attribution coverage",
    "high hallucination",
    "over-hedging",
    "model drift",
    "capability loss",
    "stage not done",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One number: `value` with its one-sided bound at 95 % (or the gate's), which is beyond `limit`. `text` is for
    what is no measurement: a setting.
    """

    what: str
    where: str  # stage and attempt, or the setting's key
    value: float | None = None
    bound: float | None = None
    limit: float | None = None
    items: int = 0
    dataset: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """`leads_to`: what it is known to cause; `explained_by`: findings before it that cause this one."""

    issue: Issue
    kind: Kind
    title: str
    evidence: tuple[Evidence, ...]
    remedies: tuple[str, ...]
    leads_to: tuple[Issue, ...] = ()
    explained_by: tuple[Issue, ...] = ()
    examples: tuple[Mapping[str, Any], ...] = ()


REMEDIES: Final[Mapping[Issue, tuple[str, ...]]] = {
    "wrong ids": (
        "correct or drop the rows whose citations name no source that they were given",
        "number the passages as the completions do: from 1, in the order of `sources`",
    ),
    "swapped sources": (
        "cite the passage that says it: the rows shown cite another one",
        "see whether passages were put in another order after the completions were written",
    ),
    "mixed-up sources": (
        "give each source its own text again: other texts stand under its id in the questions",
        "make the sources file and the questions from one export",
    ),
    "evaluation leak": (
        "drop the copies from what is trained on, or measure on other questions",
        "judge nothing by verdicts on these sets: they tell what was learned by heart",
    ),
    "pad token scored": (
        "take special tokens out of the completions: they are learned like words",
        "end a completion with its last word: the end token is put there by the training",
        "use a pad token that is not the end token",
    ),
    "examples without citations": (
        "cite in every completion that answers: more citation examples",
        "reward attribution: pairs of a cited over an uncited answer",
    ),
    "invented examples": (
        "better grounding data: drop completions that their passages do not support",
        "let completions of unanswerable questions say that the passages do not tell",
        "stronger fact-checking of what is collected: another verifier, if these rows are right",
    ),
    "abstaining examples": (
        "answer where the passages do: more answerable items with their answers",
        "calibrated abstention: only unanswerable questions may have an abstaining completion",
    ),
    "examples cut short": ("write the completions to their end, or drop those that stop in a sentence",),
    "damaged base": (
        "compare the model's files with their publisher's hashes, and load it in another tool",
        "take another base, or train stage 1 longer",
    ),
    "truncated answers": (
        "raise generation.max_new_tokens above the longest completion that is trained on",
        "see whether a text of generation.stop occurs within answers",
    ),
    "unending answers": (
        "train on completions that end, with the end token of this tokenizer (eos_token_id in config.json)",
        "name the text that ends an answer in generation.stop",
        "use a pad token that is not the end token: what is padded is not learned",
    ),
    "poor index": (
        "better indexing: a source is not found by its own words; see what its text holds besides",
        "cut long sources into passages; drop doubles",
    ),
    "low citation accuracy": (
        "better source data",
        "stronger citation training: more steps, or more and other examples",
        "better attribution training: pairs of right over wrong citations",
    ),
    "poor source retrieval": ("better indexing: other parameters, shorter passages", "a better retriever"),
    "low attribution coverage": ("more citation examples", "reward attribution"),
    "high hallucination": ("better grounding data", "stronger fact-checking"),
    "over-hedging": ("balance certainty: more answerable items", "calibrated abstention: fewer pairs that abstain"),
    "model drift": ("lower the learning rate", "a stronger KL penalty: raise loss.beta, or set training.*.kl"),
    "capability loss": (
        "roll back to the checkpoint before",
        "adjust the data balance: more general data (mix.general)",
    ),
    "stage not done": (
        "see the checks that failed in the report: the data they name are made by this stage from those before",
        "if a training failed: lower its learning rate, and see its own run below jobs/",
    ),
}
