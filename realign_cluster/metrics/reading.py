"""From the text of an answer to what the metrics count: its sentences and its claims, with the sources they cite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from realign_cluster.metrics.citation_marks import Mark
from realign_cluster.metrics.citation_quality import CitedAnswer, CitedSentence
from realign_cluster.metrics.citations import Resolved, read_citations, resolve, strip_citations
from realign_cluster.metrics.claims import body_sentences, extract_claims
from realign_cluster.metrics.measured import ItemId, SourceId


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadSentence:
    """text[begin:end]; `sources` has one for each citation, None for an unknown id."""

    begin: int
    end: int
    claim: str
    sources: tuple[SourceId | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadClaim:
    """text[begin:end]; `sources` has one for each citation that vouches for it, None for an unknown id."""

    begin: int
    end: int
    text: str
    sources: tuple[SourceId | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadAnswer:
    item: ItemId
    text: str
    sentences: tuple[ReadSentence, ...]
    claims: tuple[ReadClaim, ...]
    citations: tuple[Resolved, ...]

    @property
    def cited(self) -> frozenset[SourceId]:
        return frozenset(source for citation in self.citations for source in citation.sources if source is not None)

    @property
    def unknown(self) -> tuple[tuple[Mark, str], ...]:
        """Every key that leads nowhere, with where it stands."""
        return tuple((citation.mark, key) for citation in self.citations for key in citation.unknown)


def read_answer(item: ItemId, text: str, known: Mapping[str, SourceId]) -> ReadAnswer:
    """`known` leads from what an answer may write (a number, "smith 2020", an address, a title) to its source."""
    citations = read_citations(text)
    resolved = resolve(citations, known)
    meant = {key: source for one in resolved for key, source in zip(one.mark.keys, one.sources, strict=True)}
    sentences = tuple(
        ReadSentence(
            begin=sentence.begin,
            end=sentence.end,
            claim=strip_citations(text[sentence.begin : sentence.end]),
            sources=tuple(
                source for one in resolved if sentence.begin <= one.mark.begin < sentence.end for source in one.sources
            ),
        )
        for sentence in body_sentences(text, citations)
    )
    claims = tuple(
        ReadClaim(
            begin=claim.begin,
            end=claim.end,
            text=claim.text,
            sources=tuple(meant[key] for key in claim.keys if key in meant),
        )
        for claim in extract_claims(text)
    )
    return ReadAnswer(item=item, text=text, sentences=sentences, claims=claims, citations=resolved)


def cited_answers(answers: Iterable[ReadAnswer], passages: Mapping[SourceId, str]) -> tuple[CitedAnswer, ...]:
    """What citation quality is measured on. A source without a text counts as unknown."""
    return tuple(
        CitedAnswer(
            item=answer.item,
            sentences=tuple(
                CitedSentence(
                    claim=sentence.claim,
                    passages=tuple(None if source is None else passages.get(source) for source in sentence.sources),
                )
                for sentence in answer.sentences
            ),
        )
        for answer in answers
    )
