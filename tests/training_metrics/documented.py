"""Runs the examples of a document: its `>>>` lines, in order, in one namespace, with what they print compared."""

from __future__ import annotations

import doctest
from pathlib import Path

ROOT = Path(__file__).parents[2]
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.REPORT_NDIFF


def run_examples(document: str) -> tuple[int, str]:
    """(how many were run, what differed: empty if nothing did), relative to the current folder."""
    text = (ROOT / "docs" / document).read_text(encoding="utf-8")
    examples = doctest.DocTestParser().get_doctest(text, {}, document, document, 0)
    differed: list[str] = []
    doctest.DocTestRunner(optionflags=OPTIONS).run(examples, out=differed.append)
    return len(examples.examples), "".join(differed)
