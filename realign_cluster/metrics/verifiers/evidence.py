"""Evidence in pieces: sentences, and chunks of sentences that fit into a judge's context. Offsets are characters."""

from __future__ import annotations

from realign_cluster.metrics.sentences import split_sentences
from realign_cluster.metrics.verifiers.verdict import Span

CHUNKS_VERSION = 2  # raise it whenever the same evidence would be cut otherwise


def sentence_spans(text: str) -> list[Span]:
    """Sentences without the white space around them, by `metrics.sentences`; a newline always ends one."""
    spans, start = [], 0
    for line in text.split("\n"):
        spans += [Span(start=start + each.begin, end=start + each.end) for each in split_sentences(line)]
        start += len(line) + 1
    return spans


def chunk_spans(text: str, *, max_characters: int, overlap_sentences: int = 1) -> list[Span]:
    """Whole sentences of `text` in runs of at most `max_characters`, each beginning with the last
    `overlap_sentences` of the one before it where they fit. Every sentence is in a chunk; one that is longer than a
    chunk is cut at white space, or anywhere where there is none. Raises ValueError for max_characters < 1.
    """
    if max_characters < 1:
        raise ValueError("a chunk holds at least one character")
    pieces = [piece for span in sentence_spans(text) for piece in _cut(text, span, max_characters)]
    chunks: list[Span] = []
    first = at = 0
    while at < len(pieces):
        last = at
        while last + 1 < len(pieces) and pieces[last + 1].end - pieces[first].start <= max_characters:
            last += 1
        chunks.append(Span(start=pieces[first].start, end=pieces[last].end))
        at = last + 1
        first = max(at - overlap_sentences, first + 1)
        while first < at < len(pieces) and pieces[at].end - pieces[first].start > max_characters:
            first += 1
    return chunks


def _trimmed(text: str, start: int, end: int) -> Span:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return Span(start=start, end=end)


def _cut(text: str, span: Span, max_characters: int) -> list[Span]:
    pieces, start = [], span.start
    while span.end - start > max_characters:
        end = start + max_characters
        if not text[end].isspace():
            space = max((at for at in range(start + 1, end) if text[at].isspace()), default=end)
            end = space
        piece = _trimmed(text, start, end)
        if piece.start < piece.end:
            pieces.append(piece)
        start = _trimmed(text, end, span.end).start
    pieces.append(Span(start=start, end=span.end))
    return pieces
