"""The claims of an answer that are worth checking, each with the citations that vouch for it.

By rule: declarative sentences with content of their own (`sentence_roles`), outside headings, code and bibliography.
A sentence of two clauses is split where both stand on their own: at a semicolon, or at ", and" / ", but" before a
subject and a finite verb, and never behind a word that governs both ("because", "that", "if"). A clause without a
citation of its own shares those of the clause behind it: a mark at the end of a sentence vouches for all of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from realign_cluster.metrics.citations import Citations, read_citations
from realign_cluster.metrics.sentence_roles import Role, bare_text, role_of
from realign_cluster.metrics.sentences import Kind, Sentence, split_sentences

VERB: Final = (
    r"(?:is|are|was|were|has|have|had|does|did|do|can|could|may|might|will|would|should|must|became|began|won|wrote|made|led"
    r"|held|took|gave|went|came|left|met|ran|grew|built|found|lies|lives|contains|includes|remains|\w{3,}(?:ed|izes))"
)
SUBJECT: Final = (
    r"(?:(?:he|she|it|they|we|there|this|these|those|both|many|most)\b"
    r"|(?:the|a|an|his|her|its|their|our|some|several)\s+(?:[\w'-]+\s+){1,4}?|[A-Z][\w'-]*(?:\s+[A-Z][\w'-]*){0,3}\b)"
)
SPLIT: Final = re.compile(rf"(?P<joint>;\s+|,\s+(?:and|but)\s+)(?={SUBJECT}\s*(?:\w+ly\s+|also\s+|not\s+)?{VERB}\b)")
GOVERNS: Final = re.compile(
    r"\b(?:if|unless|whether|once|as|because|since|although|though|while|when|where|after|before|that|which|who|"
    r"whose|what|how|either|neither|between)\b",
    re.IGNORECASE,
)
STATING: Final = (Role.CLAIM, Role.ABSTENTION)  # "I am not sure, but it lies in Peru" claims something too
HAS_VERB: Final = re.compile(rf"\b{VERB}\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """text[begin:end] of the answer; `text` is what it claims, without citations; `keys` are what it cites."""

    begin: int
    end: int
    text: str
    keys: tuple[str, ...]
    sentence: Sentence


def body_sentences(text: str, citations: Citations) -> tuple[Sentence, ...]:
    """The sentences of the running text, in order: no heading, code, table, footnote text or bibliography.

    Citation quality counts these, claims or not, as ALCE does.
    """
    return tuple(
        sentence
        for sentence in split_sentences(text[: citations.body_end])
        if sentence.kind is Kind.PROSE
        and not any(entry.begin <= sentence.begin < entry.end for entry in citations.entries)
        and any(character.isalnum() for character in bare_text(text[sentence.begin : sentence.end]))
    )


def extract_claims(text: str) -> tuple[Claim, ...]:
    citations = read_citations(text)
    found: list[Claim] = []
    for sentence in body_sentences(text, citations):
        if role_of(text[sentence.begin : sentence.end]) in STATING:
            found += _claims_of(text, sentence, citations)
    return tuple(found)


def _claims_of(text: str, sentence: Sentence, citations: Citations) -> list[Claim]:
    claims: list[Claim] = []
    keys: tuple[str, ...] = ()
    for begin, end in reversed(_clauses(text, sentence)):
        own = tuple(key for mark in citations.marks if begin <= mark.begin < end for key in mark.keys)
        keys = own or keys
        bare = bare_text(text[begin:end]).rstrip(",; ")
        if role_of(bare) is Role.CLAIM:
            claims.append(Claim(begin=begin, end=end, text=bare, keys=keys, sentence=sentence))
    return claims[::-1]


def _clauses(text: str, sentence: Sentence) -> list[tuple[int, int]]:
    """Spans of the clauses that stand on their own; the whole sentence if that is not safe."""
    cuts: list[tuple[int, int]] = []
    start = sentence.begin
    for match in SPLIT.finditer(text, sentence.begin, sentence.end):
        left, right = text[start : match.start()], text[match.end() : sentence.end]
        balanced = (
            left.count("(") == left.count(")") and left.count('"') % 2 == 0 and left.count("“") == left.count("”")
        )
        if not balanced or GOVERNS.search(text[sentence.begin : match.start()]):
            continue
        role = role_of(left)
        if (role is Role.ABSTENTION or (role is Role.CLAIM and HAS_VERB.search(left))) and role_of(right) in STATING:
            cuts.append((start, match.start()))
            start = match.end()
    return [*cuts, (start, sentence.end)]
