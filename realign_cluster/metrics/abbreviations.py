"""Short words with a full stop of their own, and words that open sentences: what `sentences` decides by."""

from __future__ import annotations

from typing import Final

# fmt: off
# Never the last word of a sentence: a name or an example follows.
OPENING: Final = frozenset({
    "adm", "al", "approx", "capt", "cf", "cit", "cmdr", "col", "cpl", "dept", "dr", "e.g", "ed", "eds", "esp",
    "est", "fr", "gen", "gov", "hon", "i.e", "incl", "lt", "maj", "messrs", "mlle", "mme", "mr", "mrs", "ms", "mt",
    "op", "pres", "prof", "rep", "resp", "rev", "sen", "sgt", "st", "supp", "trans", "univ", "v", "viz", "vs",
})
# The same if a number follows: "No. 5", but "She said no."
BEFORE_NUMBERS: Final = frozenset({
    "app", "art", "c", "ca", "ch", "chap", "eq", "eqs", "fig", "figs", "no", "nos", "p", "pp", "ref", "refs", "sec",
    "secs", "vol", "vols",
})
# May end a sentence or not: it does if the next word is one that opens sentences.
CLOSING: Final = frozenset({
    "a.m", "apr", "aug", "ave", "b.c.e", "b.sc", "blvd", "bros", "co", "corp", "dec", "esq", "etc", "feb", "inc",
    "jan", "jr", "llc", "ltd", "m.sc", "nov", "oct", "p.m", "ph.d", "plc", "sept", "sr",
})
STARTERS: Final = frozenset({
    "according", "additionally", "after", "also", "although", "an", "and", "another", "as", "at", "because",
    "before", "both", "but", "by", "despite", "during", "finally", "first", "for", "from", "furthermore", "he",
    "hence", "her", "here", "his", "how", "however", "if", "in", "it", "its", "later", "many", "meanwhile",
    "moreover", "most", "nevertheless", "next", "no", "not", "on", "one", "or", "other", "our", "overall", "second",
    "several", "she", "since", "so", "some", "such", "that", "the", "their", "then", "there", "therefore", "these",
    "they", "third", "this", "those", "though", "three", "thus", "to", "today", "two", "until", "we", "what",
    "when", "where", "which", "while", "who", "why", "with", "yes", "you",
})
# fmt: on
