"""The numbered passages that stand in a prompt, for rows that do not bring them apart.

Two ways of numbering are read: the number before its passage, at the beginning of a line ("[1] The harbour ..."), or
after each of its sentences ("... was built in 1821 [1]."). What is numbered in no way has no passages here.
"""

from __future__ import annotations

import re
from typing import Any, Final

from realign_cluster.metrics.citations import strip_citations
from realign_cluster.metrics.sentences import split_sentences

LEADING: Final = re.compile(r"^[ \t]*(?:\[(\d{1,3})\]|(\d{1,3})[.)])[ \t]+(\S.*)$", re.MULTILINE)
TRAILING: Final = re.compile(r"\[(\d{1,3})\][ \t]*[.!?]?[ \t]*$")


def passages_in_prompt(prompt: str) -> list[dict[str, Any]]:
    """{"id", "text"} of each, the id its number as it stands there; in order of numbers."""
    found: dict[int, list[str]] = {}
    for match in LEADING.finditer(prompt):
        bracketed, plain, text = match.groups()
        found.setdefault(int(bracketed or plain), []).append(text.strip())
    if not found:
        for sentence in split_sentences(prompt):
            text = prompt[sentence.begin : sentence.end]
            if (mark := TRAILING.search(text)) is not None:
                found.setdefault(int(mark.group(1)), []).append(strip_citations(text))
    return [{"id": str(number), "text": " ".join(found[number])} for number in sorted(found)]
