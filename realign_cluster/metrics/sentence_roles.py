"""What a sentence does in an answer: only a declarative one with content of its own can be checked against a source.

Rules and explicit lists, in English. Reads the text of one sentence without its citations.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final

from realign_cluster.metrics.abstention_phrases import is_abstaining
from realign_cluster.metrics.citations import strip_citations

# fmt: off
# Words that carry no fact of their own: with nothing else, a sentence is only a hedge.
EMPTY_WORDS: Final = frozenset({
    "a", "about", "all", "also", "although", "an", "and", "another", "any", "apparently", "appear", "appears",
    "are", "as", "at", "be", "been", "being", "believe", "believed", "but", "by", "can", "case", "cases", "certain",
    "certainty", "clear", "complex", "could", "debatable", "depend", "depending", "depends", "did", "different",
    "difficult", "do", "does", "each", "entirely", "even", "exactly", "factors", "for", "from", "generally",
    "guess", "had", "hard", "has", "have", "he", "her", "here", "his", "how", "however", "i", "if", "in",
    "interpretation", "is", "it", "its", "just", "know", "likely", "many", "may", "maybe", "me", "might", "more",
    "most", "much", "my", "no", "not", "of", "often", "on", "one", "only", "opinion", "opinions", "or", "other",
    "others", "our", "particularly", "perhaps", "possible", "possibly", "potentially", "presumably", "probable",
    "probably", "quite", "rather", "really", "say", "seem", "seems", "several", "she", "should", "situation", "so",
    "some", "sometimes", "sources", "specific", "still", "such", "suggest", "suggests", "suppose", "sure", "tell",
    "than", "that", "the", "their", "them", "there", "therefore", "these", "they", "thing", "things", "think",
    "this", "those", "thus", "to", "true", "typically", "uncertain", "uncertainty", "unclear", "unknown", "us",
    "usually", "varies", "various", "vary", "very", "was", "way", "ways", "we", "were", "what", "when", "where",
    "whether", "which", "while", "who", "why", "will", "with", "would", "yes", "you", "your",
})
# fmt: on
FILLERS: Final = re.compile(
    r"""
      ^(?:sure|certainly|of\ course|absolutely|great\ question|good\ question|hello|hi|hey|greetings|thanks|thank\ you
         |you'?re\ welcome|okay|ok|yes|no|well|dear)\b[^.!?]{0,40}[.!,]*$
    | ^(?:i|we)\ (?:hope|would\ be\ happy|am\ happy|'?d\ be\ happy|can\ help)\b
    | ^(?:please|feel\ free|do\ not\ hesitate|don'?t\ hesitate|let\ me\ know)\b
    | ^if\ you\ (?:have|need|would\ like|want)\b.*\b(?:ask|let\ me|feel\ free|help)\b
    | ^here(?:'s|\ is|\ are)\ (?:a|an|some|the|my|what|your)\b.*(?::|\bbelow\.?)$
    | ^(?:in\ this|the\ following)\ (?:answer|response)\b
    | ^as\ an\ ai\b
    """,
    re.IGNORECASE | re.VERBOSE,
)
IMPERATIVES: Final = re.compile(
    r"""
    ^(?:(?:\w+ly|first|second|next|then|finally|also|always|never|do\ not|don't),?\ ){0,2}
    (?:add|ask|avoid|bake|be\ sure|check|choose|click|combine|consider|consult|contact|create|cut|do|ensure|explain|find
      |follow|give|go|identify|imagine|include|install|keep|let|look|make|mix|place|pour|prepare|provide|put|read
      |remove|repeat|run|see|seek|select|set|start|stir|take|try|turn|use|visit|wait|wash|write)[ ]
    (?!(?:is|are|was|were|has|have|had|of|can|may|will|would)\b)
    """,
    re.VERBOSE,
)
NOTICE: Final = re.compile(  # "please note that" goes before a claim and is none of it
    r"^(?:please |also,? )?(?:(?:do )?note|keep in mind|remember|be aware|bear in mind) that ", re.IGNORECASE
)
QUOTED_QUESTION: Final = re.compile(r"^[\"“'‘].*\?[\"”'’]$")  # alone; at the end of a sentence it is its object
OPINION: Final = re.compile(r"^(?:i|we) (?:think|believe|feel|guess|suppose|recommend|suggest|would)\b", re.IGNORECASE)
WORD: Final = re.compile(r"[^\W_]+(?:['’.-][^\W_]+)*")
LEAST_WORDS: Final = 3
MARKER: Final = re.compile(r"^(?:[-*+•‣–>]|\(?(?:\d{1,3}[.)]|[a-zA-Z]\)))\s+")  # "A. Smith" is a name
EMPHASIS: Final = re.compile(r"(\*\*|__)(.{1,200}?)\1")


class Role(StrEnum):
    CLAIM = "claim"
    QUESTION = "question"
    ABSTENTION = "abstention"
    FILLER = "filler"  # greetings, offers of help, announcements
    HEDGE = "hedge"  # nothing but a hedge
    OPINION = "opinion"
    INSTRUCTION = "instruction"
    LEAD_IN = "lead_in"  # ends in a colon: what follows claims something
    FRAGMENT = "fragment"  # too short to say anything


def role_of(sentence: str) -> Role:
    """`sentence` with or without citations and list marker."""
    text = NOTICE.sub("", bare_text(sentence))
    words = [word.casefold() for word in WORD.findall(text)]
    if text.rstrip(")*_ ").endswith("?") or QUOTED_QUESTION.match(text):
        return Role.QUESTION
    if is_abstaining(text):
        return Role.ABSTENTION
    if FILLERS.match(text):
        return Role.FILLER
    if text.rstrip("*_ ").endswith(":"):
        return Role.LEAD_IN
    if not any(word not in EMPTY_WORDS for word in words):
        return Role.HEDGE if len(words) >= LEAST_WORDS else Role.FRAGMENT
    if len(words) < LEAST_WORDS:
        return Role.FRAGMENT
    if OPINION.match(text):
        return Role.OPINION
    if IMPERATIVES.match(text[:1].lower() + text[1:]):
        return Role.INSTRUCTION
    return Role.CLAIM


def bare_text(sentence: str) -> str:
    """Without citations, list marker and emphasis."""
    return EMPHASIS.sub(r"\2", MARKER.sub("", strip_citations(sentence))).strip().lstrip("*_#> ").strip()
