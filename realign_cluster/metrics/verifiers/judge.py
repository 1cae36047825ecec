"""The judge: a model's label probabilities, from a scoring job of kind `judge`, as verdicts.

Two pure halves with the job between them: `judge_rows` says what is to be scored, on whichever nodes, and
`judge_verdicts` reads what came back. Long evidence goes in chunks, and the claim is supported as far as its best chunk
supports it. Must not load a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from realign_cluster.domain.job import JUDGE_LABELS, JUDGE_TEMPLATE, ScoreJob
from realign_cluster.metrics.verifiers.evidence import CHUNKS_VERSION, chunk_spans
from realign_cluster.metrics.verifiers.report import CalibrationReport
from realign_cluster.metrics.verifiers.verdict import (
    EVEN_ODDS,
    Label,
    Pair,
    Span,
    Verdict,
    fingerprint_of,
    unanswerable,
    undefined,
)

MEANING: Mapping[str, Label] = {
    "supported": "supported",
    "contradicted": "contradicted",
    "not_supported": "unverifiable",
    "partially_supported": "unverifiable",
    "unverifiable": "unverifiable",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunking:
    """How evidence is cut. Characters, because no tokenizer is at hand: choose them so that a chunk, the claim and the
    template fit into the job's `max_tokens`, or the model sees only part of it and verdicts say so.
    """

    max_characters: int = 4000
    overlap_sentences: int = 1


def judge_rows(pairs: Sequence[Pair], chunking: Chunking) -> list[dict[str, Any]]:
    """Rows for `realign curate --score judge`: `claim` and `evidence`, with `pair`, `chunk` of `chunks`, and where the
    chunk is (`start`, `end`). Each different pair once, and the claims on one piece of evidence next to each other, so
    that its prefill is shared.
    """
    claims: dict[str, dict[str, Pair]] = {}
    for pair in pairs:
        if unanswerable(pair) is None:
            claims.setdefault(pair.text, {})[pair.key] = pair
    rows = []
    for text, asked in claims.items():
        spans = _chunks(text, chunking)
        for number, span in enumerate(spans):
            for key, pair in asked.items():
                place = {"pair": key, "chunk": number, "chunks": len(spans), "start": span.start, "end": span.end}
                rows.append({**place, "claim": pair.claim, "evidence": span.of(text)})
    return rows


def judge_verdicts(
    pairs: Sequence[Pair],
    scored: Iterable[Mapping[str, Any]],
    *,
    meaning: Mapping[str, Label] = MEANING,
) -> list[Verdict]:
    """Verdicts from the job's output rows, in any order. P(supported) is the highest of the chunks'; the span is that
    chunk. Not supported by any, a claim is contradicted if a chunk says so with more than even odds.

    A pair of which a chunk is missing (its row failed) or was not answered is undefined. Raises ValueError for rows
    that are not the judge's, and for labels without a meaning.
    """
    answers: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in scored:
        if "judge" not in row.get("scores", {}) or "pair" not in row:
            raise ValueError("a row is not one of judge_rows with a judge's scores")
        answers.setdefault(row["pair"], {})[row["chunk"]] = row
    return [unanswerable(pair) or _verdict(answers.get(pair.key, {}), meaning) for pair in pairs]


def judge_facts(job: ScoreJob, chunking: Chunking, meaning: Mapping[str, Label] = MEANING) -> dict[str, Any]:
    """Of everything that verdicts depend on: the model's hash covers weights, tokenizer and chat template."""
    labels = job.labels or JUDGE_LABELS
    return {
        "verifier": "judge",
        "version": job.kind_versions.get("judge", 1),
        "model": job.model.hash,
        "template": job.template or JUDGE_TEMPLATE,
        "labels": {label: _meaning(label, meaning) for label in labels},
        "chunking": asdict(chunking) | {"version": CHUNKS_VERSION},
        **job.model_dump(mode="json", include={"chat", "max_tokens", "truncate"}),
    }


Score = Callable[[Sequence[Mapping[str, Any]]], Iterable[Mapping[str, Any]]]


class JudgeVerifier:
    """The judge as a verifier for whoever can have rows scored: `run` takes rows, has a `judge` job done on them, and
    returns the output rows.
    """

    def __init__(self, job: ScoreJob, run: Score, *, chunking: Chunking | None = None) -> None:
        """Raises ValueError for a label of the job that has no meaning."""
        self.chunking = chunking or Chunking()
        self._facts = judge_facts(job, self.chunking)
        self._run = run

    def score(self, pairs: Sequence[Pair]) -> list[Verdict]:
        rows = judge_rows(pairs, self.chunking)
        return judge_verdicts(pairs, self._run(rows) if rows else ())

    def facts(self) -> Mapping[str, Any]:
        return self._facts

    def fingerprint(self) -> str:
        return fingerprint_of(self._facts)

    def calibration_report(self) -> CalibrationReport | None:
        return None


def _chunks(text: str, chunking: Chunking) -> list[Span]:
    return chunk_spans(text, max_characters=chunking.max_characters, overlap_sentences=chunking.overlap_sentences)


def _verdict(chunks: Mapping[int, Mapping[str, Any]], meaning: Mapping[str, Label]) -> Verdict:
    count = next(iter(chunks.values()))["chunks"] if chunks else 1
    missing = [number for number in range(count) if number not in chunks]
    if missing:
        return undefined(f"{len(missing)} of {count} chunks of the evidence were not scored")
    best, supported, contradicted = chunks[0], -1.0, 0.0
    for number in range(count):
        judged = chunks[number]["scores"]["judge"]
        if judged["label"] is None:
            return undefined(f"chunk {number} of {count}: {judged.get('undefined', 'no answer')}")
        weight: dict[Label, float] = {}
        for label, probability in judged["probabilities"].items():
            means = _meaning(label, meaning)
            weight[means] = weight.get(means, 0.0) + probability
        if weight.get("supported", 0.0) > supported:
            best, supported = chunks[number], weight.get("supported", 0.0)
        contradicted = max(contradicted, weight.get("contradicted", 0.0))
    other: Label = "contradicted" if contradicted > EVEN_ODDS else "unverifiable"
    cut = sum(bool(row["scores"]["judge"]["truncated"]) for row in chunks.values())
    return Verdict(
        supported=min(supported, 1.0),  # a sum of probabilities may come out a last digit above it
        label="supported" if supported >= EVEN_ODDS else other,
        span=Span(start=best["start"], end=best["end"]),
        reason=f"{cut} of {count} chunks did not fit into the context" if cut else "",
    )


def _meaning(label: str, meaning: Mapping[str, Label]) -> Label:
    if label not in meaning:
        raise ValueError(f"the judge's label {label!r} has no meaning: name one of {', '.join(meaning)}")
    return meaning[label]
