"""The explicit list of ways to say, in English, that a question is not answered.

An abstention says something of the answer or of the sources, not of the world: "I could not find her birthplace" and
"the passages do not mention it" abstain, "its author is unknown" and "the court found no evidence of fraud" claim.
"""

from __future__ import annotations

import re
from typing import Final

WE: Final = r"(?:i|we|the\ (?:model|assistant|author))"
JUST: Final = r"(?:(?:really|simply|currently|just|actually|also)\ )?"
CANNOT: Final = r"(?:can\ ?not|can't|could(?:\ not|n't)|(?:am|are|was|were)\ (?:unable|not\ able)\ to)"
ANSWER: Final = (
    r"(?:find|locate|provide|answer|determine|confirm|verify|give|say|tell|identify|access|offer|help|respond)"
)
SOURCES: Final = r"""(?:(?:the|these|this|those|any|my|your|available|provided|given|retrieved|search|supplied)\ )*
    (?:sources?|passages?|documents?|context|texts?|results?|information|evidence|excerpts?|references?|articles?)
    (?:\ (?:provided|given|available|above|i\ have|at\ hand))?"""
CONTAIN: Final = r"""(?:say|mention|state|contain|provide|include|specify|discuss|address|answer|cover|give|indicate
    |tell|reveal|offer|have)"""
FINDINGS: Final = r"(?:information|evidence|data|details|knowledge|context|sources?|passages?|results|answer)"

# Each with an example that it, and no other of them, is there for.
PHRASES: Final = (
    # "I really can't tell you more about it"
    rf"\b{WE},?\ {JUST}{CANNOT}\ (?:\w+\ ){{0,2}}?{ANSWER}\b",
    # "I don't know", "we did not find it", "I do not have enough reliable information"
    rf"\b{WE}\ {JUST}(?:do|did)(?:\ not|n't)\ {JUST}"
    rf"(?:know\b|find\b|have\ (?:\w+\ ){{0,3}}{FINDINGS}\b|have\ access\b)",
    # "I found no information"
    rf"\b{WE}\ {JUST}(?:have|had|found|find)\ no\ (?:\w+\ )?(?:{FINDINGS}|idea|way)\b",
    # "I'm not sure", "we are unaware"
    rf"\b{WE}(?:'m|'re|\ am|\ are)\ (?:not\ (?:sure|certain|aware|familiar|able)|unsure|unaware|unable|uncertain)\b",
    # "Sorry, no." "I apologize"
    r"^(?:(?:i|we)(?:'m|'re|\ am|\ are)\ sorry\b|sorry\b|(?:i|we)\ apologi[sz]e\b|unfortunately,\ (?:i|we)\b)",
    # "The passages do not clearly mention it"
    rf"\b{SOURCES}\ (?:do|does|did)(?:\ not|n't)\ (?:\w+\ )?{CONTAIN}\b",
    # "From the given context, there is no direct information on it"; but "the court found no evidence"
    rf"\b(?:there\ (?:is|are|was|were)|contains?|have|has)\ (?:no|not\ enough|insufficient|not\ any)\ (?:\w+\ ){{0,2}}"
    rf"{FINDINGS}\b(?=(?:\ \w+)*\ (?:to\ (?:answer|determine|say)|provided|given|available|in\ {SOURCES})\b"
    r"|\ (?:on|about|regarding|specifically\ about)\b|[.!]?$)",
    # "Not enough information is given to say"
    rf"\b(?:not\ enough|insufficient|no)\ (?:reliable\ |relevant\ )?{FINDINGS}\ "
    r"(?:(?:is|was|were|are)\ (?:given|available|provided|found)|to\ (?:answer|determine|say|tell))\b",
    # "This cannot be determined from the sources"
    r"\b(?:can\ ?not|can't|could\ not)\ be\ "
    r"(?:answered|determined|found|verified|established|inferred|confirmed|provided)\b"
    rf"(?:\ (?:definitively|reliably|conclusively|exactly|with\ certainty))?"
    rf"(?:\ (?:(?:based\ )?on|from|by|with|using|given|in)\ {SOURCES}|[.!]?$)",
    # "It is not stated in the passage"
    rf"\b(?:is|are|was|were)\ not\ (?:\w+\ )?"
    r"(?:mentioned|stated|given|provided|specified|covered|answered|discussed|included)"
    rf"\ (?:in|by)\ {SOURCES}\b",
    # "None of the sources says so"
    rf"\bnone\ of\ {SOURCES}\ \w+",
    # "Unknown."
    r"^(?:unknown|not\ known|unanswerable|no\ answer|not\ stated|n/a|i\ pass|(?:no|insufficient)\ information)[.!]?$",
    # "The question is unanswerable"
    r"\b(?:question\ is\ unanswerable|unable\ to\ (?:answer|find|provide|determine))\b",
)
ABSTENTIONS: Final = tuple(re.compile(phrase, re.IGNORECASE | re.VERBOSE) for phrase in PHRASES)


def is_abstaining(sentence: str) -> bool:
    """Whether this sentence, without its citations, says that the answer is not given."""
    text = re.sub(r"\s+", " ", sentence.replace("’", "'")).strip()
    return any(pattern.search(text) for pattern in ABSTENTIONS)
